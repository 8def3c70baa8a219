"""The states of a job's units, as a pure state machine: events in, attempts out. No I/O, no clock, no Ray.

A unit is pending, in flight, committed or failed. A worker gets *assignments*: enough units to fill part of its batch,
each of which is committed separately. A unit that has failed once is a *suspect*: it is assigned alone, so that it
cannot make other units fail, and to a worker on which it has not failed if there is one, so that three failures are the
fault of the unit and not of a worker.

A unit that was lost with its node is retried before all others. The first two times it is assigned together with other
units, because losing nodes is common and affects many units at once; after that alone, because the unit itself may be
what brings its node down. Every attempt gets a row block of its own, which no other attempt ever writes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field

from ..plan import Plan
from ..redaction import without_secrets
from ..work.units import UnitAttempt

MAX_FAILURES = 3
"""Failed attempts after which a unit is given up and reported; those with ``is_worker_fault`` are not counted, and one
with ``is_permanent`` is enough."""

MAX_ATTEMPTS = 6
"""Attempts after which a unit is given up whatever the causes: a unit that brings its node down every time must be
reported in the end."""

_LOSSES_UNSUSPECTED = 2
"""A unit with more attempts lost to worker faults than this is a suspect."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        unit_id: Id of the unit.
        attempt: Number of the attempt, 1 for the first.
        message: One line.
        detail: Full text of the error, usually a traceback; may be empty.
        is_worker_fault: Whether the node or the worker caused it and not the unit: the node was lost, or the worker had
            failed unit after unit.
        is_permanent: Whether another attempt would fail in the same way.
        is_store_fault: Whether the unit was made, and could not be written because the store failed.
    """

    unit_id: str
    attempt: int
    message: str
    detail: str = ""
    is_worker_fault: bool = False
    is_permanent: bool = False
    is_store_fault: bool = False

    def __post_init__(self) -> None:
        # Failures are printed and stored, and an error of a library may repeat a URL with a password.
        object.__setattr__(self, "message", without_secrets(self.message))
        object.__setattr__(self, "detail", without_secrets(self.detail))


@dataclass
class Ledger:
    """Keeps track of which units are committed, in flight, pending or given up.

    Args:
        plan: The job.
        committed: Ids of the units that were committed before this driver started.
        row_blocks: Row blocks that this driver may assign, each once; at least ``row_blocks_needed`` of them.
        rollouts_per_assignment: Rollouts of a full assignment; a larger unit is an assignment of its own.

    Attributes:
        num_attempts: Number of attempts by unit id; units that were never attempted are missing.
        losses: Number of attempts with ``is_worker_fault`` by unit id.
        failed: Units that were given up, by unit id, with the last failure of each.
        last_failure: The last failure by unit id of every unit that failed and is not committed, given up or not.
        first_failure: The first failure that a unit may have caused: later ones are often consequences of it.
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
        # Largest units first, so that no long one is started at the end; the sort is stable.
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
            workers: Names of all ready workers; a unit that failed on this worker is kept for another of them.
            allow_suspect: Whether the worker may get a suspect, which requires that it holds no other unit.
            max_rollouts: Most rollouts, unless the first unit alone has more; None: ``rollouts_per_assignment``.

        Returns:
            The attempts, which are in flight from now on; empty when there is nothing to assign to this worker.
        """
        attempts: list[UnitAttempt] = []
        most = self.rollouts_per_assignment if max_rollouts is None else max_rollouts
        rollouts = 0
        while self._pending:
            unit_id = self._pending[0]
            # Suspects are always appended, so all units after the first suspect are suspects.
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
            # The unit was queued again because its worker seemed lost, and then the first attempt was committed.
            self._pending.remove(unit_id)
            if not was_suspect:
                self._fresh_rollouts -= self.plan.by_id[unit_id].num_rollouts
        self.committed.add(unit_id)

    def fail(self, failure: Failure, worker: str = "") -> bool:
        """Record a failed attempt.

        Args:
            failure: The attempt and why it failed.
            worker: Name of the worker on which it failed.

        Returns:
            Whether the unit will be retried; a suspect goes to the end of the queue, another unit to its front.
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
        if not failure.is_permanent and attempts - losses < MAX_FAILURES and attempts < MAX_ATTEMPTS:
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
        """Number of units that are assigned and neither committed nor failed."""
        return len(self._in_flight)

    @property
    def pending(self) -> int:
        """Number of units that wait to be assigned."""
        return len(self._pending)

    @property
    def assignments_left(self) -> float:
        """Pending rollouts in full assignments, without suspects, which are assigned one by one."""
        return self._fresh_rollouts / self.rollouts_per_assignment

    @property
    def is_over(self) -> bool:
        """Whether every unit is committed or given up."""
        return not self._in_flight and not self._pending


def row_blocks_needed(plan: Plan, committed: Iterable[str]) -> int:
    """Return the most row blocks that a driver can assign: one for each possible attempt at each missing unit.

    Args:
        plan: The job.
        committed: Ids of the committed units, which need none.
    """
    return MAX_ATTEMPTS * (len(plan.units) - len(set(committed) & set(plan.by_id)))
