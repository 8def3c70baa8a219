"""The states of a job's units, as a pure machine: events in, attempts out. No I/O, no clock, no Ray.

A unit is pending, in flight, committed or failed. A worker is given *assignments*: enough units to fill part of its
batch, each committed on its own. A unit that failed once is a *suspect*: it is assigned alone, so that it cannot make
other units fail with it, and to a worker on which it has not failed, as long as there is one, so that three failures
are the unit's fault and not a worker's.

A unit that was lost with its node is not to blame and is assigned again before all others. The first two times it is
assigned together with others, because nodes are often lost, and many at once; from then on alone, because the unit
itself may be what takes its node down. Every attempt gets a row block that no other attempt ever gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from ..plan import Plan
from ..units import UnitAttempt

MAX_FAILURES = 3
"""A unit that fails is tried twice more, then reported."""

MAX_ATTEMPTS = 6
"""Of one unit, including attempts that failed through no fault of the unit, because its node was lost or its worker
failed every unit it was given: a unit that takes its node down each time must be reported in the end."""

_LOSSES_UNSUSPECTED = 2
"""A unit that was lost with its node more often than this is a suspect."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        unit_id: Id of the unit.
        attempt: Number of the attempt, 1 for the first.
        message: One line.
        detail: All that is known, usually a traceback; may be empty.
        is_worker_fault: Whether the unit cannot be to blame: its node was lost, or its worker failed other units before it.
    """

    unit_id: str
    attempt: int
    message: str
    detail: str = ""
    is_worker_fault: bool = False


@dataclass
class Ledger:
    """Which units are done, in flight, pending or given up.

    Args:
        plan: The job.
        committed: Ids of the units that were committed before this start.
        row_blocks: Row blocks that this start may use, each once; at least ``row_blocks_needed`` of them.
        rollouts_per_assignment: Rollouts of a full assignment; a unit with more is an assignment of its own.

    Attributes:
        num_attempts: Number of attempts by unit id; units never attempted are missing.
        losses: Number of attempts by unit id that failed through no fault of the unit.
        failed: Units given up, by unit id, with the last failure of each.
        last_failure: The last failure by unit id of every unit that failed and is not committed, given up or not.
        first_failure: The first failure for which a unit may be to blame: it tells most about what is wrong.
        num_done: Units of the plan that are committed.
        rollouts_done: Rollouts of the committed units.
    """

    plan: Plan
    committed: set[str]
    row_blocks: Iterator[int]
    rollouts_per_assignment: int = 1
    failed: dict[str, Failure] = field(default_factory=dict)
    num_attempts: dict[str, int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)
    last_failure: dict[str, Failure] = field(default_factory=dict)
    first_failure: Failure | None = None
    num_done: int = 0
    rollouts_done: int = 0
    _failed_on: dict[str, set[str]] = field(default_factory=dict)
    _pending: deque[str] = field(default_factory=deque)
    _fresh_rollouts: int = 0
    _in_flight: dict[str, UnitAttempt] = field(default_factory=dict)

    def __post_init__(self) -> None:
        missing = [unit for unit in self.plan.units if unit.unit_id not in self.committed]
        # The longest units first, so that none of them is left for the end; equals keep the plan's order.
        self._pending.extend(unit.unit_id for unit in sorted(missing, key=lambda u: -u.num_rollouts))
        self._fresh_rollouts = sum(unit.num_rollouts for unit in missing)
        self.num_done = len(self.plan.units) - len(missing)
        self.rollouts_done = self.plan.num_rollouts - self._fresh_rollouts

    def next_assignment(
        self,
        worker: str = "",
        workers: Collection[str] = (),
        *,
        allow_suspect: bool = True,
        max_rollouts: int | None = None,
    ) -> tuple[UnitAttempt, ...]:
        """Take the next units for one worker.

        Args:
            worker: Name of the worker.
            workers: Names of all workers that are ready; a unit that failed on this one is kept for another of them.
            allow_suspect: Whether it may be a suspect, which must be alone on its worker.
            max_rollouts: Rollouts at most, unless the first unit alone has more; None for
                ``rollouts_per_assignment``.

        Returns:
            Attempts that are in flight from now on; empty when there is nothing to assign to this worker.
        """
        attempts: list[UnitAttempt] = []
        most = self.rollouts_per_assignment if max_rollouts is None else max_rollouts
        rollouts = 0
        while self._pending:
            unit_id = self._pending[0]
            # Suspects are appended to the queue: behind the first of them there are only suspects.
            is_suspect = unit_id in self._failed_on
            if is_suspect:
                unit_id = self._suspect_for(worker, workers) if allow_suspect and not attempts else None
                if unit_id is None:
                    break
            unit = self.plan.by_id[unit_id]
            if attempts and rollouts + unit.num_rollouts > most:
                break
            self._pending.remove(unit_id)
            if not is_suspect:
                self._fresh_rollouts -= unit.num_rollouts
            number = self.num_attempts.get(unit.unit_id, 0) + 1
            self.num_attempts[unit.unit_id] = number
            attempt = UnitAttempt(unit, self.plan.requests(unit), number, next(self.row_blocks), is_suspect)
            self._in_flight[unit.unit_id] = attempt
            attempts.append(attempt)
            rollouts += unit.num_rollouts
            if is_suspect:
                break
        return tuple(attempts)

    def _suspect_for(self, worker: str, workers: Collection[str]) -> str | None:
        for unit_id in self._pending:
            failed_on = self._failed_on.get(unit_id, set())
            if worker not in failed_on or failed_on.issuperset(workers):
                return unit_id
        return None

    def commit(self, unit_id: str) -> None:
        """Record that a unit is committed."""
        self._in_flight.pop(unit_id, None)
        self.failed.pop(unit_id, None)
        has_failed = self.last_failure.pop(unit_id, None) is not None
        was_suspect = self._failed_on.pop(unit_id, None) is not None
        if unit_id not in self.committed and unit_id in self.plan.by_id:
            self.num_done += 1
            self.rollouts_done += self.plan.by_id[unit_id].num_rollouts
        if has_failed and unit_id in self._pending:
            # It was thought lost and queued again, and its first attempt has arrived after all.
            self._pending.remove(unit_id)
            if not was_suspect:
                self._fresh_rollouts -= self.plan.by_id[unit_id].num_rollouts
        self.committed.add(unit_id)

    def fail(self, failure: Failure, worker: str = "") -> bool:
        """Record a failed attempt.

        Args:
            failure: The attempt and why it failed.
            worker: Name of the worker that it failed on.

        Returns:
            Whether the unit will be tried again; a suspect goes to the end of the queue.
        """
        self._in_flight.pop(failure.unit_id, None)
        if failure.unit_id in self.committed:
            return False
        if not failure.is_worker_fault:
            self.first_failure = self.first_failure or failure
        self.last_failure[failure.unit_id] = failure
        attempts, losses = self.num_attempts[failure.unit_id], self.losses.get(failure.unit_id, 0)
        if failure.is_worker_fault:
            losses = self.losses[failure.unit_id] = losses + 1
        is_suspect = failure.unit_id in self._failed_on or not failure.is_worker_fault or losses > _LOSSES_UNSUSPECTED
        if is_suspect:
            self._failed_on.setdefault(failure.unit_id, set()).add(worker)
        if attempts - losses < MAX_FAILURES and attempts < MAX_ATTEMPTS:
            if is_suspect:
                self._pending.append(failure.unit_id)
            else:
                self._pending.appendleft(failure.unit_id)
                self._fresh_rollouts += self.plan.by_id[failure.unit_id].num_rollouts
            return True
        self.failed[failure.unit_id] = failure
        return False

    @property
    def in_flight(self) -> int:
        """Units assigned and not yet committed or failed."""
        return len(self._in_flight)

    @property
    def pending(self) -> int:
        """Units that wait to be assigned."""
        return len(self._pending)

    @property
    def assignments_left(self) -> float:
        """Pending units in full assignments; suspects, which are assigned one by one, are not counted."""
        return self._fresh_rollouts / self.rollouts_per_assignment

    @property
    def is_over(self) -> bool:
        """Whether every unit is committed or given up."""
        return not self._in_flight and not self._pending


def row_blocks_needed(plan: Plan, committed: Iterable[str]) -> int:
    """Count the row blocks that one start can use at most.

    Args:
        plan: The job.
        committed: Ids of committed units; they need none.

    Returns:
        One for each possible attempt at each missing unit.
    """
    return MAX_ATTEMPTS * (len(plan.units) - len(set(committed) & set(plan.by_id)))
