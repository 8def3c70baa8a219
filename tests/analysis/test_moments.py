"""Moments equal numpy's, however the vectors are cut into batches, ordered and merged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.moments import Moments


def assert_moments(found: Moments, values_NLD: np.ndarray) -> None:
    values_NLD = values_NLD.astype(np.float64)
    size = float(np.abs(values_NLD).max())
    assert found.count == len(values_NLD)
    np.testing.assert_allclose(found.mean_LD, values_NLD.mean(axis=0), rtol=1e-12, atol=1e-13 * size)
    # A spread of one part in a million of the mean keeps six digits, where sums of squares would keep none.
    np.testing.assert_allclose(found.m2_LD, len(values_NLD) * values_NLD.var(axis=0), rtol=1e-6, atol=1e-18 * size**2)


@settings(max_examples=60, deadline=None)
@given(count=st.integers(1, 90), offset=st.sampled_from([0.0, 1.0, 1e6]), data=st.data())
def test_parts_merge_to_the_whole_in_any_cutting_order_and_nesting(count: int, offset: float, data: st.DataObject):
    rng = np.random.default_rng(count)
    values_NLD = (offset + rng.standard_normal((count, 2, 3))).astype(np.float32)
    part_of = np.array(data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count)))
    parts = [Moments.of(values_NLD[part_of == part]) for part in data.draw(st.permutations(range(5)))]
    from_left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3]).merge(parts[4])
    from_right = parts[0].merge(parts[1].merge(parts[2].merge(parts[3].merge(parts[4]))))
    for found in (from_left, from_right, Moments.of(values_NLD), Moments.of(rng.permutation(values_NLD))):
        assert_moments(found, values_NLD)


def test_the_variance_has_n_less_one_below_and_needs_two():
    values_NLD = np.random.default_rng(0).standard_normal((40, 2, 3))
    found = Moments.of(values_NLD)
    np.testing.assert_allclose(found.variance(), values_NLD.var(axis=0, ddof=1))
    np.testing.assert_allclose(
        found.total_variance(), [np.trace(np.cov(values_NLD[:, layer], rowvar=False)) for layer in range(2)]
    )
    for few in (Moments.of(values_NLD[:1]), Moments.empty(2, 3)):
        assert np.isnan(few.variance()).all()
        assert np.isnan(few.total_variance()).all()


def test_no_vectors_have_no_mean_and_change_nothing():
    nothing, some = Moments.of(np.empty((0, 2, 3), dtype=np.float32)), Moments.of(np.ones((4, 2, 3)))
    assert nothing.count == 0
    assert np.isnan(nothing.mean_LD).all()
    for merged in (nothing.merge(some), some.merge(nothing)):
        assert merged.count == 4
        np.testing.assert_array_equal(merged.mean_LD, some.mean_LD)
    assert nothing.merge(nothing).count == 0
    assert np.isnan(nothing.merge(nothing).mean_LD).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_spoils_its_own_coordinate_alone(value: float):
    values_NLD = np.random.default_rng(1).standard_normal((50, 2, 3)).astype(np.float32)
    whole = Moments.of(values_NLD)
    values_NLD[40, 1, 2] = value
    spoilt = np.zeros((2, 3), dtype=bool)
    spoilt[1, 2] = True
    for found in (Moments.of(values_NLD), Moments.of(values_NLD[:30]).merge(Moments.of(values_NLD[30:]))):
        for got, expected in ((found.mean_LD, whole.mean_LD), (found.variance(), whole.variance())):
            assert np.isnan(got[spoilt]).all()
            np.testing.assert_allclose(got[~spoilt], expected[~spoilt], rtol=1e-9)


def test_moments_of_other_shapes_are_not_merged():
    with pytest.raises(ValueError, match="cannot be merged"):
        Moments.empty(2, 3).merge(Moments.of(np.ones((1, 2, 4))))
