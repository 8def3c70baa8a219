"""What one worker holds, and whether it may be assigned more. Pure; the rule is the same for every pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..units import UnitAttempt


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """A worker asks for more work: its engine has pulled every unit that the worker was assigned.

    Only the worker can tell when that happens. How many rollouts a batch holds depends on their lengths, and a unit
    stays in flight until the longest of its responses ends, long after the others have freed their slots.

    Attributes:
        num_units: Units that the worker had been assigned, since it started, when it sent this. A number and not just
            a flag, because an assignment may cross the request on its way: the pool compares it with what it has
            assigned since.
    """

    num_units: int


@dataclass
class WorkerLoad:
    """Units that a worker was assigned and has not answered.

    Attributes:
        rollouts: Rollouts of these units, all together.
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
        """Record that the worker asked for more; a request that arrives late takes nothing back."""
        self._num_requested_after = max(self._num_requested_after, request.num_units)

    @property
    def wants_work(self) -> bool:
        """Whether the worker has asked for more since its last assignment."""
        return 0 < self._num_assigned <= self._num_requested_after

    @property
    def attempts(self) -> list[UnitAttempt]:
        """All units that it holds, in the order of their assignment."""
        return list(self._attempts.values())

    @property
    def is_empty(self) -> bool:
        """Whether it holds no unit."""
        return not self._attempts

    @property
    def has_suspect(self) -> bool:
        """Whether it holds a suspect: a unit that may be to blame for an earlier failure."""
        return any(attempt.is_suspect for attempt in self._attempts.values())

    @property
    def takes_more(self) -> bool:
        """Whether the worker is at work, asks for more and may have it.

        Nothing is assigned beside a suspect: if the suspect takes the worker down, no other unit is lost with it.
        """
        return self.wants_work and not self.is_empty and not self.has_suspect
