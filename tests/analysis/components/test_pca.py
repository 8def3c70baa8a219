"""PCA against the eigenvectors of the covariance, written out here."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.components.massive import NOTABLE_SHARE, massive_coordinates, massive_share
from persona_atlas.analysis.components.pca import (
    MAX_KEPT,
    components_for,
    default_distance,
    fit_pca,
    rollout_variance_share,
)


def drawn(num_vectors: int, d_model: int, seed: int, layers: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    # Different variances along different directions, far from the origin.
    spread = np.diag(np.geomspace(4, 0.5, d_model))
    return rng.standard_normal((num_vectors, layers, d_model)) @ spread + 20 * rng.standard_normal((layers, d_model))


@settings(max_examples=40, deadline=None)
@given(num_vectors=st.integers(3, 12), d_model=st.integers(2, 8), seed=st.integers(0, 500))
def test_components_and_variances_are_those_of_the_covariance(num_vectors: int, d_model: int, seed: int):
    vectors_PLD = drawn(num_vectors, d_model, seed)
    pca = fit_pca(vectors_PLD, None)
    num_components = min(num_vectors - 1, d_model)
    assert pca.components_LKD.shape == (2, num_components, d_model)
    for layer in range(2):
        centred_PD = vectors_PLD[:, layer] - vectors_PLD[:, layer].mean(axis=0)
        values_K, vectors_DK = np.linalg.eigh(centred_PD.T @ centred_PD / (num_vectors - 1))
        values_K, vectors_DK = values_K[::-1][:num_components], vectors_DK[:, ::-1][:, :num_components]
        total = np.trace(centred_PD.T @ centred_PD) / (num_vectors - 1)
        np.testing.assert_allclose(pca.variance_ratio_LM[layer], values_K / total, atol=1e-10)
        np.testing.assert_allclose(
            pca.components_LKD[layer] @ pca.components_LKD[layer].T, np.eye(num_components), atol=1e-9
        )
        gaps = np.abs(np.diff(values_K, append=0)), np.abs(np.diff(values_K, prepend=np.inf))
        for k in range(num_components):
            # Two components of nearly the same variance may turn within their plane.
            if min(gaps[0][k], gaps[1][k]) > 1e-3 * values_K[0]:
                assert abs(pca.components_LKD[layer, k] @ vectors_DK[:, k]) == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(pca.mean_LD[layer], vectors_PLD[:, layer].mean(axis=0))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 500))
def test_the_first_component_agrees_with_the_axis_and_the_others_have_their_largest_coordinate_positive(seed: int):
    vectors_PLD = drawn(7, 5, seed)
    axis_LD = np.random.default_rng(seed + 1).standard_normal((2, 5))
    with_axis, flipped, without = (fit_pca(vectors_PLD, axis) for axis in (axis_LD, -axis_LD, None))
    for layer in range(2):
        assert with_axis.components_LKD[layer, 0] @ axis_LD[layer] > 0
        np.testing.assert_array_equal(with_axis.components_LKD[layer, 0], -flipped.components_LKD[layer, 0])
        for pca, first in ((with_axis, 1), (flipped, 1), (without, 0)):
            for component_D in pca.components_LKD[layer, first:]:
                assert component_D[np.abs(component_D).argmax()] > 0


def test_scores_are_coordinates_about_the_mean_and_keep_all_that_varies():
    vectors_PLD = drawn(4, 9, 3)
    pca = fit_pca(vectors_PLD, None)
    scores_PLK = pca.scores(vectors_PLD)
    assert scores_PLK.shape == (4, 2, 3)
    np.testing.assert_allclose(scores_PLK.mean(axis=0), 0, atol=1e-10)
    rebuilt = np.stack([scores_PLK[:, layer] @ pca.components_LKD[layer] for layer in range(2)], axis=1) + pca.mean_LD
    np.testing.assert_allclose(rebuilt, vectors_PLD, atol=1e-9)


def test_a_move_of_all_vectors_moves_the_mean_alone():
    vectors_PLD = drawn(6, 4, 8)
    here, there = fit_pca(vectors_PLD, None), fit_pca(vectors_PLD + 1000, None)
    np.testing.assert_allclose(there.mean_LD, here.mean_LD + 1000)
    np.testing.assert_allclose(there.components_LKD, here.components_LKD, atol=1e-8)
    np.testing.assert_allclose(there.variance_ratio_LM, here.variance_ratio_LM, atol=1e-8)


def test_two_vectors_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        fit_pca(drawn(2, 4, 0), None)


def test_a_layer_where_all_vectors_are_the_same_has_no_components_and_the_others_have_theirs():
    vectors_PLD = drawn(5, 4, 0)
    alone = fit_pca(vectors_PLD, None)
    # Means of equal vectors differ by rounding.
    same_P1D = np.full((5, 1, 4), 1000.0) + np.arange(5)[:, None, None] * 1e-12
    found = fit_pca(np.concatenate([same_P1D, vectors_PLD], axis=1).astype(np.float64), None)
    assert found.defined_L.tolist() == [False] + [True] * vectors_PLD.shape[1]
    assert np.isnan(found.components_LKD[0]).all()
    assert np.isnan(found.variance_ratio_LM[0]).all()
    np.testing.assert_allclose(found.components_LKD[1:], alone.components_LKD)
    np.testing.assert_allclose(found.variance_ratio_LM[1:], alone.variance_ratio_LM)


@pytest.mark.parametrize(
    ("ratio", "share", "expected"),
    [
        ([0.5, 0.25, 0.25], 0.5, 1),
        ([0.5, 0.25, 0.25], 0.51, 2),
        ([0.5, 0.25, 0.25], 0.7, 2),
        ([0.5, 0.25, 0.25], 1.0, 3),
        ([0.1] * 10, 0.7, 7),
        ([0.1] * 10, 1.0, 10),
        ([1.0], 0.7, 1),
    ],
)
def test_components_for_counts_those_that_reach_the_share(ratio: list[float], share: float, expected: int):
    assert components_for(np.array(ratio), share) == expected
    assert components_for(np.array(ratio, dtype=np.float32), share - 1e-6) == expected


@pytest.mark.parametrize("shape", [(6, 40), (40, 6), (12, 12), (30, 200)])
def test_components_are_those_of_numpys_svd_whether_there_are_more_vectors_or_coordinates(shape: tuple[int, int]):
    vectors_PLD = drawn(*shape, seed=4)
    pca = fit_pca(vectors_PLD, None)
    count = min(shape[0] - 1, shape[1])
    assert pca.components_LKD.shape == (2, min(count, MAX_KEPT), shape[1])
    assert pca.variance_ratio_LM.shape == (2, count)
    for layer in range(2):
        _, singular, right = np.linalg.svd(
            vectors_PLD[:, layer] - vectors_PLD[:, layer].mean(axis=0), full_matrices=False
        )
        variance = singular[:count] ** 2
        np.testing.assert_allclose(pca.variance_ratio_LM[layer], variance / (singular**2).sum(), atol=1e-12)
        kept = len(pca.components_LKD[layer])
        np.testing.assert_allclose(np.abs(np.einsum("kd,kd->k", pca.components_LKD[layer], right[:kept])), 1, atol=1e-8)


def test_two_vectors_that_are_the_same_leave_a_component_without_variance_or_direction():
    vectors_PLD = drawn(5, 9, 0)
    vectors_PLD[4] = vectors_PLD[3]
    pca = fit_pca(vectors_PLD, None)
    assert (pca.variance_ratio_LM[:, 3] == 0).all()
    assert np.isnan(pca.components_LKD[:, 3]).all()
    assert np.isfinite(pca.components_LKD[:, :3]).all()
    np.testing.assert_allclose(pca.variance_ratio_LM.sum(axis=1), 1)


def test_a_vector_of_nan_leaves_its_layer_alone_without_components():
    vectors_PLD = drawn(5, 9, 0)
    alone = fit_pca(vectors_PLD[:, 1:], None)
    vectors_PLD[2, 0, 3] = np.nan
    for standardised in (False, True):
        found = fit_pca(vectors_PLD, None, standardised=standardised)
        assert found.defined_L.tolist() == [False, True]
        assert np.isnan(found.components_LKD[0]).all()
        assert np.isnan(found.variance_ratio_LM[0]).all()
    np.testing.assert_allclose(fit_pca(vectors_PLD, None).components_LKD[1:], alone.components_LKD)


def test_standardised_components_are_the_eigenvectors_of_the_correlations():
    vectors_PLD = drawn(30, 6, 2)
    vectors_PLD[:, :, 1] *= 1e4
    axis_LD = np.random.default_rng(0).standard_normal((2, 6))
    pca = fit_pca(vectors_PLD, axis_LD, standardised=True)
    assert pca.scale_LD is not None
    for layer in range(2):
        values, right = np.linalg.eigh(np.corrcoef(vectors_PLD[:, layer], rowvar=False))
        np.testing.assert_allclose(pca.variance_ratio_LM[layer], values[::-1] / 6, atol=1e-12)
        np.testing.assert_allclose(
            np.abs(np.einsum("kd,dk->k", pca.components_LKD[layer], right[:, ::-1])), 1, atol=1e-8
        )
        np.testing.assert_allclose(pca.scale_LD[layer], vectors_PLD[:, layer].std(axis=0, ddof=1))
        assert pca.components_LKD[layer, 0] @ (axis_LD[layer] / pca.scale_LD[layer]) > 0
    scores = pca.scores(vectors_PLD)
    np.testing.assert_allclose(scores.var(axis=0, ddof=1).sum(axis=1), 6)


def test_a_coordinate_that_does_not_vary_stays_out_of_the_standardised_components():
    vectors_PLD = drawn(10, 4, 2)
    vectors_PLD[:, :, 2] = 1e6 * (1 + 1e-13 * np.arange(10)[:, None])
    pca = fit_pca(vectors_PLD, None, standardised=True)
    assert pca.scale_LD is not None
    assert (pca.scale_LD[:, 2] == 1).all()
    np.testing.assert_allclose(pca.components_LKD[:, :3, 2], 0, atol=1e-6)


@pytest.mark.parametrize(
    ("score", "expected"), [(-3.0, 0.25), (-2.0, 0.0), (0.0, -0.5), (1.5, -0.125), (2.0, 0.0), (6.0, 1.0)]
)
def test_the_distance_of_the_default_is_a_fraction_of_the_range_and_negative_inside(score: float, expected: float):
    vectors_PLD = np.array([-2.0, 0.0, 2.0])[:, None, None] * np.array([0.6, 0.8]) + 50
    pca = fit_pca(vectors_PLD, None)
    default_LD = score * np.array([[0.6, 0.8]]) + 50
    assert default_distance(pca, vectors_PLD, default_LD)[0, 0] == pytest.approx(expected)


def test_the_share_of_rollouts_is_nan_where_they_do_not_vary():
    found = rollout_variance_share(np.array([[1.0, 0.5], [0.0, 0.0], [1.0, 1.0]]), np.array([4.0, 0.0, np.nan]))
    np.testing.assert_array_equal(found, [[0.25, 0.125], [np.nan, np.nan], [np.nan, np.nan]])


def test_there_is_no_number_of_components_where_there_are_none():
    with pytest.raises(ValueError, match="no components"):
        components_for(np.array([np.nan, np.nan]), 0.7)


def test_massive_coordinates_are_found_whatever_the_scale_and_their_share_is_that_of_the_variance():
    rng = np.random.default_rng(0)
    vectors_PLD = rng.standard_normal((20, 3, 500))
    vectors_PLD[:, 1, 40] += 400
    vectors_PLD[:, 1, 7] = 900 + 30 * rng.standard_normal(20)
    vectors_PLD[:, 2] = np.nan
    for scale in (1e-3, 1.0, 1e3):
        found = massive_coordinates(scale * vectors_PLD.mean(axis=0))
        # The mean of 20 vectors is smaller than they are, by the root of 20: ordinary coordinates stay far below.
        assert found == [[], [7, 40], []]
    share_L = massive_share(vectors_PLD, found)
    assert share_L[0] == 0
    variance_D = vectors_PLD[:, 1].var(axis=0)
    assert share_L[1] == pytest.approx((variance_D[7] + variance_D[40]) / variance_D.sum())
    assert share_L[1] > NOTABLE_SHARE
    assert np.isnan(share_L[2])
