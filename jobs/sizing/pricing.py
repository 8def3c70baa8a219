"""Time and money of a plan on a device: a roofline with three roofs, stated below; nothing is measured here.

One decoding step of a batch gives each of its rows one token. It takes as long as the slowest of

- moving: (weights + keys and values of the rows) / (devices x bandwidth x efficiency)
- arithmetic: 2 x parameters x rows / (devices x FLOP/s x efficiency)
- launching: layers x layer_us, however small the model is

and there are (tokens out / rows) of them. Reading takes 2 x parameters x tokens read / (devices x FLOP/s x efficiency):
the prompts, and the one rollout of every unit that is recomputed to hold the rest against. Left out are attention's own
arithmetic (1 % at a thousand tokens of a 70B model), talk between the devices of a replica (the efficiency stands for
it), loading the model and waiting for machines. Every response counts at its full length, though many end earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import InputError
from ..plan import Plan
from .devices import Device
from .estimate import Estimate, parameter_bytes

Roof = Literal["bandwidth", "arithmetic", "launching"]


@dataclass(frozen=True, slots=True)
class Price:
    """A plan on one kind of device.

    Attributes:
        device: Its name in the table.
        tensor_parallel: Devices of one replica.
        step_s: One decoding step of a full batch, seconds.
        limited_by: The roof that a decoding step meets.
        tokens_per_s: Written by one replica.
        prefill_hours: One replica reading all prompts and recomputed rollouts, hours.
        decode_hours: One replica writing all responses, hours.
        gpu_hours: Of devices, whatever their number.
        gpus: Devices at work: whole replicas out of those that were asked for, and no more replicas than units.
        days: On these.
        money: For these, in the table's currency.
    """

    device: str
    tensor_parallel: int
    step_s: float
    limited_by: Roof
    tokens_per_s: float
    prefill_hours: float
    decode_hours: float
    gpu_hours: float
    gpus: int
    days: float
    money: float

    @property
    def replicas(self) -> int:
        """Replicas at work."""
        return self.gpus // self.tensor_parallel


def price(
    plan: Plan, figures: Estimate, name: str, device: Device, *, tensor_parallel: int, gpus: int | None = None
) -> Price:
    """Price a plan on a device by the formulas above.

    Args:
        plan: The plan.
        figures: Its estimate.
        name: Of the device in its table.
        device: What it can do.
        tensor_parallel: Devices of one replica.
        gpus: Devices in all; None takes ``placement.replicas`` replicas, or one.

    Raises:
        InputError: There are fewer devices than one replica takes.

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
            f"is {asked}, but one replica takes {tensor_parallel} of {name}.",
            code="too_few_gpus",
            field="--gpus",
            hint=f"Give at least {tensor_parallel}.",
        )
    rows = min(figures.rows_per_batch, plan.num_rollouts)
    flops = tensor_parallel * _flops(plan, device) * device.efficiency
    step_s, roof = _step(plan, figures, device, rows, tensor_parallel, flops)
    decode_hours = step_s * figures.response_tokens / rows / 3600
    tokens_read = figures.prompt_tokens + figures.canary_tokens
    prefill_hours = 2 * plan.facts.num_parameters * tokens_read / flops / 3600
    gpu_hours = (prefill_hours + decode_hours) * tensor_parallel
    replicas = min(asked // tensor_parallel, len(plan.units))
    return Price(
        device=name,
        tensor_parallel=tensor_parallel,
        step_s=step_s,
        limited_by=roof,
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
) -> tuple[float, Roof]:
    """Seconds of one decoding step, and the roof it meets; a row's context is half grown on average."""
    context = figures.prompt_tokens / plan.num_rollouts + plan.spec.sampling.max_new_tokens / 2
    moved = figures.weight_bytes + rows * context * plan.facts.kv_values_per_token * parameter_bytes(plan)
    bandwidth = tensor_parallel * device.bandwidth_gb_s * 1e9 * device.efficiency
    roofs: dict[Roof, float] = {
        "bandwidth": moved / bandwidth,
        "arithmetic": 2 * plan.facts.num_parameters * rows / flops,
        "launching": plan.facts.n_layers * device.layer_us * 1e-6,
    }
    highest = max(roofs, key=lambda roof: roofs[roof])
    return roofs[highest], highest
