"""Who is assigned how much. The one rule: the run loop follows it, and simulations of it run this very code.

Two goals pull against each other. A worker must never run dry, so it is assigned half a batch at a time, and more as
soon as it asks. And all workers should end together: units that one worker holds cannot help another that has nothing
left to do. So assignments become small towards the end of the job.

Pure: reads the state of the workers, takes units from the ledger, and hands nothing over itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..units import UnitAttempt
from .ledger import Ledger

SMALL_FRACTION = 4
"""A small assignment is a full one divided by this, and one unit at the least."""

PLENTIFUL = 4
"""Full assignments for each worker, which is two batches. While more than this is pending, a worker that is still busy
gets a full assignment; below, a small one. A worker that has run dry gets a full one for longer: until there is less
than one full assignment for each worker."""


class Workers(Protocol):
    """The state of the workers, as far as assigning work needs it."""

    @property
    def ready(self) -> Sequence[str]:
        """Workers whose model is loaded, busy or not."""
        ...

    @property
    def idle(self) -> Sequence[str]:
        """Ready workers that hold no unit."""
        ...

    @property
    def requesting(self) -> Sequence[str]:
        """Busy workers that ask for more and may have it, the least loaded first."""
        ...

    @property
    def num_workers(self) -> int:
        """Workers that are ready, or are loading the model and will want their share soon."""
        ...


@dataclass(frozen=True, slots=True)
class Assignment:
    """Units for one worker.

    Attributes:
        worker: Name of the worker.
        attempts: One attempt at each unit; never empty.
    """

    worker: str
    attempts: tuple[UnitAttempt, ...]


def assign_work(ledger: Ledger, workers: Workers) -> list[Assignment]:
    """Take units from the ledger for every worker that should have some now.

    Args:
        ledger: Where they are taken from; afterwards they are in flight, so every assignment must be handed over.
        workers: Who is there.

    Returns:
        Assignments to idle workers, then to those that ask for more; empty when there is nothing to assign.
    """
    ready, num_workers = workers.ready, workers.num_workers
    turns = [(worker, True) for worker in workers.idle] + [(worker, False) for worker in workers.requesting]
    assignments: list[Assignment] = []
    for worker, is_idle in turns:
        rollouts = assignment_rollouts(
            ledger.rollouts_per_assignment, ledger.assignments_left, num_workers, is_idle=is_idle
        )
        # A suspect is run by a worker that holds nothing else, so that it can only harm itself.
        attempts = ledger.next_assignment(worker, ready, allow_suspect=is_idle, max_rollouts=rollouts)
        if attempts:
            assignments.append(Assignment(worker, attempts))
    return assignments


def assignment_rollouts(full: int, assignments_left: float, num_workers: int, *, is_idle: bool) -> int:
    """Choose how much one worker is assigned at a time.

    Args:
        full: Rollouts of a full assignment.
        assignments_left: What is pending, in full assignments.
        num_workers: Among how many workers it will be shared, those that still load included.
        is_idle: Whether the worker holds nothing; else it asks for more while it is busy.

    Returns:
        Rollouts; a unit that is larger is assigned alone.

    Example:
        >>> assignment_rollouts(24, 10.0, 3, is_idle=True), assignment_rollouts(24, 10.0, 3, is_idle=False)
        (24, 6)
    """
    plenty = num_workers if is_idle else PLENTIFUL * num_workers
    return full if assignments_left >= plenty else full // SMALL_FRACTION
