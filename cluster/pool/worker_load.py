"""What one worker holds, and whether it may be handed more. Pure; the rule of every pool."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ...jobs.units import UnitAttempt


@dataclass(frozen=True, slots=True)
class WorkRequest:
    """What a worker says when its engine has asked for all that it was handed.

    Only the worker knows: how many rollouts a batch holds hangs on their lengths, and a unit is held until the longest
    of its responses ends while the others left their places long before.

    Attributes:
        num_units: That it had been handed when it said so; what was handed to it since may already wait there.
    """

    num_units: int


@dataclass
class WorkerLoad:
    """Units that a worker was handed and has not answered.

    Attributes:
        rollouts: Of all of them.
    """

    rollouts: int = 0
    _attempts: dict[str, UnitAttempt] = field(default_factory=dict)
    _num_handed: int = 0
    _num_asked_for: int = 0

    def take(self, attempts: Sequence[UnitAttempt]) -> None:
        """Remember what it was handed."""
        self._attempts.update({attempt.unit.unit_id: attempt for attempt in attempts})
        self.rollouts += sum(attempt.unit.num_rollouts for attempt in attempts)
        self._num_handed += len(attempts)

    def answered(self, unit_id: str) -> UnitAttempt | None:
        """Forget, and give, a unit that it answered; None for one that it does not hold."""
        attempt = self._attempts.pop(unit_id, None)
        self.rollouts -= attempt.unit.num_rollouts if attempt is not None else 0
        return attempt

    def refused(self, attempts: Sequence[UnitAttempt]) -> None:
        """Forget what did not reach it, or what it would not take."""
        for attempt in attempts:
            self.answered(attempt.unit.unit_id)
        self._num_handed -= len(attempts)

    def note_request(self, said: WorkRequest) -> None:
        """Take note of what it said of itself."""
        self._num_asked_for = max(self._num_asked_for, said.num_units)

    @property
    def wants_work(self) -> bool:
        """Whether it has asked for all that it was handed."""
        return 0 < self._num_handed <= self._num_asked_for

    @property
    def attempts(self) -> list[UnitAttempt]:
        """All units that it holds."""
        return list(self._attempts.values())

    @property
    def is_empty(self) -> bool:
        """Whether it has nothing to do."""
        return not self._attempts

    @property
    def works_suspect(self) -> bool:
        """Whether it works a unit that may be to blame for an earlier failure; such a unit is an assignment alone."""
        return any(attempt.is_suspect for attempt in self._attempts.values())

    @property
    def takes_more(self) -> bool:
        """Whether it is at work and asks for more.

        Not beside a suspect: should that one take the worker with it, nothing else is to go.
        """
        return self.wants_work and not self.is_empty and not self.works_suspect
