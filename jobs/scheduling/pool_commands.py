"""What the pool of workers sees of the cluster, and what it has done to it. Plain values."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ..errors import AtlasError
from .ledger import Failure


class UnitOutcome(Protocol):
    """A result of a unit that succeeded; the pool needs no more of it than which unit it is."""

    @property
    def unit_id(self) -> str:
        """Id of the unit."""
        ...


R = TypeVar("R", bound=UnitOutcome)


@dataclass(frozen=True, slots=True)
class ClusterNodes:
    """The nodes of the cluster at one moment.

    Attributes:
        places: For how many workers each living node has room, by node id. Use by other jobs is not subtracted: what
            they hold comes free some day.
        gone: Ids of nodes that are known to be dead.
    """

    places: Mapping[str, int]
    gone: frozenset[str] = frozenset()

    def num_places(self, without: Collection[str] = ()) -> int:
        """Count the places.

        Args:
            without: Ids of nodes that do not count.
        """
        return sum(places for node_id, places in self.places.items() if node_id not in without)


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
    """Make sure that a worker is gone; from now on nothing that it reports counts.

    Attributes:
        worker: Name of the worker, which may be dead already.
    """

    worker: str


@dataclass(frozen=True, slots=True)
class Deliver(Generic[R]):
    """Pass results on to the run loop.

    Attributes:
        worker: Name of the worker that had these units.
        results: One for each of some of its units, as it reported them; failures in its name when it is lost.
    """

    worker: str
    results: tuple[R | Failure, ...]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the job.

    Attributes:
        error: Why.
    """

    error: AtlasError


Command = Launch | Kill | Deliver[R] | GiveUp
