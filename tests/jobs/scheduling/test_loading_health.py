"""Workers that cannot load the model: when another is tried, and when the job is given up."""

from __future__ import annotations

from typing import Any

import pytest
from persona_atlas.jobs.scheduling.loading_health import (
    LATE_REFUSALS,
    LOADING_DEATHS,
    LONGEST_PAUSE_S,
    REFUSALS,
    LoadingHealth,
    Refusal,
)


def die(health: LoadingHealth, times: int, num_wanted: int = 1, loading_s: float = 5.0, **how: Any) -> list[bool]:
    facts: dict[str, Any] = {"is_any_ready": False, "others_s": 0.0} | how
    return [health.died_loading(num_wanted, loading_s, **facts) for _ in range(times)]


def refuse(health: LoadingHealth, times: int, **how: bool) -> list[Refusal]:
    facts = {"is_retryable": False, "is_room_elsewhere": True, "is_any_placed": False} | how
    return [health.refused(**facts) for _ in range(times)]


def test_the_job_is_given_up_at_the_third_refusal_in_a_row_and_not_before():
    assert refuse(LoadingHealth(), REFUSALS) == [Refusal.LEAVE_OUT_NODE] * 2 + [Refusal.GIVE_UP]


def test_a_refusal_that_may_pass_is_retried_where_it_was_and_given_up_at_the_twentieth():
    told = refuse(LoadingHealth(), LATE_REFUSALS, is_retryable=True, is_room_elsewhere=False)
    assert told == [Refusal.RETRY_LATER] * 19 + [Refusal.GIVE_UP]


def test_once_a_worker_was_ready_a_refusal_is_this_machines_trouble_for_twenty_times():
    health = LoadingHealth()
    health.loaded()
    assert refuse(health, LATE_REFUSALS, is_room_elsewhere=False) == [Refusal.LEAVE_OUT_NODE] * 19 + [Refusal.GIVE_UP]


def test_where_no_other_node_has_room_the_first_refusal_is_the_last():
    assert refuse(LoadingHealth(), 1, is_room_elsewhere=False) == [Refusal.GIVE_UP]


@pytest.mark.parametrize("is_room_elsewhere", [True, False])
def test_nothing_is_given_up_while_another_worker_loads_or_works(is_room_elsewhere: bool):
    told = refuse(LoadingHealth(), 2 * LATE_REFUSALS, is_room_elsewhere=is_room_elsewhere, is_any_placed=True)
    assert set(told) == {Refusal.LEAVE_OUT_NODE}


def test_a_worker_that_loads_clears_the_refusals_and_the_deaths():
    health = LoadingHealth()
    for _ in range(5):
        assert Refusal.GIVE_UP not in refuse(health, REFUSALS - 1)
        assert not any(die(health, LOADING_DEATHS - 1))
        health.loaded()


@pytest.mark.parametrize("num_wanted", [1, 4])
def test_deaths_while_loading_end_the_job_at_three_for_each_wanted_worker(num_wanted: int):
    health = LoadingHealth()
    told = die(health, LOADING_DEATHS * num_wanted, num_wanted)
    assert told == [False] * (3 * num_wanted - 1) + [True]


def test_deaths_while_loading_end_no_job_in_which_a_worker_is_ready():
    health = LoadingHealth()
    assert not any(die(health, 100, is_any_ready=True))
    assert die(health, 1) == [True]


def test_deaths_while_loading_end_no_job_in_which_another_has_been_loading_for_longer_than_they_did():
    health = LoadingHealth()
    assert not any(die(health, 100, loading_s=5.0, others_s=6.0))
    # One that is as young as those that died may die as they did, and so may all once one has died so late.
    assert die(health, 1, loading_s=5.0, others_s=5.0) == [True]
    assert die(health, 1, loading_s=30.0, others_s=6.0) == [True]
    assert die(health, 1, loading_s=5.0, others_s=20.0) == [True]
    health.loaded()
    assert not any(die(health, 100, loading_s=5.0, others_s=20.0))


def test_pauses_double_up_to_a_minute_and_begin_anew_when_a_worker_is_placed():
    health = LoadingHealth()
    assert [health.died_unplaced() for _ in range(8)] == [2, 4, 8, 16, 32, 60, 60, 60]
    assert LONGEST_PAUSE_S == 60
    assert {health.died_unplaced() for _ in range(2000)} == {60}
    health.placed()
    assert health.died_unplaced() == 2
