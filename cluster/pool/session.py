"""Connect to Ray: to an existing cluster, or to one that is started on this machine for the duration of a job."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from typing import Any

from ...jobs.errors import InputError
from ...jobs.scheduling.pool_commands import ClusterNodes
from ...workers.models.limits import usable_cores
from ..ray_text import PlainStream
from .placement import Placement, Resources
from .ray_environment import joining_environment, prepare_ray_environment
from .ray_thread import RayThread

_OBJECT_STORE_BYTES = 100 * 2**20
"""Small, because only assignments and reports pass through Ray's object store; activations never do."""


def local_resources() -> Resources:
    """Count the cores that this process may use, and the GPUs that the installed torch can use."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return Resources(usable_cores(), gpus)


def cluster_nodes(placement: Placement) -> ClusterNodes:
    """Read the nodes of the cluster, and how many replicas, or parts of them, each of them has resources for.

    Args:
        placement: Resources of one replica.

    Returns:
        The live nodes with their places, and the dead ones that Ray still lists.
    """
    import ray

    places: dict[str, int] = {}
    gone: set[str] = set()
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            places[node["NodeID"]] = placement.places_on(has.get("CPU", 0), has.get("GPU", 0))
        else:
            gone.add(node["NodeID"])
    return ClusterNodes(places, frozenset(gone), placement.num_nodes)


@contextmanager
def ray_session(address: str | None) -> Iterator[Resources]:
    """Connect to the Ray cluster at an address or start one on this machine; disconnect or stop it at the end.

    Args:
        address: ``host:port`` of a running cluster; None starts one on this machine, whatever the environment says.
            Ignored in a process that is already connected, such as a Ray actor.

    Yields:
        The resources of the cluster.

    Raises:
        InputError: There is no cluster at the address.
    """
    prepare_ray_environment()
    import ray

    if ray.is_initialized():
        yield _cluster_resources()
        return
    # Ray reports lost workers with a plain print, from a thread; stdout is for results.
    with redirect_stdout(PlainStream(sys.stderr)):
        thread = RayThread(partial(_connect, address))
        try:
            thread.start()
            yield _cluster_resources()
        finally:
            thread.stop()


def _connect(address: str | None) -> None:
    import ray

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
        ray.init(address, runtime_env=joining_environment(), **quiet)
    except (ConnectionError, ValueError, TimeoutError, RuntimeError) as error:
        raise InputError(
            f"there is no Ray cluster at {address!r}: {str(error).strip().splitlines()[0]}",
            code="no_cluster",
            field="--address",
            hint="Check host and port, or leave --address out to run on this machine.",
        ) from error


def _cluster_resources() -> Resources:
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # A head node without cores runs no worker. If any node has GPUs, replicas run on nodes with GPUs only.
    workers = [r for r in alive if r.get("GPU")] or [r for r in alive if r.get("CPU")]
    return Resources(
        num_cpus=int(sum(r.get("CPU", 0) for r in workers)),
        num_gpus=int(sum(r.get("GPU", 0) for r in workers)),
        cpus_per_node=int(min((r.get("CPU", 0) for r in workers), default=0)) or None,
        num_nodes=len(workers),
        gpus_by_node=tuple(int(r["GPU"]) for r in workers if r.get("GPU")),
        cpus_by_node=tuple(int(r.get("CPU", 0)) for r in workers),
    )
