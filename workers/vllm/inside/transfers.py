"""Copies between main memory and the device that do not wait for it. Does not import vLLM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch


def to_device(numbers: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
    """Start to copy an index to the device.

    Args:
        numbers: The index.
        device: Where the model is.
    """
    tensor = torch.from_numpy(numbers)
    if device.type == "cpu":
        return tensor
    # From pinned memory: otherwise the copy of a large index would wait until the device is idle.
    return tensor.pin_memory().to(device, non_blocking=True)


def start_to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Start to copy a tensor to main memory; it is there when what the device was given before has run.

    Args:
        tensor: On any device.
    """
    if tensor.device.type == "cpu":
        return tensor
    landing = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return landing.copy_(tensor, non_blocking=True)


def to_host(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Copy tensors to main memory; waits for the device once, whatever their number.

    Args:
        tensors: All on one device.
    """
    landings = [start_to_host(tensor) for tensor in tensors]
    if tensors and tensors[0].device.type != "cpu":
        torch.cuda.current_stream(tensors[0].device).synchronize()
    return landings
