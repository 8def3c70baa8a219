"""The table of devices: memory, speed and price of each. Users may replace it by a file of their own.

Knows nothing of the devices of this machine.
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..errors import InputError, closest
from ..files.text_files import read_text
from ..files.user_paths import local_path
from ..files.yaml_file import NO_BOOLEAN, parse_yaml, validate

BUILTIN_DEVICES = Path(__file__).with_name("devices.yaml")

_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), NO_BOOLEAN]


class Device(BaseModel):
    """An entry of the table.

    Attributes:
        kind: ``gpu``, or ``cpu`` for a whole machine without GPUs.
        memory_gb: Memory in GB (10^9 bytes).
        tflops: Peak TFLOP/s at 16 bits, dense.
        float32_tflops: Peak TFLOP/s at float32.
        bandwidth_gb_s: Memory bandwidth in GB/s.
        per_node: Devices of one machine; a stage of a replica cannot be split over more.
        price_per_hour: Price of one device, in the table's currency.
        efficiency: Share of peak arithmetic and bandwidth that is reached, 0 to 1.
        layer_us: Least time of a decoding step per layer, in microseconds: the cost of launching kernels.
        vllm_efficiency: Share of peak arithmetic and bandwidth that vLLM reaches, 0 to 1.
        vllm_layer_us: Least time of a decoding step of vLLM per layer, in microseconds: kernels in CUDA graphs, and
            what the devices of a replica exchange.
        node_label: Value of the Kubernetes label ``nvidia.com/gpu.product``; None if unknown.
        vm_type: AWS machine type with these devices; None if there is none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["gpu", "cpu"] = "gpu"
    memory_gb: _Positive
    tflops: _Positive
    float32_tflops: _Positive
    bandwidth_gb_s: _Positive
    per_node: Annotated[int, Field(ge=1), NO_BOOLEAN]
    price_per_hour: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN]
    efficiency: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN]
    layer_us: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN]
    vllm_efficiency: Annotated[float, Field(gt=0, le=1), NO_BOOLEAN] = 0.6
    vllm_layer_us: Annotated[float, Field(ge=0, allow_inf_nan=False), NO_BOOLEAN] = 60
    node_label: str | None = None
    vm_type: str | None = None

    @property
    def memory_bytes(self) -> float:
        """Memory in bytes."""
        return self.memory_gb * 1e9


class DeviceTable(BaseModel):
    """A table of devices.

    Attributes:
        prices_as_of: Date of the prices.
        currency: Currency of the prices, such as ``USD``.
        devices: Devices by name, in the sequence in which they are listed to users.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prices_as_of: date
    currency: str
    devices: Annotated[dict[str, Device], Field(min_length=1)]

    def only(self, name: str, option: str = "--device") -> DeviceTable:
        """Select one device.

        Args:
            name: Name of the device.
            option: Option that holds the name, for the error.

        Returns:
            A table with that device alone.

        Raises:
            InputError: The table has no such device.
        """
        if name not in self.devices:
            raise InputError(
                f"the table has no device {name!r}.",
                code="no_such_device",
                field=option,
                hint=closest(name, self.devices)
                or f"It has {', '.join(self.devices)}. Use --devices FILE for a table of your own.",
            )
        return self.model_copy(update={"devices": {name: self.devices[name]}})

    def of_kind(self, placement_device: str) -> DeviceTable:
        """Select the devices that ``placement.device`` allows.

        Args:
            placement_device: ``cuda`` for GPUs, ``cpu`` for machines without, ``auto`` for both.

        Returns:
            A table with these devices.

        Raises:
            InputError: The table has no such device.
        """
        kinds = {"cuda": ("gpu",), "cpu": ("cpu",)}.get(placement_device, ("gpu", "cpu"))
        found = {name: device for name, device in self.devices.items() if device.kind in kinds}
        if not found:
            raise InputError(
                f"the table has no device for {placement_device!r}.",
                code="no_such_device",
                field="placement.device",
                hint="Use --devices FILE for a table that has one.",
            )
        return self.model_copy(update={"devices": found})


def load_devices(path: str | Path | None = None) -> DeviceTable:
    """Read a table of devices.

    Args:
        path: A file in the layout of the built-in table; None: the built-in table.

    Raises:
        InputError: The file is missing or invalid; names the line and the field.

    Example:
        >>> load_devices().devices["H100"].memory_gb
        80.0
    """
    file = BUILTIN_DEVICES if path is None else local_path(path, "--devices")
    text = read_text(file, "a table of devices")
    return validate(DeviceTable, parse_yaml(text, str(file)), text=text, file=str(file))
