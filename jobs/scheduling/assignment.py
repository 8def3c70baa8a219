"""Decide which worker is assigned how many units. Used by the run loop and, unchanged, by simulations of it.

Two goals conflict. No worker should run out of work, so a worker is assigned half a batch at a time, and more as soon
as it requests work. But all workers should finish at about the same time, and a unit that waits in one worker's queue
cannot be run by another that is idle. So assignments become small towards the end of the job.

Pure: reads the state of the workers and takes units from the ledger; the caller sends the assignments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ..work.units import UnitAttempt
from .ledger import Ledger

SMALL_FRACTION = 4
"""A small assignment is a full one divided by this, but at least one unit."""

PLENTIFUL = 4
"""Full assignments per worker (two batches). While more than this is pending, a busy worker that requests work gets a
full assignment, and below it a small one. An idle worker gets full ones for longer, until less than one full assignment
per worker is pending."""


class Workers(Protocol):
    """The state of the workers that assigning work depends on."""

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
        """Busy workers that have requested work and may get some, the least loaded first."""
        ...

    @property
    def num_workers(self) -> int:
        """Workers that are ready or loading the model, among whom the pending units will be divided."""
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
        ledger: The units. Those that are assigned are in flight afterwards, so every assignment must be sent.
        workers: The workers.

    Returns:
        Assignments to idle workers, then to busy ones that request work; empty when there is nothing to assign.
    """
    ready, num_workers = workers.ready, workers.num_workers
    turns = [(worker, True) for worker in workers.idle] + [(worker, False) for worker in workers.requesting]
    assignments: list[Assignment] = []
    for worker, is_idle in turns:
        rollouts = assignment_rollouts(
            ledger.rollouts_per_assignment, ledger.assignments_left, num_workers, is_idle=is_idle
        )
        # A suspect may take its worker down, so it is run by a worker that holds no other unit.
        attempts = ledger.next_assignment(worker, ready, allow_suspect=is_idle, max_rollouts=rollouts)
        if attempts:
            assignments.append(Assignment(worker, attempts))
    return assignments


def assignment_rollouts(full: int, assignments_left: float, num_workers: int, *, is_idle: bool) -> int:
    """Choose how much one worker is assigned at a time.

    Args:
        full: Rollouts of a full assignment.
        assignments_left: Pending rollouts, in full assignments.
        num_workers: Workers among whom they will be divided, those that are loading included.
        is_idle: Whether the worker holds no unit; if not, it has requested work while it is busy.

    Returns:
        Most rollouts of the assignment; a larger unit is assigned alone.

    Example:
        >>> assignment_rollouts(24, 10.0, 3, is_idle=True), assignment_rollouts(24, 10.0, 3, is_idle=False)
        (24, 6)
    """
    plenty = num_workers if is_idle else PLENTIFUL * num_workers
    return full if assignments_left >= plenty else full // SMALL_FRACTION
