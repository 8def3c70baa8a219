"""The units that one worker holds, and whether it may be assigned more. Pure; shared by all executors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..work.units import UnitAttempt


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """A worker requests work: its engine has pulled every unit that the worker was assigned.

    Only the worker knows when that happens. The number of rollouts in a batch depends on their lengths, and a unit is
    in flight until its longest response ends, long after its other responses have freed their slots.

    Attributes:
        num_units: Number of units that had been assigned to the worker, since it started, when it sent this. A number
            and not a flag, because an assignment may be on its way when the request is sent: the pool ignores a request
            that does not cover all assignments it has made.
    """

    num_units: int


@dataclass
class WorkerLoad:
    """The units that a worker was assigned and has not answered.

    Attributes:
        rollouts: Number of rollouts of all these units.
    """

    rollouts: int = 0
    _attempts: dict[str, UnitAttempt] = field(default_factory=dict)
    _num_assigned: int = 0
    _num_requested_after: int = 0

    def take(self, attempts: Sequence[UnitAttempt]) -> None:
        """Record an assignment."""
        self._attempts.update({attempt.unit.unit_id: attempt for attempt in attempts})
        self.rollouts += sum(attempt.unit.num_rollouts for attempt in attempts)
        self._num_assigned += len(attempts)

    def answered(self, unit_id: str) -> UnitAttempt | None:
        """Remove a unit that the worker has answered.

        Args:
            unit_id: The unit.

        Returns:
            Its attempt; None when the worker does not hold the unit.
        """
        attempt = self._attempts.pop(unit_id, None)
        self.rollouts -= attempt.unit.num_rollouts if attempt is not None else 0
        return attempt

    def rejected(self, attempts: Sequence[UnitAttempt]) -> None:
        """Undo an assignment that did not reach the worker, or that it could not accept."""
        for attempt in attempts:
            self.answered(attempt.unit.unit_id)
        self._num_assigned -= len(attempts)

    def note_request(self, request: WorkRequest) -> None:
        """Record a request for work; an older request that arrives late has no effect."""
        self._num_requested_after = max(self._num_requested_after, request.num_units)

    @property
    def wants_work(self) -> bool:
        """Whether the worker has requested work since its last assignment."""
        return 0 < self._num_assigned <= self._num_requested_after

    @property
    def attempts(self) -> list[UnitAttempt]:
        """Attempts at all units that it holds, in the order of assignment."""
        return list(self._attempts.values())

    @property
    def is_empty(self) -> bool:
        """Whether it holds no unit."""
        return not self._attempts

    @property
    def has_suspect(self) -> bool:
        """Whether it holds a suspect: a unit that has failed before."""
        return any(attempt.is_suspect for attempt in self._attempts.values())

    @property
    def takes_more(self) -> bool:
        """Whether the worker is busy, has requested work and may get some.

        A worker with a suspect gets nothing else: if the suspect brings the worker down, no other unit is lost.
        """
        return self.wants_work and not self.is_empty and not self.has_suspect
