"""Sums of parts in any order equal those of everything at once; memory is shared out so that it stays bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.moments import Moments
from persona_atlas.analysis.reduction import budget
from persona_atlas.analysis.reduction.group_sums import GroupSums, membership


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.sampled_from([0.0, 1e4, -3e6]))
def test_sums_of_shuffled_parts_equal_those_of_all_at_once(seed: int, num_parts: int, mean: float):
    rng = np.random.default_rng(seed)
    values_NLD = (mean + rng.standard_normal((24, 3, 8))).astype(np.float32)
    groups_N = rng.integers(0, 3, 24)
    sums = GroupSums(3, 3, 8)
    for rows in np.array_split(rng.permutation(24), num_parts):
        members = groups_N[rows]
        assert sums.add(0, values_NLD[rows].transpose(1, 0, 2).copy(), membership(members))
    for number, found in enumerate(sums.moments()):
        expected = Moments.of(values_NLD[groups_N == number])
        assert found.count == expected.count
        np.testing.assert_allclose(found.mean_LD, expected.mean_LD, rtol=1e-6, atol=1e-5)
        # Differences of neighbouring float32 of this mean are exact; the rest is rounding of float32 sums.
        np.testing.assert_allclose(found.m2_LD, expected.m2_LD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("d_model", [8, 577, 576, 4099, 3072])
@pytest.mark.parametrize("num_rows", [1, 7, 48])
def test_sums_are_right_whatever_the_width_and_the_number_of_rows(d_model: int, num_rows: int):
    rng = np.random.default_rng(d_model + num_rows)
    whole_LRD = (1e3 + rng.standard_normal((2, 50, d_model))).astype(np.float32)
    groups_N = rng.integers(0, 4, num_rows)
    sums = GroupSums(4, 2, d_model)
    # The rows of a unit that have a vector: a part of a row block.
    assert sums.add(0, whole_LRD.copy()[:, 1 : num_rows + 1], membership(groups_N))
    for number, found in enumerate(sums.moments()):
        expected = Moments.of(whole_LRD[:, 1 : num_rows + 1][:, groups_N == number].transpose(1, 0, 2))
        assert found.count == expected.count
        np.testing.assert_allclose(found.mean_LD, expected.mean_LD, rtol=1e-7)
        np.testing.assert_allclose(found.m2_LD, expected.m2_LD, rtol=1e-4, atol=1e-5)


def test_equal_vectors_have_their_mean_exactly_and_no_variance():
    values_LND = np.repeat(np.linspace(-9000, 7, 8, dtype=np.float32)[None, None], 12, axis=1)
    sums = GroupSums(1, 1, 8)
    for _ in range(3):
        assert sums.add(0, values_LND.copy(), membership(np.zeros(12, dtype=np.int64)))
    (found,) = sums.moments()
    assert found.count == 36
    np.testing.assert_array_equal(found.mean_LD, values_LND[:, 0])
    np.testing.assert_array_equal(found.m2_LD, np.zeros((1, 8)))


def test_nothing_that_is_no_number_is_added():
    values_LND = np.ones((1, 4, 8), dtype=np.float32)
    values_LND[0, 2, 5] = np.nan
    sums, groups = GroupSums(1, 1, 8), membership(np.zeros(4, dtype=np.int64))
    with np.errstate(invalid="ignore"):
        assert not sums.add(0, values_LND.copy(), groups)
    assert not sums.add_wide(0, values_LND, groups)
    assert sums.moments()[0].count == 0


MODELS = [(30, 576, 48), (46, 4608, 48), (64, 5120, 48), (80, 8192, 48), (126, 16384, 255), (4, 16, 3)]


@pytest.mark.parametrize(("num_layers", "d_model", "rows"), MODELS)
@pytest.mark.parametrize("num_groups", [0, 2, 10])
def test_the_passes_over_rollouts_stay_within_half_a_gibibyte(
    num_layers: int, d_model: int, rows: int, num_groups: int
):
    step = budget.layers_per_read(num_layers, rows, d_model, num_groups)
    threads = budget.threads(num_layers, rows, d_model, num_groups, num_cores=64)
    encoded = 16 * num_groups * num_layers * d_model
    # Rows as they are stored and as float32, sums, and what they are encoded to.
    per_thread = step * d_model * (4 * rows + 32 * num_groups) + encoded
    assert threads >= 1
    assert step >= 1
    assert threads * per_thread <= budget.ROW_PASS_BYTES or threads == 1
    assert per_thread <= 2**29


@pytest.mark.parametrize(("num_layers", "d_model", "rows"), MODELS)
def test_vectors_and_projections_of_a_group_of_layers_stay_within_their_share(num_layers: int, d_model: int, rows: int):
    step = budget.layers_of_vectors(num_layers, d_model, 275, 240)
    assert step == num_layers or step & (step - 1) == 0
    assert step == 1 or step * d_model * (275 * 48 + 240 * 48) <= budget.VECTOR_BYTES
    at_a_time = budget.layers_of_projections(num_layers, 908_400)
    assert at_a_time == 1 or at_a_time * 908_400 * 16 <= budget.PROJECTION_BYTES
