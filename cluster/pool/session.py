"""A connection to Ray: a cluster that is there, or one of our own on this machine for as long as the job lasts."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

from ...jobs.errors import InputError
from ...jobs.spec import PlacementSpec

_OBJECT_STORE_BYTES = 100 * 2**20
"""Only orders and manifests pass through it."""


@dataclass(frozen=True, slots=True)
class Resources:
    """What there is to place replicas on.

    Attributes:
        num_cpus: Cores, all machines together.
        num_gpus: GPUs, likewise.
        cpus_per_node: Cores of the smallest machine that could hold a replica; a replica's threads share one machine.
        num_nodes: Machines that could hold one.
    """

    num_cpus: int
    num_gpus: int
    cpus_per_node: int | None = None
    num_nodes: int = 1


def local_resources() -> Resources:
    """Look at this machine: its cores, and the GPUs that the installed torch can use."""
    import psutil
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Resources(psutil.cpu_count() or 1, gpus)


@dataclass(frozen=True, slots=True)
class Placement:
    """How replicas are laid out.

    Attributes:
        replicas: Actors.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads, and Ray CPUs, of each.
        num_gpus: GPUs of each.
    """

    replicas: int
    device: str
    threads: int
    num_gpus: int


def place(asked: PlacementSpec, resources: Resources, *, may_grow: bool = False) -> Placement:
    """Lay replicas out on what there is, so that their threads do not fight.

    Args:
        asked: What the spec says.
        resources: What there is now.
        may_grow: Whether more machines may join: then replicas that have no place yet wait for them.

    Raises:
        InputError: The spec wants GPUs, cores or replicas that are not there and not to be waited for.
    """
    if asked.device == "cuda" and not resources.num_gpus and not (may_grow and asked.replicas):
        raise InputError(
            "asks for cuda, but no GPU is there.",
            code="no_gpu",
            field="placement.device",
            hint="Use device: auto or cpu, or an --address with GPUs.",
        )
    device = "cuda" if asked.device == "cuda" or (asked.device == "auto" and resources.num_gpus) else "cpu"
    num_gpus = 1 if device == "cuda" else 0
    replicas = asked.replicas or (resources.num_gpus if device == "cuda" else max(1, resources.num_nodes))
    if may_grow:
        at_once = max(1, -(-replicas // max(1, resources.num_nodes)))
        return Placement(replicas, device, asked.threads or max(1, (resources.cpus_per_node or 1) // at_once), num_gpus)
    limit, unit = (resources.num_gpus, "GPU") if device == "cuda" else (resources.num_cpus, "CPU core")
    if replicas > limit:
        raise InputError(
            f"asks for {replicas} replicas, but there is room for {limit}: each takes at least one {unit}.",
            code="too_many_replicas",
            field="placement.replicas",
            hint=f"Ask for at most {limit}.",
        )
    cores = min(resources.num_cpus // replicas, resources.cpus_per_node or resources.num_cpus)
    threads = asked.threads or max(1, cores)
    if threads * replicas > resources.num_cpus:
        raise InputError(
            f"{replicas} replicas of {threads} threads need {threads * replicas} cores; "
            f"there are {resources.num_cpus}.",
            code="too_many_threads",
            field="placement.threads" if asked.threads else "placement.replicas",
            hint=f"Ask for at most {resources.num_cpus // replicas if asked.threads else resources.num_cpus}.",
        )
    return Placement(replicas, device, threads, num_gpus)


def count_places(placement: Placement, left_out: Collection[str] = ()) -> int:
    """Count the replicas that the cluster, as it is now, has room for; other jobs' use is not looked at.

    Args:
        placement: What one replica takes.
        left_out: Ids of nodes that do not count.
    """
    import ray

    count = 0
    for node in ray.nodes():
        if not node["Alive"] or node["NodeID"] in left_out:
            continue
        has = node["Resources"]
        by_cpu = int(has.get("CPU", 0) // placement.threads)
        count += min(by_cpu, int(has.get("GPU", 0) // placement.num_gpus)) if placement.num_gpus else by_cpu
    return count


@contextmanager
def ray_session(address: str | None) -> Iterator[Resources]:
    """Join the Ray at an address, or start one here; leave it, or stop it, at the end.

    Args:
        address: ``host:port`` of a running cluster; None starts one on this machine, whatever the environment says.
            A process that is connected already, as one that Ray started is, uses what it has.

    Raises:
        InputError: There is no cluster at the address.
    """
    # Set before ray is imported: it reads it then.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield _resources(ray.nodes())
        return
    # Ray reports lost workers with a plain print, from a thread; stdout is for results.
    with redirect_stdout(sys.stderr):
        try:
            _connect(ray, address)
            yield _resources(ray.nodes())
        finally:
            ray.shutdown()


def _connect(ray: Any, address: str | None) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        here = local_resources()
        ray.init(
            "local",
            num_cpus=here.num_cpus,
            num_gpus=here.num_gpus,
            include_dashboard=False,
            object_store_memory=_OBJECT_STORE_BYTES,
            **quiet,
        )
        return
    try:
        ray.init(address, **quiet)
    except (ConnectionError, ValueError, TimeoutError, RuntimeError) as error:
        raise InputError(
            f"there is no Ray cluster at {address!r}: {str(error).strip().splitlines()[0]}",
            code="no_cluster",
            field="--address",
            hint="Check host and port, or leave --address out to run on this machine.",
        ) from error


def _resources(nodes: list[dict[str, Any]]) -> Resources:
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    # A head that only steers has no cores; where there are GPUs, replicas go to the machines that have them.
    workers = [r for r in alive if r.get("GPU")] or [r for r in alive if r.get("CPU")]
    return Resources(
        num_cpus=int(sum(r.get("CPU", 0) for r in workers)),
        num_gpus=int(sum(r.get("GPU", 0) for r in workers)),
        cpus_per_node=int(min((r.get("CPU", 0) for r in workers), default=0)) or None,
        num_nodes=len(workers),
    )
