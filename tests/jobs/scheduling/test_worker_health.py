"""Workers that fail everything are told from units that fail everywhere, and the hung from the slow."""

from __future__ import annotations

import pytest
from persona_atlas.jobs.scheduling.worker_health import (
    FAILURES_IN_A_ROW,
    OF_ONE_PERSONA,
    SILENCE_S,
    TIMES_THE_LONGEST,
    FailureStreaks,
    is_hung,
)


def told(streaks: FailureStreaks, worker: str, failures: int) -> list[bool]:
    return [streaks.is_broken(worker, f"role.{number}", failed=True) for number in range(failures)]


def test_a_worker_that_worked_and_then_fails_again_and_again_is_broken():
    streaks = FailureStreaks()
    assert not streaks.is_broken("a", "role.poet", failed=False)
    assert told(streaks, "a", FAILURES_IN_A_ROW) == [False] * (FAILURES_IN_A_ROW - 1) + [True]


def test_one_that_never_worked_is_broken_when_another_works_meanwhile():
    streaks = FailureStreaks()
    told(streaks, "a", FAILURES_IN_A_ROW - 1)
    assert not streaks.is_broken("b", "role.poet", failed=False)
    assert streaks.is_broken("a", "role.poet", failed=True)


def test_what_fails_for_everybody_is_nobodys_fault():
    streaks = FailureStreaks()
    for _ in range(3 * FAILURES_IN_A_ROW):
        assert not streaks.is_broken("a", "role.poet", failed=True)
        assert not streaks.is_broken("b", "role.poet", failed=True)


def test_the_units_of_one_persona_must_fail_for_longer_before_the_worker_is_blamed():
    streaks = FailureStreaks()
    streaks.is_broken("a", "role.pirate", failed=False)
    verdicts = [streaks.is_broken("a", "role.poet", failed=True) for _ in range(OF_ONE_PERSONA)]
    assert verdicts == [False] * (OF_ONE_PERSONA - 1) + [True]


@pytest.mark.parametrize(("num_personas", "expected"), [(2, 5), (1, 15)])
def test_five_failures_in_a_row_break_a_worker_or_fifteen_of_one_persona(num_personas: int, expected: int):
    streaks = FailureStreaks()
    streaks.is_broken("a", "role.pirate", failed=False)
    verdicts = [streaks.is_broken("a", f"role.{number % num_personas}", failed=True) for number in range(expected)]
    assert verdicts == [False] * (expected - 1) + [True]


@pytest.mark.parametrize(("longest_s", "limit_s"), [(1.0, 1800.0), (180.0, 1800.0), (600.0, 6000.0)])
def test_a_silent_worker_hangs_after_half_an_hour_or_ten_times_the_longest_silence(longest_s: float, limit_s: float):
    assert not is_hung(limit_s, longest_s)
    assert is_hung(limit_s + 0.001, longest_s)


def test_a_success_between_clears_a_worker():
    streaks = FailureStreaks()
    for _ in range(10):
        assert not any(told(streaks, "a", FAILURES_IN_A_ROW - 1))
        assert not streaks.is_broken("a", "role.poet", failed=False)


def test_a_replacement_that_fails_too_is_not_replaced_again_while_nothing_succeeds():
    streaks = FailureStreaks()
    streaks.is_broken("a", "role.poet", failed=False)
    assert told(streaks, "a", FAILURES_IN_A_ROW)[-1]
    assert not any(told(streaks, "a2", 3 * FAILURES_IN_A_ROW))


def test_silence_is_judged_by_the_longest_that_ended_well_and_never_without_one():
    assert not is_hung(10 * SILENCE_S, 0.0)
    assert not is_hung(SILENCE_S - 1, 1.0)
    assert is_hung(SILENCE_S + 1, 1.0)
    assert not is_hung(SILENCE_S + 1, SILENCE_S)
    assert is_hung(TIMES_THE_LONGEST * SILENCE_S + 1, SILENCE_S)
