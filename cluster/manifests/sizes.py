"""How large the machines' shares are: cores, memory, shared memory and disk, by stated rules from the estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .request import ClusterRequest

OBJECT_STORE_BYTES = 2**30
"""Ray's object store carries orders and manifests alone; it lies in shared memory."""

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Size:
    """A pod, or a machine.

    Attributes:
        cpus: Cores.
        memory_gib: GiB, shared memory included.
        shm_gib: GiB of shared memory: the object store, and what the GPUs of a replica exchange.
        disk_gib: GiB for model files.
        gpus: GPUs.
    """

    cpus: int
    memory_gib: int
    shm_gib: int
    disk_gib: int
    gpus: int = 0


def head_size(request: ClusterRequest) -> Size:
    """Size the head: it steers, commits, and reduces at the end; no replica stands on it."""
    return Size(cpus=4, memory_gib=16, shm_gib=2, disk_gib=_disk_gib(request))


def worker_size(request: ClusterRequest) -> Size:
    """Size one replica: on GPUs, room to load and to write; on CPUs, the whole replica in memory."""
    gpus = request.gpus_per_replica
    if not gpus:
        held = math.ceil(request.figures.machine_bytes / _GIB)
        return Size(request.spec.placement.threads or 8, held + 6, 2, _disk_gib(request))
    shm = 2 if gpus == 1 else 8
    cpus = max(request.spec.placement.threads or 0, 8 * gpus if gpus == 1 else 6 * gpus)
    tokens = math.ceil(request.figures.held_token_bytes / _GIB)
    return Size(cpus, 24 * gpus + shm + tokens, shm, _disk_gib(request), gpus)


def _disk_gib(request: ClusterRequest) -> int:
    """The checkpoint, converted or not, a fifth more, and some room for logs."""
    return math.ceil(1.2 * request.figures.weight_bytes / _GIB) + 10
