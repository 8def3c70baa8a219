"""What the run loop asks of whatever runs its units, and the simplest thing that does: this very process."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ...jobs.scheduling.ledger import Failure
from ...jobs.units import UnitAttempt
from ...storage.format.records import Manifest
from .worker_task import UnitTask


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker answers for some of its units; also what is said for them when it is lost.

    Attributes:
        worker: Who.
        results: A manifest or a failure for each of these units.
    """

    worker: str
    results: tuple[Manifest | Failure, ...]

    @property
    def manifests(self) -> list[Manifest]:
        """Of the units that were worked."""
        return [result for result in self.results if isinstance(result, Manifest)]

    @property
    def failures(self) -> list[Failure]:
        """Of those that were not."""
        return [result for result in self.results if isinstance(result, Failure)]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What one worker is doing.

    Attributes:
        name: Who.
        node: Id of its node; empty until it has a place.
        doing: ``waiting`` for a place, ``loading``, ``idle`` or ``working``.
        units: What it was handed and has not answered.
        since: When this began, or it last took or answered something; seconds since the epoch.
    """

    name: str
    node: str
    doing: str
    units: tuple[str, ...]
    since: float


class Executor(Protocol):
    """Workers, seen from the run loop. They may become more or fewer while it runs."""

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Bring the workers up, models loaded.

        Args:
            tick: Called now and then meanwhile; what it raises ends the waiting.

        Raises:
            InputError: A model cannot be loaded.
            JobError: No worker comes up.
        """
        ...

    @property
    def ready(self) -> list[str]:
        """Workers whose model is loaded, busy or not."""
        ...

    @property
    def idle(self) -> list[str]:
        """Those that have nothing to do."""
        ...

    @property
    def num_workers(self) -> int:
        """How many work, or load their model and soon will."""
        ...

    @property
    def requesting(self) -> list[str]:
        """Those at work that ask for more, the emptiest first.

        None that works a suspect: should it die again, it takes nothing else with it.
        """
        ...

    @property
    def views(self) -> list[WorkerView]:
        """What each worker is doing, those that have no place yet included."""
        ...

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Nodes that get no more work, with the reason."""
        ...

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Give an assignment to one of ``idle`` or ``hungry``."""
        ...

    def wait(self, timeout_s: float) -> list[Answer]:
        """Give the answers that have come, waiting at most so long for the first.

        Raises:
            JobError: No worker is left.
        """
        ...

    def close(self) -> None:
        """Stop the workers at once; what is in flight is lost."""
        ...


_LOCAL = "local"


class LocalExecutor:
    """Runs each assignment in this process when it is waited for. No Ray; for tests and for debugging."""

    def __init__(self, task: UnitTask) -> None:
        self._task = task
        self._waiting: deque[tuple[UnitAttempt, ...]] = deque()
        self._since = time.time()

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Load the model."""
        del tick
        self._task.prepare()

    @property
    def ready(self) -> list[str]:
        """This process."""
        return [_LOCAL]

    @property
    def idle(self) -> list[str]:
        """It, while nothing waits."""
        return [] if self._waiting else [_LOCAL]

    @property
    def num_workers(self) -> int:
        """This process."""
        return 1

    @property
    def requesting(self) -> list[str]:
        """None: it does one thing at a time."""
        return []

    @property
    def views(self) -> list[WorkerView]:
        """This process."""
        units = tuple(attempt.unit.unit_id for attempts in self._waiting for attempt in attempts)
        return [WorkerView(_LOCAL, _LOCAL, "working" if units else "idle", units, self._since)]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """None."""
        return {}

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Remember the assignment."""
        del worker
        self._since = time.time()
        self._waiting.append(tuple(attempts))

    def wait(self, timeout_s: float) -> list[Answer]:
        """Work what was handed out; takes as long as it takes."""
        del timeout_s
        answers: list[Answer] = []
        for attempts in self._waiting:
            self._task.take(attempts)
            left = len(attempts)
            while left:
                results = self._task.said().results
                left -= len(results)
                if results:
                    answers.append(Answer(_LOCAL, results))
        self._waiting.clear()
        return answers

    def close(self) -> None:
        """Forget what was handed out."""
        self._waiting.clear()
