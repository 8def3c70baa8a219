"""Check that a model fits the free memory of this machine or GPU, before it is loaded."""

from __future__ import annotations

from pathlib import Path

import psutil

from ...jobs.errors import InputError

_NO_LIMIT = 2**63
_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""Files with limit, usage and counters, of cgroup v2 and v1."""


def free_bytes(device: str) -> int:
    """Return the free bytes of memory: of the first visible GPU for ``cuda``, else of this machine or its container."""
    if device == "cuda":
        import torch

        return int(torch.cuda.mem_get_info()[0])
    return min(psutil.virtual_memory().available, _container_bytes())


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


def _container_bytes() -> int:
    """Return the bytes left under a container's memory limit, page cache counted as free; ``2**63`` without a limit."""
    for limit, used, cached in _CGROUP_FILES:
        try:
            allowed = (_CGROUP / limit).read_text().strip()
            taken = int((_CGROUP / used).read_text())
            counters = dict(line.split() for line in (_CGROUP / cached).read_text().splitlines())
        except (OSError, ValueError):
            continue
        cache = int(counters.get("total_inactive_file") or counters.get("inactive_file") or 0)
        return _NO_LIMIT if allowed == "max" else int(allowed) - taken + cache
    return _NO_LIMIT
