"""The table of devices: what one can do and what an hour of it costs. A small file that a user may replace.

Knows nothing of what this machine has.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import InputError, closest
from ..yaml_file import parse_yaml, read_text, validate

BUILTIN_DEVICES = Path(__file__).with_name("devices.yaml")

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Device(BaseModel):
    """One line of the table.

    Attributes:
        kind: ``cpu``: the device is a whole machine without GPUs.
        memory_gb: GB (10^9 bytes).
        tflops: TFLOP/s at 16 bits, dense.
        float32_tflops: TFLOP/s at float32.
        bandwidth_gb_s: GB/s to its own memory.
        per_node: Devices of one machine, the most that a replica can be cut over.
        price_per_hour: Of one device, in the table's currency.
        efficiency: Share of arithmetic and bandwidth that is reached, 0 to 1.
        layer_us: Microseconds that a decoding step takes per layer at least.
        node_label: Value of the Kubernetes label ``nvidia.com/gpu.product``.
        vm_type: A machine of a cloud's catalog that has these devices.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["gpu", "cpu"] = "gpu"
    memory_gb: _Positive
    tflops: _Positive
    float32_tflops: _Positive
    bandwidth_gb_s: _Positive
    per_node: Annotated[int, Field(ge=1)]
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    efficiency: Annotated[float, Field(gt=0, le=1)]
    layer_us: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    node_label: str | None = None
    vm_type: str | None = None

    @property
    def memory_bytes(self) -> float:
        """Memory in bytes."""
        return self.memory_gb * 1e9


class DeviceTable(BaseModel):
    """The whole table.

    Attributes:
        prices_as_of: When the prices were written down.
        currency: Of the prices.
        devices: By name, in the order to be shown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prices_as_of: date
    currency: str
    devices: Annotated[dict[str, Device], Field(min_length=1)]

    def only(self, name: str, option: str = "--device") -> DeviceTable:
        """Give a table of one device.

        Args:
            name: Of the device.
            option: What named it, for the error.

        Raises:
            InputError: It is not in the table.
        """
        if name not in self.devices:
            raise InputError(
                f"the table has no device {name!r}.",
                code="no_such_device",
                field=option,
                hint=closest(name, self.devices) or f"It has {', '.join(self.devices)}; add yours with --devices FILE.",
            )
        return self.model_copy(update={"devices": {name: self.devices[name]}})

    def of_kind(self, placement_device: str) -> DeviceTable:
        """Give the devices that ``placement.device`` admits: ``cuda`` the GPUs, ``cpu`` the rest, ``auto`` all.

        Raises:
            InputError: None is left.
        """
        wanted = {"cuda": ("gpu",), "cpu": ("cpu",)}.get(placement_device, ("gpu", "cpu"))
        found = {name: device for name, device in self.devices.items() if device.kind in wanted}
        if not found:
            raise InputError(
                f"the table has no device for {placement_device!r}.",
                code="no_such_device",
                field="placement.device",
                hint="Add one with --devices FILE, or name another with --device.",
            )
        return self.model_copy(update={"devices": found})


def load_devices(path: str | Path | None = None) -> DeviceTable:
    """Read a table of devices.

    Args:
        path: A file in the built-in one's layout; None reads the built-in one.

    Raises:
        InputError: The file is missing or wrong; names the line and the field.

    Example:
        >>> load_devices().devices["H100"].memory_gb
        80.0
    """
    file = BUILTIN_DEVICES if path is None else Path(path)
    text = read_text(file, "a table of devices")
    return validate(DeviceTable, parse_yaml(text, str(file)), text=text, file=str(file))
