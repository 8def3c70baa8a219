"""What the run loop asks of whatever runs its units: the protocol of executors, and the values that they pass on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...jobs.scheduling.ledger import Failure
from ...jobs.units import UnitAttempt
from ...storage.format.records import Manifest


@dataclass(frozen=True, slots=True)
class Answer:
    """Results of some of a worker's units, as it reported them; failures in its name when it is lost.

    Attributes:
        worker: Name of the worker.
        results: A manifest or a failure for each of these units.
    """

    worker: str
    results: tuple[Manifest | Failure, ...]

    @property
    def manifests(self) -> list[Manifest]:
        """Manifests of the units that succeeded."""
        return [result for result in self.results if isinstance(result, Manifest)]

    @property
    def failures(self) -> list[Failure]:
        """Failures of the units that did not."""
        return [result for result in self.results if isinstance(result, Failure)]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What one worker is doing, for people.

    Attributes:
        name: Name of the worker.
        node: Id of its node; empty until it is placed.
        doing: ``waiting`` for a place, ``loading``, ``idle`` or ``working``.
        units: Ids of the units that it holds.
        since: When this began, or it was last assigned something or answered; seconds since the epoch.
    """

    name: str
    node: str
    doing: str
    units: tuple[str, ...]
    since: float


class Executor(Protocol):
    """Workers, seen from the run loop. There may be more or fewer of them while it runs."""

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Bring workers up, and return when the first has loaded its model.

        Args:
            tick: Called about once a second meanwhile; what it raises ends the waiting.

        Raises:
            InputError: The model cannot be loaded.
            JobError: No worker comes up.
        """
        ...

    @property
    def ready(self) -> list[str]:
        """Workers whose model is loaded, busy or not."""
        ...

    @property
    def idle(self) -> list[str]:
        """Ready workers that hold no unit."""
        ...

    @property
    def requesting(self) -> list[str]:
        """Busy workers that ask for more and may have it, the least loaded first."""
        ...

    @property
    def num_workers(self) -> int:
        """Workers that are ready, or are loading the model."""
        ...

    @property
    def views(self) -> list[WorkerView]:
        """What each worker is doing, including those that wait for a place."""
        ...

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Nodes on which no more workers are placed, by node id, with the reason."""
        ...

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Hand an assignment over.

        Args:
            worker: One of ``idle`` or ``requesting``.
            attempts: Its units; some later answer has a result for each.
        """
        ...

    def wait(self, timeout_s: float) -> list[Answer]:
        """Wait for answers.

        Args:
            timeout_s: Seconds to wait at most for the first.

        Returns:
            All that have arrived.

        Raises:
            InputError: No worker can load the model.
            JobError: No worker is left.
        """
        ...

    def close(self) -> None:
        """Stop the workers at once; what is in flight is lost."""
        ...
