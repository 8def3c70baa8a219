"""Means by group equal numpy's, however the vectors are cut into batches, ordered and merged."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.moments import GroupedMeans


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
