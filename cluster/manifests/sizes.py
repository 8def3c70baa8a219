"""Sizes of the head and of a replica: cores, memory, shared memory and disk, by fixed rules from the estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .request import ClusterRequest

OBJECT_STORE_BYTES = 2**30
"""Ray's object store, in shared memory, carries only assignments and manifests; activations never pass through it."""

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Size:
    """Resources of a pod or a machine.

    Attributes:
        cpus: Number of cores.
        memory_gib: Memory in GiB, shared memory included.
        shm_gib: Shared memory in GiB: Ray's object store, and NCCL buffers of a replica on several GPUs.
        disk_gib: Disk for model files in GiB.
        gpus: Number of GPUs.
    """

    cpus: int
    memory_gib: int
    shm_gib: int
    disk_gib: int
    gpus: int = 0


def head_size(request: ClusterRequest) -> Size:
    """Size the head, which drives, commits and reduces but runs no replica."""
    return Size(cpus=4, memory_gib=16, shm_gib=2, disk_gib=_disk_gib(request))


def worker_size(request: ClusterRequest) -> Size:
    """Size the machine of one replica, or of its part on one of its nodes.

    On GPUs the memory is for loading weights and for units that wait to be written; on CPUs it holds the whole replica.
    """
    gpus = request.gpus_per_node
    if not gpus:
        held = math.ceil(request.figures.machine_bytes / _GIB)
        return Size(request.spec.placement.threads or 8, held + 6, 2, _disk_gib(request))
    shm = 2 if gpus == 1 else 8
    cpus = max(request.spec.placement.threads or 0, 8 * gpus if gpus == 1 else 6 * gpus)
    tokens = math.ceil(request.figures.held_token_bytes / _GIB)
    return Size(cpus, 24 * gpus + shm + tokens, shm, _disk_gib(request), gpus)


def _disk_gib(request: ClusterRequest) -> int:
    """Room for the checkpoint, a fifth more, and 10 GiB for logs."""
    return math.ceil(1.2 * request.figures.weight_bytes / _GIB) + 10
