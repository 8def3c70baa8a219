"""Addresses, seeds and blocks: the small values that travel, and the one that must not."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.work.addresses import RolloutAddress

from fakes import block_of, small_plan

indices = st.integers(0, 10**6)
addresses = st.builds(
    RolloutAddress,
    st.sampled_from(["role", "trait", "default"]),
    st.sampled_from(["stoic", "pirate", "poet"]),
    st.sampled_from(["pos", "neg"]),
    indices,
    indices,
    indices,
)


@given(a=addresses, b=addresses, seed=st.integers(0, 2**63 - 1))
def test_rollouts_share_a_seed_only_when_they_are_the_same(a: RolloutAddress, b: RolloutAddress, seed: int):
    assert 0 <= a.seed(seed) < 2**63
    assert (a.seed(seed) == b.seed(seed)) == (a == b)
    assert a.seed(seed) != a.seed(seed ^ 1)


def test_a_seed_is_the_same_today_as_when_it_was_first_written_down():
    assert RolloutAddress("role", "pirate", "pos", 0, 0, 0).seed(0) == 2297965721928449948


def test_a_name_that_is_role_and_trait_has_two_seeds():
    role = RolloutAddress("role", "stoic", "pos", 0, 0, 0)
    trait = RolloutAddress("trait", "stoic", "pos", 0, 0, 0)
    assert role.seed(0) != trait.seed(0)


def test_a_block_refuses_to_travel_and_says_what_travels():
    plan = small_plan()
    with pytest.raises(TypeError, match="Send the attempt's manifest"):
        pickle.dumps(block_of(plan, plan.units[0].unit_id, 0))
