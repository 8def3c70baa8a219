"""Whether the weights of a job's model can be loaded layer by layer, and what that takes on a device. Pure.

How many tokens are read each time the weights are follows from three figures: the bytes of a layer are those of the
model, the arithmetic is that of the table of devices, and the bandwidth is assumed, because it depends on where the
weights come from. A worker measures the last two.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..engines import Engine, possible_engines
from ..errors import InputError
from ..plan import Plan
from .devices import Device, DeviceTable
from .estimate import Estimate, Weights, estimate, generates_here, layer_bytes, parameter_bytes
from .fit import fits
from .walks import walk_tokens

HOST_GB_S = 10.0
"""Assumed GB/s from the page cache of a machine to a device: copies to pinned memory by several threads, then PCIe.
From a disk it is less, and the first walk reads from there."""

_FIELD = "placement.weights"
_CODE = "not_streamed"


@dataclass(frozen=True, slots=True)
class StreamedWalk:
    """What it takes to load weights layer by layer on one device.

    Attributes:
        layer_bytes: Bytes of the largest layer.
        load_s: Seconds in which it is loaded, at ``HOST_GB_S``.
        token_s: Seconds in which it is computed for one token, at the speed of the table of devices.
        tokens: Tokens that should be read at a time.
        is_asked: Whether the spec gives that number.
    """

    layer_bytes: int
    load_s: float
    token_s: float
    tokens: int
    is_asked: bool

    @property
    def share_of_resident(self) -> float:
        """Speed in relation to weights that are held, if copies and kernels overlap perfectly: at most 1."""
        return min(1.0, self.tokens * self.token_s / self.load_s)


def streamed_walk(plan: Plan, device: Device) -> StreamedWalk:
    """Compute how many tokens should be read at a time on a device.

    Args:
        plan: The plan.
        device: An entry of the table.
    """
    size = layer_bytes(plan)
    tflops = device.float32_tflops if parameter_bytes(plan) == 4 else device.tflops
    token_s = 2 * size / parameter_bytes(plan) / (tflops * 1e12 * device.efficiency)
    load_s = size / (min(HOST_GB_S, device.bandwidth_gb_s) * 1e9)
    asked = plan.spec.placement.batch_tokens
    computed = walk_tokens(load_s, token_s, "cpu" if device.kind == "cpu" else "cuda")
    return StreamedWalk(size, load_s, token_s, asked or computed, asked is not None)


def why_not_streamed(plan: Plan) -> InputError | None:
    """Say why a job's weights cannot be loaded layer by layer; None if they can, as far as is known without them.

    Args:
        plan: The plan.
    """
    spec, facts = plan.spec, plan.facts
    if generates_here(plan):
        return _refused(
            "its workers generate, and every token would take loading all weights",
            "Let a server generate and this model read (generation.endpoint), read texts that exist (conversations)",
        )
    if spec.placement.engine == "vllm":
        return _refused("placement.engine is vllm, which holds its weights", "Set placement.engine to builtin")
    if facts.has_adapter:
        return _refused("the model has an adapter, which is merged into all weights", "Merge it and save the model")
    if facts.quantization:
        return _refused(
            f"the weights are quantised with {facts.quantization}, and restored all at once",
            "Name a checkpoint with plain weights",
        )
    if spec.placement.gpus_per_replica > 1:
        return _refused(
            "a replica has several devices, over which vLLM divides its weights",
            "Set placement.tensor_parallel and placement.pipeline_parallel to 1",
        )
    return None


def can_stream(plan: Plan) -> bool:
    """Whether a replica may load its weights layer by layer, because it must or because they do not fit otherwise.

    Args:
        plan: The plan.
    """
    return plan.spec.placement.weights != "resident" and why_not_streamed(plan) is None


def require_streamed(plan: Plan) -> None:
    """Refuse a job that asks for streamed weights and cannot have them.

    Args:
        plan: The plan.

    Raises:
        InputError: Names the field, the reason and what would help.
    """
    problem = why_not_streamed(plan) if plan.spec.placement.weights == "streamed" else None
    if problem is not None:
        raise problem


def estimates_of(plan: Plan, table: DeviceTable) -> dict[Engine, Estimate]:
    """Estimate a plan for each engine that a run of it may use, the built-in one first.

    Args:
        plan: The plan.
        table: The devices. Where no engine's replica fits any of them with all weights, and the job can do without,
            weights are streamed.

    Raises:
        InputError: No engine can run it, or its weights cannot be streamed as it asks.
    """
    require_streamed(plan)
    if plan.spec.placement.weights == "streamed":
        return {"builtin": estimate(plan, "builtin", "streamed")}
    held: dict[Engine, Estimate] = {
        engine: estimate(plan, engine) for engine in possible_engines(plan.spec, plan.facts)
    }
    fit = any(
        fits(figures, device, figures.tensor_parallel) for figures in held.values() for device in table.devices.values()
    )
    if fit or not can_stream(plan):
        return held
    return {"builtin": estimate(plan, "builtin", "streamed")}


def planned_weights(plan: Plan) -> Weights:
    """Return how a job's replicas hold their weights, as far as that does not depend on the memory of a machine.

    Args:
        plan: The plan.
    """
    return "streamed" if plan.spec.placement.weights == "streamed" else "resident"


def least_estimate(plan: Plan) -> Estimate:
    """Estimate a plan for the engine that needs the least memory, with streamed weights if the job may have them.

    Args:
        plan: The plan.

    Raises:
        InputError: No engine can run it.
    """
    held = estimate(plan, possible_engines(plan.spec, plan.facts)[0], planned_weights(plan))
    if not can_stream(plan):
        return held
    return min(held, estimate(plan, "builtin", "streamed"), key=lambda figures: figures.machine_bytes)


def _refused(why: str, fix: str) -> InputError:
    return InputError(
        f"is streamed, but {why}.",
        code=_CODE,
        field=_FIELD,
        hint=f"{fix}, or set placement.weights to resident, which needs the memory for all of them.",
    )
