"""The front, the choice on it, and the intervals of changes: planted worlds come back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.analysis.pareto.changes import Change, mean_changes, normal_changes, paired_changes
from persona_atlas.analysis.pareto.front import PLAIN_POINT, ParetoPoint, choose, front_of, front_shares, on_front

_grid = st.sampled_from([-0.5, -0.25, -0.1, 0.0, 0.1])


def point(name: str, harm: float, capability: float, width: int = 4) -> ParetoPoint:
    return ParetoPoint(name, (10, 10 + width), "p0.25", exactly(harm), exactly(capability))


def exactly(value: float) -> Change:
    return Change(value, value, value)


PLANTED = [
    point("layers_10:14-p0.5", -0.20, 0.00),
    point("layers_10:14-p0.25", -0.35, -0.02),
    point("layers_12:16-p0.25", -0.35, -0.04),
    point("layers_12:16-p0.5", -0.10, 0.01),
    point("layers_8:12-p0.25", -0.50, -0.20),
    point("layers_8:12-p0.5", 0.05, -0.01),
]


def test_a_planted_front_comes_back_exactly():
    front = front_of([PLAIN_POINT, *PLANTED])
    assert [one.name for one in front] == [
        "layers_12:16-p0.5",
        "layers_10:14-p0.5",
        "layers_10:14-p0.25",
        "layers_8:12-p0.25",
    ]


def test_points_that_are_equal_share_the_front():
    twins = [point("one", -0.2, 0.0), point("other", -0.2, 0.0), point("worse", -0.2, -0.1)]
    assert [one.name for one in front_of(twins)] == ["one", "other"]
    assert on_front([], []).tolist() == []


@given(st.lists(st.tuples(_grid, _grid), min_size=1, max_size=12))
def test_the_front_is_what_nothing_dominates(values: list[tuple[float, float]]):
    harm, capability = zip(*values, strict=True)
    expected = [not any(h <= a and c >= b and (h, c) != (a, b) for h, c in values) for a, b in values]
    assert on_front(harm, capability).tolist() == expected
    assert any(expected)


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        on_front([0.0, math.nan], [0.0, 0.0])
    with pytest.raises(ValueError, match="not a finite number"):
        Change(math.nan, 0, 0)
    with pytest.raises(ValueError, match="not a finite number"):
        paired_changes(np.array([[math.nan, 1.0]]), np.array([0.0, math.nan])).of(0)
    with pytest.raises(ValueError, match="tolerance"):
        choose(PLANTED, -0.1)


@pytest.mark.parametrize(
    ("tolerance", "name"),
    [(0.0, "layers_10:14-p0.5"), (0.02, "layers_10:14-p0.25"), (0.3, "layers_8:12-p0.25")],
)
def test_the_largest_reduction_within_the_tolerance_is_chosen(tolerance: float, name: str):
    chosen = choose([PLAIN_POINT, *PLANTED], tolerance)
    assert chosen is not None
    assert chosen.name == name


def test_of_equal_points_the_one_with_fewer_layers_is_chosen_and_none_where_nothing_helps():
    wide, narrow = point("wide", -0.2, 0.0, width=8), point("narrow", -0.2, 0.0)
    assert choose([wide, narrow], 0) is narrow
    assert choose([PLAIN_POINT, point("more harm", 0.0, 0.5), point("too dear", -0.5, -0.5)], 0.1) is None


def test_a_change_that_all_items_share_is_told_although_items_differ_widely():
    random = np.random.default_rng(3)
    plain_P = random.uniform(0, 1, 400)
    changes = paired_changes(np.stack([plain_P - 0.3, plain_P]), plain_P)
    assert changes.of(0).value == pytest.approx(-0.3)
    assert (changes.of(0).low, changes.of(0).high) == pytest.approx((-0.3, -0.3)), "what an item contributes cancels"
    assert changes.of(1) == exactly(0.0)


def test_the_interval_of_a_paired_change_is_that_of_its_mean():
    random = np.random.default_rng(4)
    difference_P = random.normal(0.1, 0.5, 900)
    found = paired_changes(difference_P[None], np.zeros(900)).of(0)
    half = 1.96 * difference_P.std() / 30
    assert found.value == pytest.approx(difference_P.mean())
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), abs=0.15 * half)


def test_an_item_without_a_value_counts_for_no_setting_that_lacks_it():
    rates_SP = np.array([[0.0, math.nan, 1.0], [0.0, 0.0, 0.0]])
    found = paired_changes(rates_SP, np.array([1.0, 1.0, math.nan]))
    assert found.value_S.tolist() == [-1.0, -1.0]


def test_tasks_count_the_same_and_their_errors_average():
    one = normal_changes(np.array([0.2]), np.array([0.03]), seed=1)
    other = normal_changes(np.array([0.0]), np.array([0.04]), seed=2)
    found = mean_changes([one, other])
    assert found.of(0).value == pytest.approx(0.1)
    assert found.samples_SB.std() == pytest.approx(0.05 / 2, rel=0.05)


def test_how_often_a_setting_is_on_the_front_tells_a_clear_one_from_a_doubtful_one():
    # The second has the same harm as the first; which of both has more capability is open.
    harm = normal_changes(np.array([-0.3, -0.3, 0.2]), np.zeros(3))
    capability = normal_changes(np.array([0.0, 0.001, -0.2]), np.array([0.02, 0.02, 0.001]), seed=1)
    first, second, bad, plain = front_shares(harm, capability)
    assert 0.4 < first < 0.6
    assert first + second == pytest.approx(1, abs=0.01)
    assert bad == 0
    assert plain == pytest.approx(0.25, abs=0.05), "where both cost capability"
    unknown = paired_changes(np.array([[math.nan]]), np.zeros(1))
    assert np.isnan(front_shares(unknown, normal_changes(np.zeros(1), np.zeros(1)))).all()
