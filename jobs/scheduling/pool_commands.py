"""Input and output of the pool of workers: the nodes of the cluster, and commands to carry out. Plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..errors import AtlasError, JobError
from ..vllm.replica_nodes import replicas_on
from ..work.units import UnitAttempt
from .ledger import Failure


class UnitOutcome(Protocol):
    """The result of a unit that succeeded; the pool needs only its id."""

    @property
    def unit_id(self) -> str:
        """Id of the unit."""
        ...


R = TypeVar("R", bound=UnitOutcome)


@dataclass(frozen=True, slots=True)
class ClusterNodes:
    """The nodes of the cluster at one moment.

    Attributes:
        places: Number of workers that each live node has resources for, by node id; of workers over several nodes, the
            number of parts. Resources that other jobs use are not subtracted, because they will be freed at some time.
        gone: Ids of nodes that are known to be dead.
        per_worker: Nodes of one worker.
    """

    places: Mapping[str, int]
    gone: frozenset[str] = frozenset()
    per_worker: int = 1

    def num_places(self, without: Collection[str] = ()) -> int:
        """Return the number of workers that all live nodes together have resources for.

        Args:
            without: Ids of nodes to exclude.
        """
        return replicas_on([room for node_id, room in self.places.items() if node_id not in without], self.per_worker)


@dataclass(frozen=True, slots=True)
class Launch:
    """Launch a worker and let it load the model.

    Attributes:
        worker: Name of the new worker.
        avoid: Ids of nodes on which it must not be placed, sorted.
    """

    worker: str
    avoid: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Kill:
    """Kill a worker; reports that still arrive from it are ignored.

    Attributes:
        worker: Name of the worker, which may already be dead.
    """

    worker: str


@dataclass(frozen=True, slots=True)
class Deliver(Generic[R]):
    """Pass results to the run loop.

    Attributes:
        worker: Name of the worker that had these units.
        results: Results that the worker reported; when it is lost, a failure for each unit that it held.
    """

    worker: str
    results: tuple[R | Failure, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the job.

    Attributes:
        error: The reason, to be raised.
    """

    error: AtlasError


Command = Launch | Kill | Deliver[R] | GiveUp


def failures_of(
    attempts: Sequence[UnitAttempt], message: str, detail: str, *, is_worker_fault: bool = False
) -> tuple[Failure, ...]:
    """Make a failure for each attempt that a worker held.

    Args:
        attempts: The attempts.
        message: What happened to the worker.
        detail: Why.
        is_worker_fault: Whether the units are certainly not the cause.
    """
    return tuple(
        Failure(attempt.unit.unit_id, attempt.number, message, detail, is_worker_fault) for attempt in attempts
    )


def no_worker(reason: str) -> JobError:
    """Make the error of a job that no worker can run.

    Args:
        reason: What became of the last worker.
    """
    return JobError(
        f"no worker is left; the last was {reason}",
        code="no_worker",
        hint="Is there enough memory? What was committed stays; the same command resumes.",
    )


def no_room(waited_s: float) -> JobError:
    """Make the error of a job for which no node of the cluster has room.

    Args:
        waited_s: How long it has waited, in seconds.
    """
    return JobError(
        f"no node had room for a worker in {waited_s:.0f} s.",
        code="no_worker",
        field="placement",
        hint="Does the cluster have the CPUs and GPUs that the spec asks for?",
    )
