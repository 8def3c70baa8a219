"""When a worker that is alive is of no use: it fails every unit it is given, or no longer answers.

A process whose GPU context is broken answers every unit with an error at once, and would use up the attempts of the
whole queue. Such a worker is replaced, as one that died is, at no cost to the units it still holds. Pure: facts in,
verdicts out; knows no clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

FAILURES_IN_A_ROW = 5
"""A worker is suspected after this many failures, of two personas or more, without a success between."""

OF_ONE_PERSONA = 15
"""The same where all are of one persona, because a persona may be at fault in each of its units."""

SILENCE_S = 1800.0
"""No worker counts as hung before it was silent for this long: while the store is away, a healthy worker is silent for
ten minutes and more."""

TIMES_THE_LONGEST = 10
"""Nor before its silence is this many times the longest one that ended with an answer."""


@dataclass
class FailureStreaks:
    """Counts each worker's failures in a row.

    A suspected worker is broken only if units succeed on other workers meanwhile, or did on this one before. What fails
    everywhere from the first unit on is the job's fault, and no other worker would help.
    """

    _in_a_row: dict[str, list[str]] = field(default_factory=dict)
    _succeeded_before: dict[str, int] = field(default_factory=dict)
    _successes: Counter[str] = field(default_factory=Counter)

    def is_broken(self, worker: str, persona: str, failed: bool) -> bool:
        """Record how one unit ended, and say whether its worker is to be replaced.

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


def is_hung(silent_s: float, longest_s: float) -> bool:
    """Say whether a worker that has been given work will never answer.

    Args:
        silent_s: Seconds since it was given something to do, or last answered.
        longest_s: The longest such time, of any worker, that ended with an answer; 0 when there was none yet: then
            nobody knows how long a unit takes, and no worker is hung.
    """
    return longest_s > 0 and silent_s > max(SILENCE_S, TIMES_THE_LONGEST * longest_s)
