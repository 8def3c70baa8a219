"""What a reduction is estimated to take: in proportion to values, and nothing where there is nothing to reduce."""

from __future__ import annotations

import pytest
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.sizing.reduction_time import reduction_time

from fakes import small_plan, small_spec


def of_roles(names: list[str], questions: int) -> Plan:
    """Four layers of 16 values."""
    counts = {"prompts": 2, "questions": questions}
    traits = {"names": ["anxious"], **counts}
    return small_plan(small_spec(personas={"roles": {"names": names, **counts}, "traits": traits, "default": counts}))


def core_s(plan: Plan) -> float:
    found = reduction_time(plan)
    assert found is not None
    return found.core_hours * 3600


def test_it_grows_with_rollouts_and_reads_each_twice():
    few, many = of_roles(["pirate", "poet"], 3), of_roles(["pirate", "poet"], 30)
    values = (many.num_rollouts - few.num_rollouts) * 4 * 16
    assert values > 10_000
    assert 3e-9 < (core_s(many) - core_s(few)) / values < 8e-9
    found = reduction_time(many)
    assert found is not None
    assert 2 < found.read_bytes / (many.num_rollouts * 4 * 16) < 8


def test_it_grows_with_layers_and_with_personas_whatever_their_rollouts():
    few, many = of_roles(["pirate"], 30), of_roles(["pirate", "poet", "teacher"], 10)
    assert core_s(many) > core_s(few)
    half = small_plan(small_spec(capture={"layers": [0, 1]}))
    assert core_s(half) == pytest.approx(core_s(small_plan()) / 2)


def test_without_the_default_or_without_a_pooled_array_there_is_none():
    roles = {"names": ["pirate"], "prompts": 1, "questions": 2}
    nobody = {"traits": {"names": []}, "default": {"prompts": 0}}
    assert reduction_time(small_plan(small_spec(personas={"roles": roles} | nobody))) is None
    tokens = {"poolings": ["tokens"], "token_layers": [1]}
    assert reduction_time(small_plan(small_spec(capture=tokens))) is None
