"""Nodes that lose worker after worker are left out; units that kill their workers are not the node's fault."""

from __future__ import annotations

from persona_atlas.jobs.scheduling.node_health import MAX_DEATHS, WITHIN_S, NodeHealth


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
    health.refused("a", "no memory")
    assert health.left_out == {"a": "no memory"}


def test_three_deaths_within_an_hour_count_together_and_those_before_do_not():
    health = NodeHealth()
    told = [health.died("a", now, "gone", is_unit_suspect=False) for now in (0.0, 1.0, 3600.5, 3601.0)]
    assert told == [False, False, False, True]
