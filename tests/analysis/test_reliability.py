"""Intervals against bootstraps written out over the vectors and rollouts themselves."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.axis import cosine_or_nan, role_axis_cosines, split_half, trait_axis_cosines
from persona_atlas.analysis.bootstrap import bootstrap_axis
from persona_atlas.analysis.reliability import expected_cosine, question_intervals, standing_out, trust


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def roles_with_a_first_component(num_roles: int, d_model: int, seed: int) -> np.ndarray:
    spread_D = np.geomspace(3, 0.3, d_model)
    return drawn(num_roles, 2, d_model, seed=seed) * spread_D + 30 * drawn(2, d_model, seed=seed + 1)


@pytest.mark.parametrize(("num_roles", "d_model"), [(12, 40), (60, 20), (90, 120)])
def test_intervals_over_roles_are_those_of_axis_and_components_of_every_sample(num_roles: int, d_model: int):
    samples, seed = 60, 5
    roles_PLD = roles_with_a_first_component(num_roles, d_model, seed=3)
    default_LD = roles_PLD.mean(axis=0) + drawn(2, d_model, seed=9) + np.eye(2, d_model)
    found = bootstrap_axis(default_LD, roles_PLD, samples, seed)
    counts_BP = np.random.default_rng(seed).multinomial(num_roles, np.full(num_roles, 1 / num_roles), size=samples)
    for layer in range(2):
        axis_D = default_LD[layer] - roles_PLD[:, layer].mean(axis=0)
        axis_cosines, pc1_cosines = [], []
        for counts_P in counts_BP:
            sample_PD = np.repeat(roles_PLD[:, layer], counts_P, axis=0)
            of_sample_D = default_LD[layer] - sample_PD.mean(axis=0)
            first_D = np.linalg.svd(sample_PD - sample_PD.mean(axis=0), full_matrices=False)[2][0]
            axis_cosines.append(float(cosine_or_nan(of_sample_D, axis_D)))
            pc1_cosines.append(abs(float(cosine_or_nan(first_D, of_sample_D))))
        np.testing.assert_allclose(
            found.axis_interval_2L[:, layer], np.percentile(axis_cosines, (2.5, 97.5)), atol=1e-9
        )
        # With more than 32 components the first is found nearly: these differ by little, which is the hard case.
        np.testing.assert_allclose(found.pc1_interval_2L[:, layer], np.percentile(pc1_cosines, (2.5, 97.5)), atol=3e-3)


def test_a_layer_has_the_same_intervals_whichever_layers_are_given_with_it():
    roles_PLD, default_LD = roles_with_a_first_component(20, 30, seed=1), 40 * drawn(2, 30, seed=2)
    both = bootstrap_axis(default_LD, roles_PLD, 50)
    alone = bootstrap_axis(default_LD[1:], roles_PLD[:, 1:], 50)
    np.testing.assert_allclose(both.axis_interval_2L[:, 1:], alone.axis_interval_2L, rtol=1e-12)
    np.testing.assert_allclose(both.pc1_interval_2L[:, 1:], alone.pc1_interval_2L, rtol=1e-12)


def test_a_layer_without_an_axis_or_components_has_no_interval_and_the_others_have():
    roles_PLD, default_LD = roles_with_a_first_component(20, 30, seed=1), 40 * drawn(2, 30, seed=2)
    default_LD[0] = roles_PLD[:, 0].mean(axis=0)
    found = bootstrap_axis(default_LD, roles_PLD, 50)
    for interval_2L in (found.axis_interval_2L, found.pc1_interval_2L):
        assert np.isnan(interval_2L[:, 0]).all()
        assert np.isfinite(interval_2L[:, 1]).all()
    same_PLD = np.repeat(roles_PLD[:1], 20, axis=0)
    found = bootstrap_axis(default_LD, same_PLD, 50)
    assert np.isnan(found.pc1_interval_2L).all()
    np.testing.assert_allclose(found.axis_interval_2L, 1)
    assert np.isnan(bootstrap_axis(default_LD, roles_PLD[:1]).axis_interval_2L).all()
    roles_PLD[3, 1, 4] = np.nan
    assert np.isnan(bootstrap_axis(default_LD, roles_PLD, 50).axis_interval_2L).all()


def test_intervals_over_questions_are_those_of_means_over_drawn_questions():
    rng = np.random.default_rng(0)
    personas_N, questions_N = rng.integers(0, 3, 90), rng.integers(0, 9, 90)
    projections_NL = rng.standard_normal((90, 2)) + 3 * questions_N[:, None]
    found = question_intervals(projections_NL, personas_N, questions_N, samples=80, seed=4)
    for persona in range(3):
        mine = personas_N == persona
        asked = np.unique(questions_N[mine])
        drawn_BQ = np.random.default_rng([4, len(asked)]).multinomial(
            len(asked), np.full(len(asked), 1 / len(asked)), size=80
        )
        means_BL = []
        for counts_Q in drawn_BQ:
            rows = [row for q, n in zip(asked, counts_Q, strict=True) for row in n * [mine & (questions_N == q)]]
            means_BL.append(np.concatenate([projections_NL[row] for row in rows]).mean(axis=0))
        np.testing.assert_allclose(found[:, persona], np.percentile(means_BL, (2.5, 97.5), axis=0), atol=1e-9)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 200))
def test_the_order_of_rollouts_and_other_personas_change_no_interval(seed: int):
    rng = np.random.default_rng(seed)
    personas_N, questions_N = rng.integers(0, 4, 60), rng.integers(0, 6, 60)
    projections_NL = rng.standard_normal((60, 2))
    found = question_intervals(projections_NL, personas_N, questions_N, 40, num_personas=4)
    order = rng.permutation(60)
    moved = question_intervals(projections_NL[order], personas_N[order], questions_N[order], 40, num_personas=4)
    np.testing.assert_allclose(moved, found, atol=1e-12)
    alone = personas_N == 2
    one = question_intervals(projections_NL[alone], personas_N[alone], questions_N[alone], 40, num_personas=4)
    np.testing.assert_allclose(one[:, 2], found[:, 2], atol=1e-12)
    assert np.isnan(one[:, [0, 1, 3]]).all()


def test_one_question_and_a_layer_of_nan_have_no_interval():
    projections_NL = np.stack([np.arange(6.0), np.full(6, np.nan)], axis=1)
    found = question_intervals(projections_NL, np.array([0, 0, 0, 1, 1, 1]), np.array([0, 1, 2, 5, 5, 5]))
    assert np.isfinite(found[:, 0, 0]).all()
    assert np.isnan(found[:, 0, 1]).all()
    assert np.isnan(found[:, 1]).all()
    assert question_intervals(np.empty((0, 2)), np.empty(0, int), np.empty(0, int), num_personas=3).shape == (2, 3, 2)


def test_halves_are_compared_by_their_axes_over_the_roles_that_both_have():
    default_2LD, roles_2PLD = drawn(2, 3, 8) + 5, drawn(2, 6, 3, 8, seed=1)
    axes = default_2LD - roles_2PLD.mean(axis=1)
    np.testing.assert_allclose(split_half(default_2LD, roles_2PLD), cosine_or_nan(axes[0], axes[1]))
    roles_2PLD[1, 4, 2] = np.nan
    kept = [0, 1, 2, 3, 5]
    axes = default_2LD[:, 2] - roles_2PLD[:, kept, 2].mean(axis=1)
    assert split_half(default_2LD, roles_2PLD)[2] == pytest.approx(cosine_or_nan(axes[0], axes[1]))
    roles_2PLD[0, :, 1] = np.nan
    assert np.isnan(split_half(default_2LD, roles_2PLD)).tolist() == [False, True, False]


def test_a_cosine_of_a_role_is_of_what_tells_it_from_the_others():
    roles_PLD, axis_LD = drawn(5, 2, 7) + 1000, drawn(2, 7, seed=3)
    centred_PLD = roles_PLD - roles_PLD.mean(axis=0)
    np.testing.assert_allclose(role_axis_cosines(roles_PLD, axis_LD), cosine_or_nan(centred_PLD, axis_LD), atol=1e-9)
    # Without centring, all are nearly the same.
    assert np.ptp(cosine_or_nan(roles_PLD, axis_LD), axis=0).max() < 0.01
    roles_PLD[2] = np.nan
    axis_LD[1] = np.nan
    found_PL = role_axis_cosines(roles_PLD, axis_LD)
    assert np.isfinite(found_PL[[0, 1, 3, 4], 0]).all()
    assert np.isnan(found_PL[2]).all()
    assert np.isnan(found_PL[:, 1]).all()
    assert np.isnan(role_axis_cosines(np.ones((3, 1, 4)), np.ones((1, 4)))).all()
    assert np.isnan(trait_axis_cosines(np.zeros((1, 1, 4)), np.ones((1, 4)))).all()


def test_two_halves_of_a_noisy_axis_tell_how_near_the_whole_is_to_the_true_one():
    rng = np.random.default_rng(0)
    true_D = np.eye(1, 40_000)[0] * 100
    halves = [true_D + 0.5 * rng.standard_normal(40_000) for _ in range(2)]
    expected = float(cosine_or_nan((halves[0] + halves[1]) / 2, true_D))
    assert expected_cosine(float(cosine_or_nan(halves[0], halves[1]))) == pytest.approx(expected, abs=0.01)
    assert expected_cosine(-0.2) == 0
    assert np.isnan(expected_cosine(float("nan")))


def test_every_persona_taken_as_the_default_stands_out_as_far_as_written_out():
    default_LD, roles_PLD = drawn(2, 9) + 3, roles_with_a_first_component(6, 9, seed=2)
    found = standing_out(default_LD, roles_PLD)
    for layer in range(2):
        personas = [default_LD[layer], *roles_PLD[:, layer]]
        for number, persona_D in enumerate(personas):
            others_PD = np.stack([other for n, other in enumerate(personas) if n not in (0, number)])
            axis_D = persona_D - others_PD.mean(axis=0)
            unit_D = axis_D / np.linalg.norm(axis_D)
            z = (persona_D @ unit_D - (others_PD @ unit_D).mean()) / (others_PD @ unit_D).std()
            assert found[number, layer] == pytest.approx(z), (number, layer)
    roles_PLD[2, 0, 1] = np.nan
    assert np.isnan(standing_out(default_LD, roles_PLD)[:, 0]).all()
    assert np.isfinite(standing_out(default_LD, roles_PLD)[:, 1]).all()
    assert np.isnan(standing_out(default_LD, np.ones((4, 2, 9)))).all()


def test_a_thin_run_is_told_what_limits_it_and_a_whole_one_nothing():
    thin = trust(7, num_roles=3, num_questions=1, least_rollouts=2, split_half=float("nan"), axis_interval=(0.2, 0.8))
    assert len(thin) == 5
    assert "no two halves" in thin[0]
    assert "0.20 to 0.80 at layer 7" in thin[1]
    assert "Only 1 question was" in thin[2]
    told = trust(7, num_roles=275, num_questions=240, least_rollouts=10, split_half=0.41, axis_interval=(0.97, 0.99))
    assert len(told) == 1
    assert "cosine 0.41 at layer 7" in told[0]
    assert "0.76" in told[0]
    whole = {"num_roles": 275, "num_questions": 240, "least_rollouts": 10, "split_half": 0.99}
    assert trust(7, **whole, roles_above=0) == []
    assert "12 of 275 roles would stand out more" in trust(7, **whole, roles_above=12)[0]
