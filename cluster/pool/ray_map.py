"""Spread the work of a reduction over the tasks of a Ray cluster. Tasks write to the store; only numbers come back.

A task takes one core and no GPU, so it runs beside whatever holds the cluster's GPUs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

from ...analysis.reduction.mapping import Mapper, map_in_threads
from ...jobs.errors import AtlasError, JobError
from ...jobs.specs.store_spec import S3Access
from ...storage.locations.location import Location, access_of, open_location
from ..ray_text import one_line
from .ray_environment import worker_environment

W = TypeVar("W")
R = TypeVar("R")

_TASKS_PER_CORE = 2
"""Tasks that are submitted at a time for each core: no core waits, and Ray does not hold the arguments of all."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a store is, for a process that opens it by itself."""

    url: str
    endpoint_url: str | None
    access: S3Access


def mapper_here() -> Mapper:
    """Return what spreads the work of a reduction from this process: over the Ray cluster that it is connected to.

    Threads of this process where it is connected to none, or to one of a single node, whose cores they use as well.
    """
    ray: Any = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return map_in_threads
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return map_in_ray_tasks if len(nodes) > 1 else map_in_threads


def map_in_ray_tasks(
    function: Callable[[Location, W], R], location: Location, works: Sequence[W], num_threads: int
) -> Iterator[tuple[int, R]]:
    """Apply a function to every piece of work in tasks of the connected Ray cluster; see ``Mapper``.

    Args:
        function: A function of a module.
        location: The store; every task opens it by its URL.
        works: The pieces.
        num_threads: Has no meaning here: a task has the memory of its node.

    Yields:
        The number of each piece of work and its result, as they come.

    Raises:
        AtlasError: What a task raised.
        JobError: A task was lost, again and again.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    place = _Place(location.url, location.endpoint_url, access_of(location))
    task: Any = ray.remote(num_cpus=1, num_gpus=0, max_retries=3, runtime_env=worker_environment())(_work)
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    waiting: dict[Any, int] = {}
    left = iter(enumerate(works))
    try:
        while True:
            for number, work in left:
                waiting[task.remote(function, place, work)] = number
                if len(waiting) >= _TASKS_PER_CORE * cores:
                    break
            if not waiting:
                return
            (done, *_), _ = ray.wait(list(waiting), num_returns=1)
            try:
                yield waiting.pop(done), ray.get(done)
            except RayTaskError as error:
                if isinstance(error.cause, AtlasError):
                    raise error.cause from None
                raise
            except RayError as error:
                raise JobError(
                    f"a task of the reduction was lost: {one_line(str(error))}",
                    code="task_lost",
                    hint="Run reduce: what is computed is kept.",
                ) from error
    finally:
        for reference in waiting:
            ray.cancel(reference)


def _work(function: Callable[[Location, W], R], place: _Place, work: W) -> R:
    return function(_opened(place), work)


@lru_cache(maxsize=2)
def _opened(place: _Place) -> Location:
    return open_location(place.url, place.endpoint_url, place.access)
