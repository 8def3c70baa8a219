"""Check whether a replica of a plan fits a device of the table, and find changes that would make it fit.

This check is for planning. ``workers/models/memory.py`` checks the actual device before it loads a model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..engines import VLLM_HOOK_POINT, vllm_architecture
from ..errors import InputError
from ..plan import Plan
from ..vllm.parallelism import tensor_parallel_sizes
from ..vllm.replica_nodes import nodes_of_replica
from ..wording import count_of
from .devices import Device, DeviceTable
from .estimate import (
    HEADROOM,
    Estimate,
    batch_tokens,
    cache_parts,
    captured_bytes,
    device_bytes,
    estimate,
    parameter_bytes,
)

_NOTHING_FITS = (
    "Not even one rollout fits on a whole machine: use a smaller model, devices with more memory (--device, --devices "
    "FILE), or more placement.pipeline_parallel, whose stages may be on several machines. Texts that exist, or that a "
    "server generates, can be read with weights that are loaded layer by layer: placement.weights=streamed."
)


@dataclass(frozen=True, slots=True)
class SpecChange:
    """A change of the spec that makes a replica fit a device. Fields that are None stay as they are.

    Attributes:
        device: Name of the device in the table.
        tensor_parallel: Fewest devices per stage of a replica that the model can be split over. A stage is within one
            machine; its stages may be on several.
        batch_tokens: Tokens of the largest batch.
        layers: Largest number of captured layers.
        dtype: A narrower type of the parameters.
    """

    device: str
    tensor_parallel: int | None = None
    batch_tokens: int | None = None
    layers: int | None = None
    dtype: str | None = None

    def __str__(self) -> str:
        changes = {
            "placement.tensor_parallel": self.tensor_parallel,
            "placement.batch_tokens": self.batch_tokens,
            "model.dtype": self.dtype,
        }
        parts = [f"{field}={value}" for field, value in changes.items() if value is not None]
        if self.layers is not None:
            parts.append(f"at most {self.layers} of capture.layers")
        return f"{' with '.join(parts)} on {self.device}"


def fits(figures: Estimate, device: Device, tensor_parallel: int) -> bool:
    """Check whether a replica fits the memory of its devices, and the devices of each stage fit in one machine.

    Args:
        figures: Estimate of the plan.
        device: The device.
        tensor_parallel: Devices per stage.
    """
    in_memory = device_bytes(figures, tensor_parallel) <= device.memory_bytes
    return in_memory and nodes_of_replica(tensor_parallel, figures.pipeline_parallel, device.per_node) is not None


def smallest_tensor_parallel(plan: Plan, figures: Estimate, device: Device) -> int | None:
    """Find the smallest tensor parallel size that an engine of the plan allows and that holds a replica.

    Args:
        plan: The plan.
        figures: Its estimate.
        device: The device.

    Returns:
        The size; None if whole machines, one for each stage, do not hold a replica.
    """
    sizes = _sizes(plan, device)
    return next((size for size in sizes if fits(_figures_over(plan, figures, size), device, size)), None)


def _sizes(plan: Plan, device: Device) -> list[int]:
    """Return the tensor parallel sizes within one machine that an engine of the plan allows, ascending."""
    architecture, asked = vllm_architecture(plan.facts), plan.spec.placement.engine
    if asked == "builtin" or architecture is None or set(plan.spec.capture.hook_points) != {VLLM_HOOK_POINT}:
        return [1]
    return tensor_parallel_sizes(plan.facts, device.per_node, shares_kv_heads=architecture.shares_kv_heads)


def _figures_over(plan: Plan, figures: Estimate, size: int) -> Estimate:
    """Return the estimate of the engine that splits layers over ``size`` devices: more than one takes vLLM."""
    return estimate(plan, "vllm") if size > 1 and figures.engine == "builtin" else figures


def largest_batch(plan: Plan, figures: Estimate, device: Device, tensor_parallel: int) -> int | None:
    """Find the largest batch that fits.

    Args:
        plan: The plan.
        figures: Its estimate.
        device: The device.
        tensor_parallel: Devices per replica.

    Returns:
        Tokens of the batch, a whole number of rollouts; None if not even one rollout fits.
    """
    room = device.memory_bytes / HEADROOM - figures.weight_bytes / tensor_parallel / figures.pipeline_parallel
    cache_per_token = figures.cache_bytes / batch_tokens(plan.spec.placement) / cache_parts(figures, tensor_parallel)
    per_row = figures.row_tokens * cache_per_token
    if figures.engine == "vllm":
        # Its slots are as many, whatever the batch.
        room -= captured_bytes(figures, tensor_parallel)
    else:
        per_row += figures.capture_bytes / figures.rows_per_batch
    rows = int(room // per_row) if per_row else 0
    has_machines = nodes_of_replica(tensor_parallel, figures.pipeline_parallel, device.per_node) is not None
    return rows * figures.row_tokens if rows > 0 and has_machines else None


def changes_that_fit(plan: Plan, figures: Estimate, name: str, device: Device) -> list[SpecChange]:
    """Find changes of one field that make a replica fit a device; if none suffices, the largest batch on a machine.

    Args:
        plan: The plan.
        figures: Its estimate, which does not fit the device.
        name: Name of the device in the table.
        device: The device.

    Returns:
        The changes, the one with the least effect first; empty if a whole machine cannot hold one rollout.
    """
    size = figures.tensor_parallel
    changes: list[SpecChange] = []
    smallest = smallest_tensor_parallel(plan, figures, device)
    if smallest is not None:
        changes.append(SpecChange(name, tensor_parallel=smallest))
    if nodes_of_replica(size, figures.pipeline_parallel, device.per_node) is not None:
        batch = largest_batch(plan, figures, device, size)
        if batch is not None:
            changes.append(SpecChange(name, batch_tokens=batch))
        captured = captured_bytes(figures, size)
        room = device.memory_bytes / HEADROOM - (device_bytes(figures, size) / HEADROOM - captured)
        layers = int(room // (captured / len(plan.layers))) if captured else 0
        if layers > 0:
            changes.append(SpecChange(name, layers=layers))
        halved = replace(
            figures,
            weight_bytes=figures.weight_bytes // 2,
            cache_bytes=figures.cache_bytes // 2,
            step_bytes=figures.step_bytes // 2,
        )
        if parameter_bytes(plan) == 4 and fits(halved, device, size):
            changes.append(SpecChange(name, dtype="bfloat16"))
    if not changes:
        most = _sizes(plan, device)[-1]
        batch = largest_batch(plan, _figures_over(plan, figures, most), device, most)
        if batch is not None:
            changes.append(SpecChange(name, tensor_parallel=most, batch_tokens=batch))
    return changes


def require_fit(plan: Plan, figures: Estimate, table: DeviceTable) -> None:
    """Refuse a plan whose replicas fit no device of a table.

    Args:
        plan: The plan.
        figures: Its estimate.
        table: The devices to choose from.

    Raises:
        InputError: A replica fits none; names the memory it needs, that of each device, and changes that would fit.
    """
    size = figures.tensor_parallel
    if any(fits(figures, device, size) for device in table.devices.values()):
        return
    devices = ", ".join(f"{name} {device.memory_gb:g} GB x {device.per_node}" for name, device in table.devices.items())
    changes = [
        change for name, device in table.devices.items() for change in changes_that_fit(plan, figures, name, device)
    ]
    raise InputError(
        f"one replica of {plan.spec.model.source!r} over {count_of(figures.gpus_per_replica, 'device')} needs "
        f"{figures.device_bytes / 1e9:.1f} GB on each, which no machine of the table has ({devices}).",
        code="does_not_fit",
        field="placement.tensor_parallel",
        hint=f"What would fit: {'; '.join(map(str, changes))}." if changes else _NOTHING_FITS,
    )
