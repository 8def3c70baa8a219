"""The cores and the memory that this process may use: those of its machine, within its affinity and its cgroups.

Containers, Slurm and systemd limit a process by cgroups, of version 1 or 2, at its own group or at any group above it.
The limits of all of them hold; a group that cannot be seen from here, because a container has its own view of the
hierarchy, limits a group that can.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUPS = Path("/proc/self/cgroup")

_MEMORY_FILES = (
    ("memory.max", "memory.current"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Files with limit and usage, of cgroup v2 and v1."""


def usable_cores() -> int:
    """Return the number of cores that this process may use at a time, at least 1.

    A quota of a fraction of a core counts as a whole one.
    """
    # Not on every system: macOS has no affinity.
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = (_quota(folder) for folder in _folders("cpu"))
    return max(1, math.ceil(min([allowed, *quotas])))


def free_memory_bytes() -> int:
    """Return the free bytes of memory, page cache counted as free."""
    left = (_bytes_left(folder) for folder in _folders("memory"))
    return int(max(0, min([psutil.virtual_memory().available, *left])))


def _folders(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's group and of all above it, in both versions' hierarchies."""
    yield from (_GROUPS, _GROUPS / controller)
    try:
        lines = _OWN_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        own = PurePosixPath(path).relative_to("/")
        for root in (_GROUPS / controller, _GROUPS / controllers) if controllers else (_GROUPS, _GROUPS / "unified"):
            yield from (root / group for group in (own, *own.parents))


def _quota(folder: Path) -> float:
    """Return the cores that a group may use; infinite without a quota."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError, ZeroDivisionError):
        # No such group or file, or ``max``.
        return math.inf


def _bytes_left(folder: Path) -> float:
    """Return the bytes that a group may still take; infinite without a limit."""
    for limit, used in _MEMORY_FILES:
        try:
            left = int((folder / limit).read_text()) - int((folder / used).read_text())
            counters = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        return left + int(counters.get("total_inactive_file") or counters.get("inactive_file") or 0)
    return math.inf
