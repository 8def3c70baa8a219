"""Detect workers that are alive but useless: those that fail every unit, and those that no longer answer.

A process with a broken GPU context fails every unit immediately, and would use up the attempts of the whole queue. Such
a worker is replaced like one that died, and the units that it still holds are not charged with a failure. Pure:
observations in, decisions out; has no clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..work.units import UnitAttempt

FAILURES_IN_A_ROW = 5
"""A worker is suspected after this many failures in a row with units of two or more personas."""

OF_ONE_PERSONA = 15
"""The same limit if all are units of one persona, because that persona may be the cause in each of them."""

SILENCE_S = 1800.0
"""Least silence after which a worker counts as hung. While the store is unreachable, a healthy worker may be silent for
more than ten minutes."""

TIMES_THE_LONGEST = 10
"""A worker counts as hung only if its silence is also this many times the longest one that ended with an answer."""


@dataclass
class FailureStreaks:
    """Counts each worker's failures in a row.

    A suspected worker is broken only if units succeed on other workers in the meantime, or succeeded on this one
    before. If every unit fails everywhere, the job is the cause, and another worker would not help.
    """

    _in_a_row: dict[str, list[str]] = field(default_factory=dict)
    _succeeded_before: dict[str, int] = field(default_factory=dict)
    _successes: Counter[str] = field(default_factory=Counter)

    def is_broken(self, worker: str, persona: str, failed: bool) -> bool:
        """Record how one unit ended, and return whether its worker must be replaced.

        Args:
            worker: Name of the worker.
            persona: Kind and name of the unit's persona.
            failed: Whether the unit failed.
        """
        if not failed:
            self._in_a_row.pop(worker, None)
            self._successes[worker] += 1
            return False
        if worker not in self._in_a_row:
            self._succeeded_before[worker] = self._successes.total()
        failures = self._in_a_row.setdefault(worker, [])
        failures.append(persona)
        if len(failures) < (FAILURES_IN_A_ROW if len(set(failures)) > 1 else OF_ONE_PERSONA):
            return False
        has_worked = self._successes[worker] > 0
        return has_worked or self._successes.total() > self._succeeded_before[worker]

    def ends_broken(self, worker: str, attempts: Sequence[UnitAttempt], failed: Sequence[bool]) -> bool:
        """Record how several units ended, and return whether their worker must be replaced after the last of them.

        Args:
            worker: Name of the worker.
            attempts: The attempts at the units.
            failed: Whether each failed.
        """
        # All are recorded, even after the first that is broken. The failure of a suspect says nothing about its worker.
        verdicts = [
            self.is_broken(worker, f"{attempt.unit.kind}.{attempt.unit.persona}", has_failed)
            for attempt, has_failed in zip(attempts, failed, strict=True)
            if not (attempt.is_suspect and has_failed)
        ]
        return bool(verdicts) and verdicts[-1]


def is_hung(silent_s: float, longest_s: float) -> bool:
    """Return whether a worker that holds units is presumed to hang.

    Args:
        silent_s: Seconds since it was assigned work or last answered.
        longest_s: The longest such time of any worker that ended with an answer. 0 when there was none yet: the
            duration of a unit is then unknown, and no worker counts as hung.
    """
    return longest_s > 0 and silent_s > max(SILENCE_S, TIMES_THE_LONGEST * longest_s)
