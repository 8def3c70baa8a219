"""Time and money of a plan on a device, from a roofline model with three limits. Nothing is measured.

A decoding step of a batch generates one token for each of its slots. It takes as long as the slowest of

- bandwidth: (weights + keys and values of the slots) / (devices x bandwidth x efficiency)
- arithmetic: 2 x parameters x slots / (devices x FLOP/s x efficiency)
- launching kernels: layers x layer_us, however small the model is; vLLM schedules each step as well, in 4 ms

and (tokens out / slots) steps are needed. Prefill takes 2 x parameters x tokens read / (devices x FLOP/s x efficiency),
for the prompts and for the canaries, the rollouts that are recomputed as a check; texts that are given, or that a
server generates, are prefilled whole and nothing is decoded. The user of a dialogue counts where the workers run it:
the model itself, or a model of the user's own, on one device by the same formulas. An engine is its efficiency, its
``layer_us`` and its slots: vLLM's slots are as many as the memory of the device has room for, up to their number, and
the sums of its capture are moved through memory in each step. Not modelled are the arithmetic of attention (1 % at a
thousand tokens of a 70B model), communication between the devices of a replica (part of the efficiency), the experts
that a mixture leaves out, loading the model, and waiting for machines. Every response counts at full length; many end
earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..engines import Engine
from ..errors import InputError
from ..model_facts import ModelFacts
from ..plan import Plan
from .devices import Device
from .estimate import (
    BYTES_PER_PARAMETER,
    HEADROOM,
    Estimate,
    cache_parts,
    captured_bytes,
    generates_here,
    parameter_bytes,
    resolved_dtype,
)

MAX_DEVICES = 100_000
"""Most devices that a plan is priced on: no cluster has more, and a larger number is a slip of the hand."""

_VLLM_SCHEDULING_S = 0.004

Limit = Literal["bandwidth", "arithmetic", "launching"]


@dataclass(frozen=True, slots=True)
class Price:
    """Time and money of a plan on one type of device.

    Attributes:
        device: Name of the device in the table.
        engine: Engine that is priced.
        tensor_parallel: Devices among which each decoder layer of a replica is split.
        pipeline_parallel: Stages of a replica, of ``tensor_parallel`` devices each.
        rows: Rollouts that one replica runs at a time.
        step_s: Seconds of one decoding step of a full batch.
        limited_by: The limit that decides ``step_s``.
        tokens_per_s: Tokens that one replica generates per second.
        prefill_hours: Hours that a single replica would need for all prompts and canaries.
        decode_hours: Hours that a single replica would need for all responses; 0 for texts that it only reads.
        gpu_hours: Device-hours; they do not depend on the number of devices.
        gpus: Devices that are used: whole replicas, and no more replicas than units.
        days: Days on these devices.
        money: Price of the device-hours, in the table's currency.
    """

    device: str
    engine: Engine
    tensor_parallel: int
    pipeline_parallel: int
    rows: int
    step_s: float
    limited_by: Limit
    tokens_per_s: float
    prefill_hours: float
    decode_hours: float
    gpu_hours: float
    gpus: int
    days: float
    money: float

    @property
    def replicas(self) -> int:
        """Replicas that are used."""
        return self.gpus // (self.tensor_parallel * self.pipeline_parallel)


def price(
    plan: Plan,
    figures: Estimate,
    name: str,
    device: Device,
    *,
    tensor_parallel: int,
    gpus: int | None = None,
    user: ModelFacts | None = None,
) -> Price:
    """Price a plan on a device by the formulas above.

    Args:
        plan: The plan.
        figures: Its estimate for one engine, which is the engine that is priced.
        name: Name of the device in the table.
        device: The device.
        tensor_parallel: Devices among which each decoder layer of a replica is split.
        gpus: Number of devices; None: those of ``placement.replicas`` replicas, or of one.
        user: The model that plays the user where the workers run one of its own; None: its time is not counted.

    Raises:
        InputError: There are fewer devices than one replica needs, or more than ``MAX_DEVICES``.

    Example:
        >>> from persona_atlas import estimate, plan
        >>> from persona_atlas.jobs.sizing.devices import load_devices
        >>> planned = plan("job.yaml")
        >>> price(planned, estimate(planned), "H100", load_devices().devices["H100"], tensor_parallel=1).limited_by
        'launching'
    """
    size = tensor_parallel * figures.pipeline_parallel
    asked = size * (plan.spec.placement.replicas or 1) if gpus is None else gpus
    _check_gpus(asked, size, name, "placement.replicas" if gpus is None else "--gpus")
    rows = min(_rows(plan, figures, device, tensor_parallel), plan.num_rollouts)
    flops = size * _flops(plan, device) * _efficiency(figures, device)
    step_s, limit = _step(plan, figures, device, rows, size, flops)
    generates = generates_here(plan)
    # Where the model under study plays the user too, it reads and writes the user's part as well.
    is_user = plan.spec.drift is not None and plan.spec.drift.user.is_same
    written = figures.response_tokens + (figures.user_response_tokens if is_user else 0)
    decode_hours = step_s * written / rows / 3600 if generates else 0.0
    tokens_read = figures.prompt_tokens + figures.canary_tokens + (0 if generates else figures.response_tokens)
    tokens_read -= figures.turns.tokens
    tokens_read += figures.user_prompt_tokens - figures.turns.user_tokens if is_user else 0
    prefill_hours = 2 * plan.facts.num_parameters * tokens_read / flops / 3600
    if user is not None:
        read_hours, written_hours = _user_hours(plan, figures, device, user, rows)
        prefill_hours, decode_hours = prefill_hours + read_hours, decode_hours + written_hours
    gpu_hours = (prefill_hours + decode_hours) * size
    replicas = min(asked // size, len(plan.units))
    return Price(
        device=name,
        engine=figures.engine,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=figures.pipeline_parallel,
        rows=rows,
        step_s=step_s,
        limited_by=limit,
        tokens_per_s=rows / step_s,
        prefill_hours=prefill_hours,
        decode_hours=decode_hours,
        gpu_hours=gpu_hours,
        gpus=replicas * size,
        days=gpu_hours / (replicas * size) / 24,
        money=gpu_hours * device.price_per_hour,
    )


def _user_hours(plan: Plan, figures: Estimate, device: Device, user: ModelFacts, rows: int) -> tuple[float, float]:
    """Compute the hours in which a model of the user's own reads and writes, on one device, for so many at a time."""
    assert plan.spec.drift is not None
    num_bytes = BYTES_PER_PARAMETER[resolved_dtype("auto", user.dtype)]
    flops = 1e12 * (device.float32_tflops if num_bytes == 4 else device.tflops) * device.efficiency
    context = figures.user_prompt_tokens / plan.num_rollouts + plan.spec.drift.user.max_new_tokens / 2
    moved = num_bytes * (user.num_parameters + rows * context * user.kv_values_per_token)
    step_s = max(
        moved / (device.bandwidth_gb_s * 1e9 * device.efficiency),
        2 * user.num_parameters * rows / flops,
        user.n_layers * device.layer_us * 1e-6,
    )
    read_s = 2 * user.num_parameters * (figures.user_prompt_tokens - figures.turns.user_tokens) / flops
    return read_s / 3600, step_s * figures.user_response_tokens / rows / 3600


