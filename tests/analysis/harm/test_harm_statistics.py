"""Correlation of projection and harm in planted worlds, rates of harm in bins, and paired changes of a rate."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.harm.after_drift import harm_after_drift
from persona_atlas.analysis.harm.changes import paired_change, paired_interval
from persona_atlas.analysis.harm.correlation import (
    correlation_over_roles,
    correlation_over_rollouts,
    mean_ranks,
)
from persona_atlas.analysis.harm.harm_numbers import harm_numbers
from persona_atlas.analysis.harm.rates import harm_by_bin, harm_by_role
from persona_atlas.analysis.sweeping.intervals import wilson_interval
from persona_atlas.jobs.errors import InputError

from made_turns import made_turns


def world(slope: float, num_roles: int = 60, per_role: int = 10, seed: int = 0):
    """Roles whose projections differ; the log odds of harm fall by ``slope`` with each unit of the projection."""
    rng = np.random.default_rng(seed)
    of_role_R = rng.normal(0, 1, num_roles)
    role_N = np.repeat(np.arange(num_roles), per_role)
    projection_N = of_role_R[role_N] + rng.normal(0, 0.5, len(role_N))
    # Roles differ in harm beyond their projection, so that rollouts of one role are not independent.
    odds_N = -slope * projection_N + rng.normal(0, 1, num_roles)[role_N]
    harm_N = (rng.random(len(role_N)) < 1 / (1 + np.exp(-odds_N))).astype(float)
    return projection_N, harm_N, [f"role {one}" for one in role_N]


def pearson(x_N: np.ndarray, y_N: np.ndarray) -> float:
    return float(np.corrcoef(x_N, y_N)[0, 1])


def test_a_planted_correlation_comes_back():
    true = pearson(*world(2.0, num_roles=10_000)[:2])
    assert true == pytest.approx(-0.594, abs=0.01)
    for seed in (1, 2):
        projection_N, harm_N, roles = world(2.0, seed=seed)
        found = correlation_over_rollouts(projection_N, harm_N, roles, samples=300)
        assert found.pearson.value == pytest.approx(true, abs=0.08)
        assert found.pearson.low is not None
        assert found.pearson.high is not None
        assert found.pearson.low < true < found.pearson.high < 0
        assert (found.points, found.roles, found.undefined) == (600, 60, 0)
        over_roles = correlation_over_roles(projection_N, harm_N, roles)
        # A mean over rollouts has less noise than a rollout.
        assert over_roles.pearson.value < found.pearson.value
        assert over_roles.points == over_roles.roles == 60


def test_without_a_relation_the_intervals_cover_zero_as_often_as_they_say():
    covered, width, naive = 0, [], []
    for seed in range(30):
        projection_N, harm_N, roles = world(0.0, num_roles=40, seed=seed)
        found = correlation_over_rollouts(projection_N, harm_N, roles, samples=150).pearson
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= 0 <= found.high
        if seed < 5:
            each = [str(number) for number in range(len(roles))]
            alone = correlation_over_rollouts(projection_N, harm_N, each, samples=150).pearson
            width.append(found.high - found.low)
            naive.append((alone.high or 0) - (alone.low or 0))
    assert covered >= 26
    # Rollouts of one role are alike, and taking them as independent would promise too much.
    assert np.mean(width) > 1.4 * np.mean(naive)


@settings(max_examples=20, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 1), st.sampled_from("abcd")), min_size=4, max_size=30),
    st.integers(0, 9),
)
def test_every_sample_is_the_correlation_of_the_rollouts_it_drew(rows: list[tuple[int, int, str]], seed: int):
    x_N, y_N = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows], float)
    roles = [row[2] for row in rows]
    names = sorted(set(roles))
    if len(names) < 2 or np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), 25)
    both: dict[str, list[float]] = {"pearson": [], "spearman": []}
    for counts in drawn:
        repeats = [counts[names.index(role)] for role in roles]
        x_M, y_M = np.repeat(x_N, repeats), np.repeat(y_N, repeats)
        if np.ptp(x_M) > 0 and np.ptp(y_M) > 0:
            both["pearson"].append(pearson(x_M, y_M))
            both["spearman"].append(pearson(mean_ranks(x_M), mean_ranks(y_M)))
    found = correlation_over_rollouts(x_N, y_N, roles, samples=25, seed=seed)
    assert found.undefined == pytest.approx(1 - len(both["pearson"]) / 25)
    assert found.pearson.value == pytest.approx(pearson(x_N, y_N))
    assert found.spearman.value == pytest.approx(pearson(mean_ranks(x_N), mean_ranks(y_N)))
    for estimate, samples in ((found.pearson, both["pearson"]), (found.spearman, both["spearman"])):
        if found.undefined > 0.5:
            assert estimate.low is None
            assert estimate.high is None
        else:
            assert (estimate.low, estimate.high) == pytest.approx(tuple(np.percentile(samples, (2.5, 97.5))))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=20))
def test_a_mean_rank_is_the_mean_place_of_equal_values(values: list[int]):
    places = [np.mean([place for place, other in enumerate(sorted(values), 1) if other == value]) for value in values]
    assert mean_ranks(values).tolist() == pytest.approx(places)


@pytest.mark.parametrize(
    ("projection", "harm", "code", "said"),
    [
        ([1, 2, 3, 4], [0, 0, 0, 0], "constant", "harm is 0 at all of 4 points"),
        ([2, 2, 2, 2], [0, 1, 0, 1], "constant", "projection is 2 at all of 4 points"),
        ([1, 2], [0, 1], "too_few", "2 points of 2 roles"),
    ],
)
def test_what_has_no_correlation_is_an_error_and_no_number(
    projection: list[float], harm: list[float], code: str, said: str
):
    with pytest.raises(InputError, match=said) as caught:
        correlation_over_rollouts(projection, harm, [str(one) for one in range(len(harm))])
    assert caught.value.code == code


def test_a_reply_without_a_label_is_in_nothing():
    harm_N = harm_numbers(["harmful", None, "partial", "redirect", "harmless"], ("partial", "harmful"))
    np.testing.assert_array_equal(harm_N, [1, np.nan, 1, 0, 0])
    roles, places = list("aabbc"), [1.0, 2, 3, 4, 5]
    for count in (
        lambda: correlation_over_rollouts(places, harm_N, roles),
        lambda: correlation_over_roles(places, harm_N, roles),
        lambda: harm_by_bin(places, harm_N),
        lambda: harm_by_role(places, harm_N, roles),
    ):
        with pytest.raises(ValueError, match="leave out"):
            count()


def test_every_conversation_is_counted_once():
    turns = made_turns([("a", [1, 0]), ("a", [math.nan, 0]), ("b", [2, 0]), ("b", [3, math.nan]), ("c", [4, 0])])
    # The verdicts on the second replies of the second and of the third conversation cannot be read.
    found = harm_after_drift(turns, {1: "harmful", 3: None, 5: None}, ("harmful",), samples=10)
    assert (found.labelled, found.unlabelled, found.waiting, found.empty) == (1, 1, 1, 2)
    assert found.conversations == 5


@given(
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=60),
    st.integers(1, 12),
)
def test_bins_divide_all_replies_in_order_and_never_equal_projections(rows: list[tuple[int, bool]], bins: int):
    projection, harm = [float(row[0]) for row in rows], [float(row[1]) for row in rows]
    found = harm_by_bin(projection, harm, bins)
    assert sum(one.replies for one in found) == len(rows)
    assert sum(one.harmful for one in found) == sum(harm)
    assert len(found) <= bins
    assert all(one.greatest < other.least for one, other in pairwise(found))
    for one in found:
        assert (one.low, one.high) == wilson_interval(one.harmful, one.replies)
    if len(set(projection)) == len(projection):
        assert max(one.replies for one in found) - min(one.replies for one in found) <= 2


def test_a_change_is_that_of_the_pairs():
    before = {str(number): number < 6 for number in range(10)} | {"alone": True}
    after = {str(number): number in (0, 1, 9) for number in range(10)}
    change = paired_change(before, after)
    assert (change.pairs, change.before, change.after, change.started, change.ceased) == (10, 6, 3, 1, 4)
    assert change.difference == pytest.approx(-0.3)
    assert (change.low, change.high) == paired_interval(2, 1, 4, 3)
    nothing = paired_change({1: True}, {2: True})
    assert (nothing.pairs, nothing.difference, nothing.low, nothing.high) == (0, None, None, None)


def test_published_intervals_of_paired_differences():
    # Newcombe 1998, table I, method 10; M. W. Fagerland, S. Lydersen and P. Laake, Statistics in Medicine 33 (2014).
    assert paired_interval(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert paired_interval(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)


@given(*[st.integers(0, 30)] * 4)
def test_the_interval_of_a_change_covers_it_and_turns_with_it(both: int, first: int, second: int, neither: int):
    low, high = paired_interval(both, first, second, neither)
    total = both + first + second + neither
    assert -1 <= low <= high <= 1
    if total:
        assert low - 1e-9 <= (first - second) / total <= high + 1e-9
        # Without a change the interval still has a width.
        assert high > low
    other_low, other_high = paired_interval(both, second, first, neither)
    assert (other_low, other_high) == pytest.approx((-high, -low), abs=1e-9)
    assert not math.isnan(low)
