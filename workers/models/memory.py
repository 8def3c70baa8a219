"""Check that a model fits the free memory of this machine or GPU, before it is loaded."""

from __future__ import annotations

from ...jobs.errors import InputError
from .limits import free_memory_bytes


def free_bytes(device: str) -> int:
    """Return the free bytes of memory: of the first visible GPU for ``cuda``, else of this machine or its container."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return free_memory_bytes()


def require_memory(needed_bytes: int, copies: int, device: str) -> None:
    """Check that copies of a model fit the free memory.

    Args:
        needed_bytes: Bytes that one replica needs: weights, KV cache, captured sums.
        copies: Number of replicas that share this memory.
        device: ``cpu`` or ``cuda``.

    Raises:
        InputError: They do not fit; names both sizes and what would help.
    """
    free = free_bytes(device)
    if copies * needed_bytes <= free:
        return
    fixes = ["a narrower model.dtype", "a smaller placement.batch_tokens"]
    if copies > 1:
        fixes.insert(0, "fewer placement.replicas")
    raise InputError(
        f"{copies} replica(s) need {copies * needed_bytes / 1e9:.1f} GB of {device} memory; "
        f"{free / 1e9:.1f} GB is free.",
        code="not_enough_memory",
        field="placement.replicas" if copies > 1 else "model.source",
        hint=f"Try {', '.join(fixes)}, or a smaller model.",
    )