def _check_gpus(asked: int, size: int, name: str, field: str) -> None:
    if asked < size:
        raise InputError(
            f"must be at least the {size} {name} of one replica, but is {asked}.",
            code="too_few_gpus",
            field="--gpus",
            hint=f"Give at least {size}.",
        )
    if asked > MAX_DEVICES:
        raise InputError(
            f"asks for {asked:,} {name}; a plan is priced on at most {MAX_DEVICES:,} devices.",
            code="too_many_gpus",
            field=field,
            hint=f"Give at most {MAX_DEVICES:,}.",
        )


def _flops(plan: Plan, device: Device) -> float:
    """FLOP/s of one device at the plan's parameter type."""
    return 1e12 * (device.float32_tflops if parameter_bytes(plan) == 4 else device.tflops)


def _efficiency(figures: Estimate, device: Device) -> float:
    return device.vllm_efficiency if figures.engine == "vllm" else device.efficiency


def _rows(plan: Plan, figures: Estimate, device: Device, tensor_parallel: int) -> int:
    """Return the rollouts that a replica runs at a time: vLLM fills the memory of its devices with keys and values."""
    if figures.engine == "builtin":
        return figures.rows_per_batch
    weights = figures.weight_bytes / tensor_parallel / figures.pipeline_parallel
    room = device.memory_bytes / HEADROOM - weights - captured_bytes(figures, tensor_parallel)
    row_bytes = figures.row_tokens * plan.facts.kv_values_per_token * parameter_bytes(plan)
    per_row = row_bytes / cache_parts(figures, tensor_parallel)
    return max(1, min(int(room / per_row) if per_row else figures.rows_per_batch, figures.rows_per_batch))


def _step(plan: Plan, figures: Estimate, device: Device, rows: int, size: int, flops: float) -> tuple[float, Limit]:
    """Compute the seconds of one decoding step and its limit; on average half of each response is generated."""
    context = figures.prompt_tokens / plan.num_rollouts + plan.spec.sampling.max_new_tokens / 2
    moved = figures.weight_bytes + rows * context * plan.facts.kv_values_per_token * parameter_bytes(plan)
    launching_s = plan.facts.n_layers * device.layer_us * 1e-6
    if figures.engine == "vllm":
        launching_s = plan.facts.n_layers * device.vllm_layer_us * 1e-6 + _VLLM_SCHEDULING_S
        # The states of each layer are read, and its sums read and written, by one device of those that share it.
        moved += rows * len(plan.layers) * plan.facts.d_model * (parameter_bytes(plan) + 8)
    bandwidth = size * device.bandwidth_gb_s * 1e9 * _efficiency(figures, device)
    limits: dict[Limit, float] = {
        "bandwidth": moved / bandwidth,
        "arithmetic": 2 * plan.facts.num_parameters * rows / flops,
        "launching": launching_s,
    }
    highest = max(limits, key=lambda limit: limits[limit])
    return limits[highest], highest
