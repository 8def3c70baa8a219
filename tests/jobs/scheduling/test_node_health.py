"""Nodes that lose worker after worker are left out; units that kill their workers are not the node's fault."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.scheduling.node_health import FIRST_REST_S, MAX_DEATHS, RESTS, WITHIN_S, NodeHealth


def test_a_node_is_left_out_at_the_third_death_and_not_before():
    health = NodeHealth()
    told = [health.died("a", 10.0 * i, "gone", is_unit_suspect=False) for i in range(MAX_DEATHS)]
    assert told == [False] * (MAX_DEATHS - 1) + [True]
    assert list(health.left_out) == ["a"]
    assert "gone" in health.left_out["a"]
    assert not health.died("a", 100.0, "again", is_unit_suspect=False)


def test_deaths_far_apart_and_deaths_on_other_nodes_do_not_add_up():
    health = NodeHealth()
    for i in range(10):
        assert not health.died("a", i * WITHIN_S, "gone", is_unit_suspect=False)
        assert not health.died(f"b{i}", i * WITHIN_S, "gone", is_unit_suspect=False)
    assert not health.left_out


def test_a_unit_that_failed_before_is_suspected_rather_than_the_node():
    health = NodeHealth()
    for i in range(10):
        assert not health.died("a", float(i), "gone", is_unit_suspect=True)
    assert not health.left_out


def test_a_node_that_cannot_hold_the_model_is_left_out_at_once():
    health = NodeHealth()
    health.refused("a", "no memory", 0.0)
    assert health.left_out == {"a": "no memory"}


def test_three_deaths_within_an_hour_count_together_and_those_before_do_not():
    health = NodeHealth()
    told = [health.died("a", now, "gone", is_unit_suspect=False) for now in (0.0, 1.0, 3600.5, 3601.0)]
    assert told == [False, False, False, True]


def test_a_node_that_has_run_a_worker_rests_for_ever_longer_before_it_is_left_out():
    health = NodeHealth()
    health.loaded("a")
    now = 0.0
    for rest_s in (30.0, 60.0, 120.0):
        health.refused("a", "no memory.", now)
        assert health.excluded == {"a": "no memory. It is tried again later."}
        assert not health.wake(now + rest_s - 0.1)
        assert health.wake(now + rest_s)
        assert health.excluded == {}
        now += rest_s
    health.refused("a", "no memory.", now)
    assert health.excluded == health.left_out == {"a": "no memory."}
    assert not health.wake(now + 10_000.0)


@given(st.lists(st.sampled_from(["loads", "refuses", "refuses at once", "waits"]), max_size=40))
def test_only_refusals_after_rests_count_and_a_worker_that_loads_clears_them(events: list[str]):
    health, now, in_a_row, is_proven, is_out = NodeHealth(), 0.0, 0, False, False
    for event in events:
        if event == "waits":
            now += FIRST_REST_S * 2**RESTS
            health.wake(now)
        elif event == "loads" and "a" not in health.excluded:
            health.loaded("a")
            is_proven, in_a_row = True, 0
        elif event == "refuses" and "a" not in health.excluded:
            health.refused("a", "no memory.", now)
            in_a_row += 1
            is_out = not is_proven or in_a_row > RESTS
        elif event == "refuses at once" and "a" in health.excluded and in_a_row < RESTS:
            # One that was placed together with the one before.
            health.refused("a", "no memory.", now)
        assert ("a" in health.left_out) == is_out
