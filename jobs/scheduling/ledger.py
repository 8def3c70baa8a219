"""The states of a job's units, as a pure machine: events in, orders out. No I/O, no clock, no Ray.

A unit is pending, in flight, committed or failed. A worker is handed *assignments*: units enough to fill some of its
batch, each committed on its own. A unit that failed once is handed out alone, so that it cannot take others with it
again, and to a worker it has not failed on, as long as there is one: three failures are the unit's, not a worker's.
One that went with its node is not to blame, and is handed out again before all others: in company the first two times,
for nodes go in numbers and often, and alone from then on, for a unit may be what takes a node with it. Every attempt
gets a row block that no other attempt ever gets.
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
"""In all, those included that were no fault of the unit, because its node went or its worker failed whatever it was
given: a unit that takes its node with it each time is reported in the end."""

_LOSSES_IN_COMPANY = 2


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        unit_id: The unit.
        attempt: Which attempt.
        message: One line.
        detail: All that is known, a traceback usually.
        is_innocent: Whether the unit cannot be to blame: its node went, or its worker failed others before it.
    """

    unit_id: str
    attempt: int
    message: str
    detail: str = ""
    is_innocent: bool = False


@dataclass
class Ledger:
    """Who does what, what is done, what failed.

    Args:
        plan: The job.
        committed: Ids of the units that were committed before this start.
        row_blocks: Row blocks this start may hand out, each once; at least ``row_blocks_needed`` of them.
        rollouts_per_assignment: Rollouts that a worker is given at a time, unless one unit has more.

    Attributes:
        num_attempts: Of each unit that was handed out, how many.
        losses: Of each, how many of them failed through no fault of the unit.
        failed: Units given up, with the last failure of each.
        last_failure: Of each unit that failed and is not committed, given up or not.
        first_failure: The first that a unit may be to blame for: tells most about what is wrong.
        num_done: Units of the plan that are committed.
        rollouts_done: Rollouts of those.
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
        # The longest first, so that no straggler is left at the end; sorting is stable, the plan's order holds.
        self._pending.extend(unit.unit_id for unit in sorted(missing, key=lambda u: -u.num_rollouts))
        self._fresh_rollouts = sum(unit.num_rollouts for unit in missing)
        self.num_done = len(self.plan.units) - len(missing)
        self.rollouts_done = self.plan.num_rollouts - self._fresh_rollouts

    def next_assignment(
        self, worker: str = "", workers: Collection[str] = (), *, suspects: bool = True, is_small: bool = False
    ) -> tuple[UnitAttempt, ...]:
        """Take the next units for one worker; empty when there is nothing to hand out to it.

        Args:
            worker: Who.
            workers: All that work now; a unit that failed on this one is kept for another of them.
            suspects: Whether it may be a unit that may be to blame for a failure; that one wants a worker to itself.
            is_small: Whether to take a quarter of an assignment, one unit at the least.
        """
        attempts: list[UnitAttempt] = []
        most = self.rollouts_per_assignment // (4 if is_small else 1)
        rollouts = 0
        while self._pending:
            unit_id = self._pending[0]
            # A suspect goes to the end of the queue: behind the first of these there are only such.
            is_suspect = unit_id in self._failed_on
            if is_suspect:
                unit_id = self._suspect_for(worker, workers) if suspects and not attempts else None
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
            # It was given up for lost, queued again, and has come after all.
            self._pending.remove(unit_id)
            if not was_suspect:
                self._fresh_rollouts -= self.plan.by_id[unit_id].num_rollouts
        self.committed.add(unit_id)

    def fail(self, failure: Failure, worker: str = "") -> bool:
        """Record a failed attempt.

        Args:
            failure: What failed, and why.
            worker: On whom.

        Returns:
            Whether the unit will be tried again; a suspect goes to the end of the queue.
        """
        self._in_flight.pop(failure.unit_id, None)
        if failure.unit_id in self.committed:
            return False
        if not failure.is_innocent:
            self.first_failure = self.first_failure or failure
        self.last_failure[failure.unit_id] = failure
        attempts, losses = self.num_attempts[failure.unit_id], self.losses.get(failure.unit_id, 0)
        if failure.is_innocent:
            losses = self.losses[failure.unit_id] = losses + 1
        is_suspect = failure.unit_id in self._failed_on or not failure.is_innocent or losses > _LOSSES_IN_COMPANY
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
        """Units handed out and not yet answered."""
        return len(self._in_flight)

    @property
    def pending(self) -> int:
        """Units not handed out."""
        return len(self._pending)

    @property
    def assignments_left(self) -> float:
        """About how many assignments what is pending comes to; suspects, each alone, are not counted."""
        return self._fresh_rollouts / self.rollouts_per_assignment

    @property
    def is_over(self) -> bool:
        """Whether nothing is in flight and nothing will be handed out."""
        return not self._in_flight and not self._pending


def row_blocks_needed(plan: Plan, committed: Iterable[str]) -> int:
    """Say how many row blocks one start can use up at most: every missing unit, every attempt."""
    return MAX_ATTEMPTS * (len(plan.units) - len(set(committed) & set(plan.by_id)))
