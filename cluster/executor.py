"""What the run loop asks of whatever runs its units, and the simplest thing that does: this very process."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..jobs.ledger import Failure
from ..jobs.units import UnitOrder
from ..storage.records import Manifest
from .unit_task import UnitTask


@dataclass(frozen=True, slots=True)
class Answer:
    """A worker's answer to one assignment; also what is said for it when the worker is lost.

    Attributes:
        worker: Who.
        results: A manifest or a failure for each unit of the assignment.
    """

    worker: str
    results: tuple[Manifest | Failure, ...]


class Executor(Protocol):
    """Workers, seen from the run loop."""

    def start(self) -> None:
        """Bring the workers up, models loaded.

        Raises:
            InputError: A model cannot be loaded.
            JobError: No worker comes up.
        """
        ...

    @property
    def num_workers(self) -> int:
        """Workers in all, busy or not."""
        ...

    @property
    def num_idle(self) -> int:
        """Workers that have nothing to do."""
        ...

    @property
    def num_ahead(self) -> int:
        """Busy workers that could be given a second assignment, to begin it while the first is written.

        None that works a unit that failed before: should it die again, it takes nothing else with it.
        """
        ...

    def hand_out(self, orders: Sequence[UnitOrder]) -> None:
        """Give an assignment to an idle worker, or to one that takes a second when none is idle."""
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


class LocalExecutor:
    """Runs each assignment in this process when it is waited for. No Ray; for tests and for debugging."""

    def __init__(self, task: UnitTask) -> None:
        self._task = task
        self._waiting: deque[tuple[UnitOrder, ...]] = deque()

    def start(self) -> None:
        """Load the model."""
        self._task.prepare()

    @property
    def num_workers(self) -> int:
        """This process."""
        return 1

    @property
    def num_idle(self) -> int:
        """One while nothing waits."""
        return 0 if self._waiting else 1

    @property
    def num_ahead(self) -> int:
        """None: it does one thing at a time."""
        return 0

    def hand_out(self, orders: Sequence[UnitOrder]) -> None:
        """Remember the assignment."""
        self._waiting.append(tuple(orders))

    def wait(self, timeout_s: float) -> list[Answer]:
        """Work what was handed out; takes as long as it takes."""
        del timeout_s
        answers = [Answer("local", tuple(self._task.work(orders))) for orders in self._waiting]
        self._waiting.clear()
        return answers

    def close(self) -> None:
        """Forget what was handed out."""
        self._waiting.clear()
