"""Axis, projection, cosine and thresholds against plain numpy, in both signs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.axis import assistant_axis, cosine, project, unit
from persona_atlas.analysis.thresholds import thresholds


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_the_axis_is_the_default_less_the_mean_role_and_points_toward_the_default():
    default_LD, roles_PLD = drawn(3, 5), drawn(4, 3, 5, seed=1)
    axis_LD = assistant_axis(default_LD, roles_PLD)
    for layer in range(3):
        mean_D = sum(roles_PLD[role, layer] for role in range(4)) / 4
        np.testing.assert_allclose(axis_LD[layer], default_LD[layer] - mean_D, rtol=1e-12)
    of_default = project(default_LD[None], axis_LD)[0]
    assert (of_default > project(roles_PLD, axis_LD).mean(axis=0)).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), length=st.floats(1e-3, 1e4))
def test_a_projection_is_a_dot_product_with_the_unit_axis_whatever_its_length(seed: int, length: float):
    values_NLD, axis_LD = drawn(6, 2, 4, seed=seed).astype(np.float32), drawn(2, 4, seed=seed + 1)
    projected_NL = project(values_NLD, length * axis_LD)
    for n in range(6):
        for layer in range(2):
            by_hand = np.dot(values_NLD[n, layer].astype(np.float64), axis_LD[layer]) / np.sqrt(
                np.sum(axis_LD[layer] ** 2)
            )
            assert projected_NL[n, layer] == pytest.approx(by_hand, rel=1e-9, abs=1e-9)


def test_a_projection_is_not_centred():
    axis_LD = np.array([[0.0, 2.0]])
    assert project(np.array([[[7.0, 9000.0]], [[7.0, 9001.0]]]), axis_LD).tolist() == [[9000.0], [9001.0]]


def test_cosine_and_unit_are_per_vector():
    a, b = drawn(4, 6), 3 * drawn(4, 6, seed=1)
    for row in range(4):
        expected = a[row] @ b[row] / np.sqrt((a[row] @ a[row]) * (b[row] @ b[row]))
        assert cosine(a, b)[row] == pytest.approx(expected)
    np.testing.assert_allclose(np.linalg.norm(unit(a), axis=1), 1)
    np.testing.assert_allclose(cosine(a, -a), -1)


def test_a_vector_of_length_zero_has_no_direction():
    with pytest.raises(ValueError, match="no direction"):
        unit(np.array([[1.0, 0.0], [0.0, 0.0]]))


def percentile_by_hand(values: np.ndarray, percent: float) -> float:
    """Linear interpolation between the order statistics."""
    ordered = np.sort(values)
    place = percent / 100 * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=60))
def test_a_label_names_the_percentile_on_the_minus_axis_and_a_floor_is_minus_its_cap(values: list[float]):
    projections_NL = np.array(values)[:, None] * np.array([1.0, -2.0])
    found = thresholds(projections_NL)
    assert found.labels == ("p0.01", "p0.25", "p0.5", "p0.75")
    np.testing.assert_array_equal(found.floor_on_axis_QL, -found.cap_on_minus_axis_QL)
    for q, percent in enumerate((1, 25, 50, 75)):
        for layer in range(2):
            cap = percentile_by_hand(-projections_NL[:, layer], percent)
            assert found.cap_on_minus_axis_QL[q, layer] == pytest.approx(cap, rel=1e-9, abs=1e-6)
            on_axis = percentile_by_hand(projections_NL[:, layer], 100 - percent)
            assert found.floor_on_axis_QL[q, layer] == pytest.approx(on_axis, rel=1e-9, abs=1e-6)


def test_the_floor_p0_25_is_the_75th_percentile_on_the_axis_and_is_passed_by_a_quarter():
    projections_NL = np.arange(101.0)[:, None]
    found = thresholds(projections_NL)
    floor = found.floor_on_axis_QL[found.labels.index("p0.25"), 0]
    assert floor == 75
    assert (projections_NL > floor).mean() == pytest.approx(0.25, abs=0.01)


def test_a_floor_on_the_axis_and_a_cap_on_its_negative_are_one_operation():
    resid_ND, axis_LD = drawn(50, 6), drawn(1, 6, seed=2)
    found = thresholds(project(resid_ND[:, None], axis_LD))
    v_D = unit(axis_LD)[0]
    for floor, cap in zip(found.floor_on_axis_QL[:, 0], found.cap_on_minus_axis_QL[:, 0], strict=True):
        floored = resid_ND - np.outer(np.minimum(resid_ND @ v_D - floor, 0), v_D)
        capped = resid_ND - np.outer(np.maximum(resid_ND @ -v_D - cap, 0), -v_D)
        np.testing.assert_allclose(floored, capped, atol=1e-12)


@pytest.mark.parametrize("projections_NL", [np.empty((0, 3)), np.array([[1.0], [np.nan]]), np.array([[np.inf]])])
def test_there_is_nothing_to_calibrate_on_nothing_or_on_what_is_not_finite(projections_NL: np.ndarray):
    with pytest.raises(ValueError):
        thresholds(projections_NL)
