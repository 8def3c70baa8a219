"""The process of a driver, as its lease records it, and whether the process table shows that it has exited.

A process table covers one host since its last boot, and in it one PID namespace: a container has its own, although it
may share host name and boot id with others (host networking, ``unshare``, pods with ``hostNetwork``). Only a process of
the same namespace may be looked up; for every other one nothing is known.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import psutil

from ..format.lease_record import Lease

_NO_NAMESPACES = ""
"""Recorded on platforms that have no PID namespaces: every process of the host is in the table."""

_TOLERANCE_S = 1.0
"""Process tables round the start of a process, to 0.01 s on Linux."""


def this_process() -> dict[str, Any]:
    """Return the fields of a lease that identify this process."""
    fields: dict[str, Any] = {
        "host": socket.gethostname(),
        "boot_id": _boot_id(),
        "pid": os.getpid(),
        "process_started": 0.0,
        "pid_namespace": _pid_namespace(),
    }
    if fields["pid_namespace"] is not None:
        started = psutil.Process().create_time()
        fields |= {"process_started": started, "started_after_boot_s": started - psutil.boot_time()}
    return fields


def has_exited(lease: Lease) -> bool:
    """Whether the process of a lease is seen to have exited; False when its process table is not the one seen here."""
    if lease.host != socket.gethostname() or lease.boot_id != _boot_id():
        return False
    here = _pid_namespace()
    # Leases of earlier versions name no namespace. That is no question where there are none.
    if here is None or here != (lease.pid_namespace if lease.pid_namespace is not None else _NO_NAMESPACES):
        return False
    try:
        process = psutil.Process(lease.pid)
        # Process ids are reused, so the start has to match too.
        if not _started_as_recorded(process, lease):
            return True
        # A zombie was killed and waits for its parent to collect it, for ever in a container without an init process.
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return not _exists_unseen(lease.pid)
    except psutil.AccessDenied:
        return False


def _started_as_recorded(process: psutil.Process, lease: Lease) -> bool:
    started = process.create_time()
    if lease.started_after_boot_s is not None:
        # Counted from the boot, because setting the clock moves both times since the epoch.
        return abs(started - psutil.boot_time() - lease.started_after_boot_s) < _TOLERANCE_S
    return abs(started - lease.process_started) < _TOLERANCE_S


def _exists_unseen(pid: int) -> bool:
    """Whether another user's process has an id that ``/proc``, mounted with ``hidepid``, does not show."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _pid_namespace() -> str | None:
    """Return the PID namespace that this process and its ``/proc`` are in; None when that cannot be told."""
    if sys.platform != "linux":
        return _NO_NAMESPACES
    try:
        # After ``unshare --pid`` without a new mount, /proc still shows the processes of the namespace outside.
        if os.readlink("/proc/self") != str(os.getpid()):  # noqa: PTH115
            return None
        return os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return None


def _boot_id() -> str:
    """Return an id of this host's current boot: a process id means nothing after a reboot."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.exists() else f"{psutil.boot_time():.0f}-{os.name}"
