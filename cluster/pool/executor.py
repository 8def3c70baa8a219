"""The protocol between the run loop and the executor that runs its units, with the values that they exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...jobs.scheduling.ledger import Failure
from ...jobs.work.units import UnitAttempt
from ...storage.format.records import Manifest


@dataclass(frozen=True, slots=True)
class Answer:
    """Results of some units of a worker, as it reported them; when it is lost, failures of the units that it held.

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
        """Failures of the units that failed."""
        return [result for result in self.results if isinstance(result, Failure)]


@dataclass(frozen=True, slots=True)
class Wait:
    """Something outside the job that a worker, or the job, waits for.

    Attributes:
        reason: What keeps it waiting, in a sentence.
        since: When that began, in seconds since the epoch.
    """

    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class WorkerView:
    """The state of one worker, for people.

    Attributes:
        name: Name of the worker.
        node: Id of its node; empty until it is placed.
        doing: ``waiting`` for a place, ``loading``, ``idle`` or ``working``.
        units: Ids of the units that it holds.
        since: When it last changed its state, was assigned units or answered; seconds since the epoch.
        wait: What it waits for while it tries again; None when it is not held up.
        num_rows: Rollouts that are finished of these units, as it last reported.
    """

    name: str
    node: str
    doing: str
    units: tuple[str, ...]
    since: float
    wait: Wait | None = None
    num_rows: int = 0


class Executor(Protocol):
    """The workers, as the run loop sees them. Their number may change while it runs."""

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Start workers, and return when the first has loaded its model.

        Args:
            tick: Called about once a second while waiting; an exception that it raises ends the wait.

        Raises:
            InputError: The model cannot be loaded.
            JobError: No worker could be started.
        """
        ...

    @property
    def passes(self) -> str:
        """Which texts have a forward pass of their own, and why; known when ``start`` has returned. ``""`` for none."""
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
        """Busy workers that have requested work and may get some, the least loaded first."""
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
        """Send an assignment to a worker.

        Args:
            worker: One of ``idle`` or ``requesting``.
            attempts: Attempts at its units; later answers have a result for each.
        """
        ...

    def wait(self, timeout_s: float) -> list[Answer]:
        """Wait for answers.

        Args:
            timeout_s: Most seconds to wait for the first answer.

        Returns:
            All answers that have arrived; empty after a timeout.

        Raises:
            InputError: No worker can load the model.
            JobError: No worker is left.
        """
        ...

    def close(self) -> None:
        """Stop the workers at once; what is in flight is lost."""
        ...
