"""Agreement of judges on planted tables, against the definition written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.analysis.judges.agreement import BINS, agreement, categories, weighted_kappa

scores = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30)


@given(pairs=scores)
def test_kappa_is_one_less_observed_by_expected_disagreement(pairs: list[tuple[int, int]]):
    first, second = zip(*pairs, strict=True)
    observed = np.mean([(a - b) ** 2 for a, b in pairs])
    # By chance: every score of one judge beside every score of the other.
    expected = np.mean([(a - b) ** 2 for a in first for b in second])
    found = agreement("role", first, second)
    if expected == 0:
        assert math.isnan(found.weighted_kappa)
    else:
        assert found.weighted_kappa == pytest.approx(1 - observed / expected)
    assert found.confusion.sum() == len(pairs)
    assert all(found.confusion[a, b] for a, b in pairs)


def test_a_table_of_cohens_kind():
    # Off by one counts a quarter of off by two: 1 - (10 + 5 + 4 * 5) / (expected by the margins 60, 40 and so on).
    table = np.array([[30, 10, 5], [5, 20, 0], [0, 0, 30]])
    weights = (np.arange(3)[:, None] - np.arange(3)) ** 2
    expected = (weights * np.outer(table.sum(1), table.sum(0))).sum() / table.sum()
    assert weighted_kappa(table) == pytest.approx(1 - (10 + 5 + 4 * 5) / expected)
    assert weighted_kappa(table) == pytest.approx(0.7587, abs=1e-4)
    assert weighted_kappa(table) == weighted_kappa(table.T)


def test_full_chance_and_reversed_agreement():
    assert weighted_kappa(np.diag([5, 5, 5, 5])) == 1
    assert weighted_kappa(np.full((4, 4), 3)) == pytest.approx(0)
    assert weighted_kappa(np.fliplr(np.diag([5, 5, 5, 5]))) == pytest.approx(-1)


def test_traits_are_compared_in_tens_and_as_they_are():
    found = agreement("trait", [0, 50, 100], [10, 60, 90])
    assert found.mean_absolute_difference == 10
    assert found.correlation == pytest.approx(np.corrcoef([0, 50, 100], [10, 60, 90])[0, 1])
    assert found.confusion.shape == (10, 10)
    assert categories("trait", [0, 9, 10, 99, 100]).tolist() == [0, 0, 1, 9, 9]
    assert len(BINS["trait"]) == 10


def test_what_is_undefined_is_nan():
    one_category = agreement("role", [3, 3], [3, 3])
    assert math.isnan(one_category.weighted_kappa)
    assert math.isnan(one_category.correlation)
    assert one_category.mean_absolute_difference == 0
    nothing = agreement("role", [], [])
    assert nothing.rollouts == 0
    assert math.isnan(nothing.mean_absolute_difference)
