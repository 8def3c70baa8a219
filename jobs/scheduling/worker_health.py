"""When a worker that lives is of no use: it fails whatever it is given, or has fallen silent.

A process whose GPU context is broken answers every unit with an error, at once, and would eat the queue. Units are not
to pay for that: such a worker is replaced, as one that died is. Pure: facts in, verdicts out; knows no clock.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

FAILURES_IN_A_ROW = 5
"""So many, of two personas or more, with no success between, and a worker is suspected."""

OF_ONE_PERSONA = 15
"""So many, where all are of one: a persona may be at fault in each of its units."""

SILENCE_S = 1800.0
"""No worker is taken for hung sooner; one that waits for a store that is away is silent for ten minutes and more."""

TIMES_THE_LONGEST = 10
"""Nor before it has been silent for so many times the longest silence that ended with an answer."""


@dataclass
class FailureStreaks:
    """Counts each worker's failures in a row.

    A suspect is only broken when units do succeed elsewhere, or did with it before: what fails everywhere from the
    first unit on is the job's fault, and no other worker would mend it.
    """

    _in_a_row: dict[str, list[str]] = field(default_factory=dict)
    _succeeded_before: dict[str, int] = field(default_factory=dict)
    _successes: Counter[str] = field(default_factory=Counter)

    def is_broken(self, worker: str, persona: str, failed: bool) -> bool:
        """Take note of how one unit went, and say whether its worker is to be replaced.

        Args:
            worker: Who worked it.
            persona: Whose unit it was.
            failed: Whether it failed.
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
        silent_s: Since it was given something to do, or last answered.
        longest_s: The longest such time, of any worker, that ended with an answer; 0 when there was none yet, and then
            nothing is known of how long a unit takes.
    """
    return longest_s > 0 and silent_s > max(SILENCE_S, TIMES_THE_LONGEST * longest_s)
