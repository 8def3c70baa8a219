"""Does one replica of a plan fit the devices it would run on, and what would make it fit? Reads a table of devices.

``workers/models/memory.py`` reads the real device before a model is loaded; this runs before any is rented.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..errors import InputError
from ..plan import Plan
from .devices import Device, DeviceTable
from .estimate import HEADROOM, Estimate, batch_tokens, device_bytes, parameter_bytes

_NOTHING_FITS = (
    "Not one rollout fits, however it is cut over one machine: take a smaller model, or devices with more memory "
    "(--device, --devices FILE). Streaming the model layer by layer may fit, and is not there yet for a run."
)


@dataclass(frozen=True, slots=True)
class Way:
    """One change that makes a replica fit one kind of device; what is None stays as it is.

    Attributes:
        device: Its name in the table.
        tensor_parallel: The fewest devices per replica, a power of two within one machine.
        batch_tokens: The largest batch.
        layers: The most captured layers.
        dtype: A narrower parameter type.
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
    """Say whether a replica over so many devices of a kind fits their memory and one machine."""
    in_memory = device_bytes(figures, tensor_parallel) <= device.memory_bytes
    return in_memory and tensor_parallel <= device.per_node


def smallest_tensor_parallel(figures: Estimate, device: Device) -> int | None:
    """Give the fewest devices of one machine, a power of two, that hold a replica; None when a whole one does not."""
    sizes = (2**power for power in range(device.per_node.bit_length()))
    return next((size for size in sizes if fits(figures, device, size)), None)


def largest_batch(plan: Plan, figures: Estimate, device: Device, tensor_parallel: int) -> int | None:
    """Give the tokens of the largest batch that fits so many devices of a kind; None when not one rollout does."""
    room = device.memory_bytes / HEADROOM - figures.weight_bytes / tensor_parallel
    cache_per_token = figures.cache_bytes / batch_tokens(plan.spec.placement) / tensor_parallel
    per_row = figures.row_tokens * cache_per_token + figures.capture_bytes / figures.rows_per_batch
    rows = int(room // per_row) if per_row else 0
    return rows * figures.row_tokens if rows > 0 and tensor_parallel <= device.per_node else None


def ways_to_fit(plan: Plan, figures: Estimate, name: str, device: Device) -> list[Way]:
    """Find the single changes that make a replica fit a device, or, where none is enough, the largest machine's batch.

    Args:
        plan: The plan.
        figures: Its estimate; it does not fit the device.
        name: The device's name in its table.
        device: Its memory and how many of it one machine has.

    Returns:
        The ways, the least trouble first; empty when even a whole machine cannot hold a single rollout.
    """
    size = figures.tensor_parallel
    ways: list[Way] = []
    smallest = smallest_tensor_parallel(figures, device)
    if smallest is not None:
        ways.append(Way(name, tensor_parallel=smallest))
    if size <= device.per_node:
        batch = largest_batch(plan, figures, device, size)
        if batch is not None:
            ways.append(Way(name, batch_tokens=batch))
        room = device.memory_bytes / HEADROOM - (figures.weight_bytes + figures.cache_bytes) / size
        layers = int(room // (figures.capture_bytes / len(plan.layers))) if figures.capture_bytes else 0
        if layers > 0:
            ways.append(Way(name, layers=layers))
        halved = replace(figures, weight_bytes=figures.weight_bytes // 2, cache_bytes=figures.cache_bytes // 2)
        if parameter_bytes(plan) == 4 and fits(halved, device, size):
            ways.append(Way(name, dtype="bfloat16"))
    if not ways:
        batch = largest_batch(plan, figures, device, device.per_node)
        if batch is not None:
            ways.append(Way(name, tensor_parallel=device.per_node, batch_tokens=batch))
    return ways


def require_fit(plan: Plan, figures: Estimate, table: DeviceTable) -> None:
    """Make sure that a replica fits at least one device of a table.

    Args:
        plan: The plan.
        figures: Its estimate.
        table: What there is to run it on.

    Raises:
        InputError: It fits none; names what it needs, what there is, and what would fit.
    """
    size = figures.tensor_parallel
    if any(fits(figures, device, size) for device in table.devices.values()):
        return
    had = ", ".join(f"{name} {device.memory_gb:g} GB x {device.per_node}" for name, device in table.devices.items())
    ways = [way for name, device in table.devices.items() for way in ways_to_fit(plan, figures, name, device)]
    raise InputError(
        f"one replica of {plan.spec.model.source!r} over {size} device(s) needs {figures.device_bytes / 1e9:.1f} GB on "
        f"each, and fits no node there is ({had}).",
        code="does_not_fit",
        field="placement.tensor_parallel",
        hint=f"What would fit: {'; '.join(map(str, ways))}." if ways else _NOTHING_FITS,
    )
