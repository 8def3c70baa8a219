"""Time and money of a plan on a device, from a roofline model with three limits. Nothing is measured.

A decoding step of a batch generates one token for each of its slots. It takes as long as the slowest of

- bandwidth: (weights + keys and values of the slots) / (devices x bandwidth x efficiency)
- arithmetic: 2 x parameters x slots / (devices x FLOP/s x efficiency)
- launching kernels: layers x layer_us, however small the model is

and (tokens out / slots) steps are needed. Prefill takes 2 x parameters x tokens read / (devices x FLOP/s x efficiency),
for the prompts and for the canaries, the rollouts that are recomputed as a check. Not modelled are the
arithmetic of attention (1 % at a thousand tokens of a 70B model), communication between the devices of a replica (part
of the efficiency), loading the model, and waiting for machines. Every response counts at full length; many end earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from ..plan import Plan
from .devices import Device
from .estimate import Estimate, parameter_bytes

MAX_DEVICES = 100_000
"""Most devices that a plan is priced on: no cluster has more, and a larger number is a slip of the hand."""

Limit = Literal["bandwidth", "arithmetic", "launching"]


@dataclass(frozen=True, slots=True)
class Price:
    """Time and money of a plan on one type of device.

    Attributes:
        device: Name of the device in the table.
        tensor_parallel: Devices of one replica.
        step_s: Seconds of one decoding step of a full batch.
        limited_by: The limit that decides ``step_s``.
        tokens_per_s: Tokens that one replica generates per second.
        prefill_hours: Hours that a single replica would need for all prompts and canaries.
        decode_hours: Hours that a single replica would need for all responses.
        gpu_hours: Device-hours; they do not depend on the number of devices.
        gpus: Devices that are used: whole replicas, and no more replicas than units.
        days: Days on these devices.
        money: Price of the device-hours, in the table's currency.
    """

    device: str
    tensor_parallel: int
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
        return self.gpus // self.tensor_parallel


def price(
    plan: Plan, figures: Estimate, name: str, device: Device, *, tensor_parallel: int, gpus: int | None = None
) -> Price:
    """Price a plan on a device by the formulas above.

    Args:
        plan: The plan.
        figures: Its estimate.
        name: Name of the device in the table.
        device: The device.
        tensor_parallel: Devices of one replica.
        gpus: Number of devices; None: those of ``placement.replicas`` replicas, or of one.

    Raises:
        InputError: There are fewer devices than one replica needs, or more than ``MAX_DEVICES``.

    Example:
        >>> from persona_atlas import estimate, plan
        >>> from persona_atlas.jobs.sizing.devices import load_devices
        >>> planned = plan("job.yaml")
        >>> price(planned, estimate(planned), "H100", load_devices().devices["H100"], tensor_parallel=1).limited_by
        'launching'
    """
    asked = tensor_parallel * (plan.spec.placement.replicas or 1) if gpus is None else gpus
    if asked < tensor_parallel:
        raise InputError(
            f"must be at least the {tensor_parallel} {name} of one replica, but is {asked}.",
            code="too_few_gpus",
            field="--gpus",
            hint=f"Give at least {tensor_parallel}.",
        )
    if asked > MAX_DEVICES:
        raise InputError(
            f"asks for {asked:,} {name}; a plan is priced on at most {MAX_DEVICES:,} devices.",
            code="too_many_gpus",
            field="placement.replicas" if gpus is None else "--gpus",
            hint=f"Give at most {MAX_DEVICES:,}.",
        )
    rows = min(figures.rows_per_batch, plan.num_rollouts)
    flops = tensor_parallel * _flops(plan, device) * device.efficiency
    step_s, limit = _step(plan, figures, device, rows, tensor_parallel, flops)
    decode_hours = step_s * figures.response_tokens / rows / 3600
    tokens_read = figures.prompt_tokens + figures.canary_tokens
    prefill_hours = 2 * plan.facts.num_parameters * tokens_read / flops / 3600
    gpu_hours = (prefill_hours + decode_hours) * tensor_parallel
    replicas = min(asked // tensor_parallel, len(plan.units))
    return Price(
        device=name,
        tensor_parallel=tensor_parallel,
        step_s=step_s,
        limited_by=limit,
        tokens_per_s=rows / step_s,
        prefill_hours=prefill_hours,
        decode_hours=decode_hours,
        gpu_hours=gpu_hours,
        gpus=replicas * tensor_parallel,
        days=gpu_hours / (replicas * tensor_parallel) / 24,
        money=gpu_hours * device.price_per_hour,
    )


def _flops(plan: Plan, device: Device) -> float:
    """FLOP/s of one device at the plan's parameter type."""
    return 1e12 * (device.float32_tflops if parameter_bytes(plan) == 4 else device.tflops)


def _step(
    plan: Plan, figures: Estimate, device: Device, rows: int, tensor_parallel: int, flops: float
) -> tuple[float, Limit]:
    """Compute the seconds of one decoding step and its limit; on average half of each response is generated."""
    context = figures.prompt_tokens / plan.num_rollouts + plan.spec.sampling.max_new_tokens / 2
    moved = figures.weight_bytes + rows * context * plan.facts.kv_values_per_token * parameter_bytes(plan)
    bandwidth = tensor_parallel * device.bandwidth_gb_s * 1e9 * device.efficiency
    limits: dict[Limit, float] = {
        "bandwidth": moved / bandwidth,
        "arithmetic": 2 * plan.facts.num_parameters * rows / flops,
        "launching": plan.facts.n_layers * device.layer_us * 1e-6,
    }
    highest = max(limits, key=lambda limit: limits[limit])
    return limits[highest], highest
