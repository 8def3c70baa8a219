"""Copy numbers of the host to the device of a model, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def to_device(numbers: Sequence[int], device: str) -> torch.Tensor:
    """Return int64 on a device; on a GPU, copied from pinned memory, so that the host does not wait for the copy."""
    made = torch.tensor(list(numbers), dtype=torch.long, pin_memory=device == "cuda" and len(numbers) > 0)
    return made.to(device, non_blocking=True)
