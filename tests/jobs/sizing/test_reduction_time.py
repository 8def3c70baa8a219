"""What a reduction is estimated to take: in proportion to values, and nothing where there is nothing to reduce."""

from __future__ import annotations

import pytest
from persona_atlas.jobs.sizing.reduction_time import reduction_time

from fakes import small_plan, small_spec


def test_it_grows_with_rollouts_and_reads_each_twice():
    plan = small_plan()
    found = reduction_time(plan)
    assert found is not None
    values = plan.num_rollouts * 4 * 16
    assert 3e-9 < found.core_hours * 3600 / values < 8e-9
    assert 2 * values < found.read_bytes < 8 * values
    half = reduction_time(small_plan(small_spec(capture={"layers": [0, 1]})))
    assert half is not None
    assert half.core_hours == pytest.approx(found.core_hours / 2)


def test_without_the_default_or_without_a_pooled_array_there_is_none():
    roles = {"names": ["pirate"], "prompts": 1, "questions": 2}
    nobody = {"traits": {"names": []}, "default": {"prompts": 0}}
    assert reduction_time(small_plan(small_spec(personas={"roles": roles} | nobody))) is None
    tokens = {"poolings": ["tokens"], "token_layers": [1]}
    assert reduction_time(small_plan(small_spec(capture=tokens))) is None
