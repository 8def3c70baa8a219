"""Moments equal numpy's, however the vectors are cut into batches, ordered and merged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.moments import GroupedMeans, Moments


def means_by_hand(groups: list[str], values_NLD: np.ndarray) -> dict[str, np.ndarray]:
    return {
        group: values_NLD[[g == group for g in groups]].astype(np.float64).mean(axis=0) for group in sorted(set(groups))
    }


def assert_means(found: GroupedMeans, groups: list[str], values_NLD: np.ndarray) -> None:
    expected = means_by_hand(groups, values_NLD)
    means = found.finish()
    assert set(means) == set(expected)
    for group, mean_LD in expected.items():
        assert found.counts[group] == groups.count(group)
        np.testing.assert_allclose(means[group], mean_LD, rtol=1e-12, atol=1e-12 * float(np.abs(values_NLD).max()))


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.sampled_from(["pirate", "poet", "teacher"]), min_size=1, max_size=30),
    scale=st.sampled_from([1e-3, 1.0, 1e6]),
    data=st.data(),
)
def test_any_cutting_and_any_order_of_merging_equals_adding_all(groups: list[str], scale: float, data: st.DataObject):
    rng = np.random.default_rng(len(groups))
    values_NLD = (scale * (5 + rng.standard_normal((len(groups), 2, 3)))).astype(np.float32)
    part_of = data.draw(st.lists(st.integers(0, 3), min_size=len(groups), max_size=len(groups)))
    parts: list[GroupedMeans] = []
    for part in data.draw(st.permutations(range(4))):
        rows = [n for n, mine in enumerate(part_of) if mine == part]
        gathered = GroupedMeans()
        gathered.add([groups[n] for n in rows], values_NLD[rows])
        parts.append(gathered)
    at_once = GroupedMeans()
    at_once.add(groups, values_NLD)
    assert_means(at_once, groups, values_NLD)
    a, b, c, d = parts
    assert_means(a.merge(b).merge(c).merge(d), groups, values_NLD)
    assert_means(a.merge(b.merge(c.merge(d))), groups, values_NLD)


def test_merging_and_adding_on_change_neither_side():
    left, right = GroupedMeans(), GroupedMeans()
    left.add(["a"], np.ones((1, 1, 2), np.float32))
    right.add(["a", "b"], np.full((2, 1, 2), 3, np.float32))
    merged = left.merge(right)
    merged.add(["a", "b"], np.full((2, 1, 2), 100, np.float32))
    assert left.finish()["a"].tolist() == [[1, 1]]
    assert right.finish()["a"].tolist() == right.finish()["b"].tolist() == [[3, 3]]
    assert (left.counts, right.counts) == ({"a": 1}, {"a": 1, "b": 1})


def test_the_mean_of_batches_of_different_sizes_weighs_rollouts_not_batches():
    gathered = GroupedMeans()
    gathered.add(["a"] * 3, np.zeros((3, 1, 1), np.float32))
    gathered.add(["a"], np.full((1, 1, 1), 4, np.float32))
    assert gathered.finish()["a"].tolist() == [[1.0]]


def test_sums_are_float64_whatever_comes_in():
    gathered = GroupedMeans()
    gathered.add(["a"], np.full((1, 1, 1), 1e8, np.float32))
    for _ in range(100):
        gathered.add(["a"], np.ones((1, 1, 1), np.float32))
    assert gathered.finish()["a"].item() == (1e8 + 100) / 101


def test_nothing_added_gives_no_means():
    assert GroupedMeans().merge(GroupedMeans()).finish() == {}


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
