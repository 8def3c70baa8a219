"""A planted model of the world comes back from the rollouts at every stage, for 300 personas.

Tolerances follow from the noise of a mean: NOISE / sqrt(n) in each coordinate.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from persona_atlas.analysis.axis import (
    assistant_axis,
    cosine_or_nan,
    project,
    role_axis_cosines,
    split_half,
    trait_axis_cosines,
)
from persona_atlas.analysis.bootstrap import bootstrap_axis
from persona_atlas.analysis.capping import capping_settings, ceiling_on_minus_axis
from persona_atlas.analysis.classes import ALL, FULLY, HALVES, SOMEWHAT, score_classes
from persona_atlas.analysis.components.pca import components_for, default_distance, fit_pca, rollout_variance_share
from persona_atlas.analysis.moments import Moments
from persona_atlas.analysis.reliability import question_intervals
from persona_atlas.analysis.thresholds import thresholds
from persona_atlas.analysis.vectors import trait_kinds, union

from planted_world import AXIS_LENGTH, NOISE, OFFSET, PC1_COSINE, SPREADS, Address, World

Groups = dict[tuple[str, str, str], dict[tuple[str, str], Moments]]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def groups(world: World) -> Groups:
    """Moments of every persona and polarity by class and half."""
    by_persona: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row, (kind, persona) in enumerate(
        zip(world.lines["kind"].to_pylist(), world.lines["persona"].to_pylist(), strict=True)
    ):
        by_persona[kind, persona].append(row)
    found: Groups = defaultdict(dict)
    for (kind, persona), rows in by_persona.items():
        lines = world.lines.take(rows)
        members: dict[tuple[str, str, str], list[int]] = defaultdict(list)
        for row, name, line in zip(rows, score_classes(lines), lines.to_pylist(), strict=True):
            members[line["polarity"], name, HALVES[line["question_index"] % 2]].append(row)
        for (polarity, name, half), chosen in members.items():
            found[kind, persona, polarity][name, half] = Moments.of(world.values[chosen])
    return found


def role_means(world: World, groups: Groups, classes: frozenset[str], half: str | None = None) -> np.ndarray:
    found = [union(groups["role", role, "pos"], classes, half) for role in world.roles]
    return np.stack([moments.mean_LD for moments in found if moments is not None])


@pytest.fixture(scope="module")
def fully(world: World, groups: Groups) -> np.ndarray:
    return role_means(world, groups, FULLY)


@pytest.fixture(scope="module")
def default(groups: Groups) -> Moments:
    found = union(groups["default", "default", "pos"], ALL)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def axis(default: Moments, fully: np.ndarray) -> np.ndarray:
    return assistant_axis(default.mean_LD, fully)


def test_there_are_three_hundred_personas(world: World, groups: Groups):
    assert len({(kind, persona) for kind, persona, _ in groups}) == 300
    assert len(world.values) == world.lines.num_rows


def test_vectors_of_each_score_are_the_planted_ones(world: World, groups: Groups, fully: np.ndarray):
    played_PLD = np.einsum("pk,lkd->pld", world.scores, world.components)
    np.testing.assert_allclose(fully, world.mean + played_PLD, atol=6 * NOISE / np.sqrt(world.num_questions))
    shift = world.question_shift[np.arange(world.num_questions) % 2 == 0].mean()
    expected = world.mean + 0.5 * (played_PLD + world.axis) + shift * world.basis[:, 0]
    somewhat = role_means(world, groups, SOMEWHAT)
    np.testing.assert_allclose(somewhat, expected, atol=6 * NOISE / np.sqrt(world.num_questions / 2))
    first = union(groups["role", world.roles[0], "pos"], ALL)
    assert first is not None
    assert first.count == 2 * world.num_questions


def test_the_variance_of_a_persona_is_the_planted_one_whatever_it_was_merged_from(world: World, groups: Groups):
    by_role: dict[str, list[Address]] = defaultdict(list)
    for address in world.addresses():
        by_role[address.persona].append(address)
    ratios = []
    for role in world.roles:
        whole = union(groups["role", role, "pos"], ALL)
        assert whole is not None
        means_NLD = np.stack([world.mean_of(address) for address in by_role[role]])
        planted_L = means_NLD.var(axis=0, ddof=1).sum(axis=1) + NOISE**2 * world.d_model
        ratios.append(whole.total_variance() / planted_L)
    np.testing.assert_allclose(np.mean(ratios, axis=0), 1, atol=0.01)
    assert np.abs(np.array(ratios) - 1).max() < 0.3


def test_the_axis_is_the_planted_one_and_rollouts_that_do_not_play_shorten_it(
    world: World, groups: Groups, default: Moments, axis: np.ndarray
):
    np.testing.assert_allclose(axis, world.axis, atol=6 * NOISE / np.sqrt(default.count))
    unfiltered = assistant_axis(default.mean_LD, role_means(world, groups, ALL))
    # Half of the rollouts are scored 3, a quarter 2, the others are the default: 1/2 + 1/4 * 1/2 of the way.
    np.testing.assert_allclose(np.linalg.norm(unfiltered, axis=1), 0.625 * AXIS_LENGTH, rtol=0.01)
    assert (cosine_or_nan(unfiltered, world.axis) > 0.998).all()


def test_the_halves_agree_and_other_roles_would_hardly_change_the_axis(
    world: World, groups: Groups, default: Moments, fully: np.ndarray
):
    halves = [union(groups["default", "default", "pos"], ALL, half) for half in HALVES]
    default_2LD = np.stack([moments.mean_LD for moments in halves if moments is not None])
    agreement = split_half(default_2LD, np.stack([role_means(world, groups, FULLY, half) for half in HALVES]))
    # Each half's axis has the noise of its default vector, of half the rollouts, in all coordinates but one.
    noise = NOISE**2 * (world.d_model - 1) / (default.count / 2)
    np.testing.assert_allclose(agreement, AXIS_LENGTH**2 / (AXIS_LENGTH**2 + noise), atol=1.2e-4)
    found = bootstrap_axis(default.mean_LD, fully, samples=400)
    across = (SPREADS**2).sum() - (PC1_COSINE * SPREADS[0]) ** 2
    expected = 1 - across / world.num_roles / AXIS_LENGTH**2 / 2
    assert (found.axis_interval_2L[0] < expected).all()
    assert (expected < found.axis_interval_2L[1]).all()
    assert (found.pc1_interval_2L[0] < PC1_COSINE).all()
    assert (found.pc1_interval_2L[1] > PC1_COSINE).all()
    assert (np.ptp(found.pc1_interval_2L, axis=0) < 0.15).all()


def test_projections_of_roles_are_not_centred_and_their_cosines_are(world: World, fully: np.ndarray, axis: np.ndarray):
    along_P = PC1_COSINE * world.scores[:, 0]
    projected_PL = project(fully, axis)
    np.testing.assert_allclose(projected_PL, (OFFSET + along_P)[:, None] * np.ones(2), atol=6 * NOISE / np.sqrt(12))
    expected_P = along_P / np.linalg.norm(world.scores, axis=1)
    # The cosine of a role near the mean role is uncertain: noise is not small against its length.
    clear_P = np.linalg.norm(world.scores, axis=1) > 4
    assert clear_P.mean() > 0.8
    np.testing.assert_allclose(role_axis_cosines(fully, axis)[clear_P], expected_P[clear_P, None] * [1, 1], atol=0.1)


def test_traits_of_every_kind_are_the_planted_ones(world: World, groups: Groups, default: Moments, axis: np.ndarray):
    vectors = []
    for number, trait in enumerate(world.traits):
        kinds = trait_kinds(groups["trait", trait, "pos"], groups["trait", trait, "neg"], default.mean_LD, 8)
        if not number:
            assert sorted(kinds) == ["pos_70", "pos_default", "pos_neg"]  # no passing pair, no vector
            continue
        planted = world.trait_vectors[number]
        close = {"atol": 6 * NOISE * np.sqrt(2 / 8)}
        assert {kind: count for kind, (_, count) in kinds.items()} == {
            "pos_neg": 12,
            "pos_neg_50": 8,
            "pos_default": 12,
            "pos_70": 12,
        }
        np.testing.assert_allclose(kinds["pos_neg_50"][0], planted, **close)
        np.testing.assert_allclose(kinds["pos_neg"][0], planted * 2 / 3, **close)
        np.testing.assert_allclose(kinds["pos_default"][0], planted / 3 - world.axis, **close)
        np.testing.assert_allclose(kinds["pos_70"][0], world.mean + planted / 3, **close)
        vectors.append(kinds["pos_neg_50"][0])
    cosines_TL = trait_axis_cosines(np.stack(vectors), axis)
    np.testing.assert_allclose(cosines_TL, world.trait_axis_cosine[1:, None] * [1, 1], atol=0.12)


def test_components_variances_and_the_place_of_the_default_are_the_planted_ones(
    world: World, default: Moments, fully: np.ndarray, axis: np.ndarray
):
    pca = fit_pca(fully, axis)
    np.testing.assert_allclose(
        np.abs(np.einsum("lkd,lkd->lk", pca.components_LKD[:, :4], world.components)), 1, atol=0.005
    )
    np.testing.assert_allclose(cosine_or_nan(pca.components_LKD[:, 0], axis), PC1_COSINE, atol=0.02)
    noise = NOISE**2 / world.num_questions
    total = (SPREADS**2).sum() + noise * world.d_model
    np.testing.assert_allclose(pca.variance_ratio_LM[:, :4], (SPREADS**2 + noise) / total * np.ones((2, 1)), rtol=0.03)
    assert [components_for(pca.variance_ratio_LM[0], share) for share in (0.7, 0.8, 0.9)] == [2, 3, 3]
    first_P = world.scores[:, 0]
    outside = max(PC1_COSINE * AXIS_LENGTH - first_P.max(), first_P.min() - PC1_COSINE * AXIS_LENGTH)
    distance_LK = default_distance(pca, fully, default.mean_LD)
    np.testing.assert_allclose(distance_LK[:, 0], outside / np.ptp(first_P), atol=0.03)
    # Along the others the default is at the mean, inside the roles.
    assert (distance_LK[:, 1:4] < -0.2).all()


def test_the_z_scored_components_do_not_follow_a_coordinate_that_was_made_massive(
    world: World, fully: np.ndarray, axis: np.ndarray
):
    stretch_D = np.ones(world.d_model)
    stretch_D[7] = 1000.0
    plain, stretched = fit_pca(fully, axis, standardised=True), fit_pca(fully * stretch_D, axis, standardised=True)
    np.testing.assert_allclose(np.abs(stretched.components_LKD[:, :4]), np.abs(plain.components_LKD[:, :4]), atol=1e-7)
    np.testing.assert_allclose(stretched.variance_ratio_LM, plain.variance_ratio_LM, atol=1e-9)
    assert (np.abs(fit_pca(fully * stretch_D, axis).components_LKD[:, 0, 7]) > 0.99).all()


def test_components_explain_the_planted_share_of_rollouts(world: World, fully: np.ndarray, axis: np.ndarray):
    pca = fit_pca(fully, axis)
    rows = [n for n, address in enumerate(world.addresses()) if world.score(address) == 3.0]
    values_NLD = world.values[rows]
    moments = Moments.of(values_NLD)
    share_LK = rollout_variance_share(pca.scores(values_NLD).var(axis=0, ddof=1), moments.total_variance())
    shift = world.question_shift.var()
    total = (SPREADS**2).sum() + shift + NOISE**2 * world.d_model
    first = SPREADS[0] ** 2 + NOISE**2 + PC1_COSINE**2 * shift
    np.testing.assert_allclose(share_LK[:, 0], first / total, rtol=0.03)
    np.testing.assert_allclose(share_LK[:, 2], (SPREADS[2] ** 2 + NOISE**2) / total, rtol=0.05)


def test_percentiles_are_the_planted_ones_in_both_signs_and_capping_holds_them(world: World, axis: np.ndarray):
    projections_NL = project(world.values, axis)
    found = thresholds(projections_NL, (1, 25, 50, 75, 99.5))
    assert found.labels == ("p0.01", "p0.25", "p0.5", "p0.75", "p0.995")
    for number, fraction in enumerate((0.01, 0.25, 0.5, 0.75)):
        expected = world.projection_quantile(1 - fraction)
        assert found.floor_on_axis_QL[number] == pytest.approx(expected, abs=0.35), fraction
        assert found.cap_on_minus_axis_QL[number] == pytest.approx(-expected, abs=0.35), fraction
    settings = capping_settings(axis, (0, 1), found, 2, widths=(2,))
    chosen = next(setting for setting in settings if setting.name == "layers_0:2-p0.25")
    for layer in range(2):
        capped = ceiling_on_minus_axis(world.values[:, layer], chosen.vectors_LD[layer], float(chosen.caps_L[layer]))
        moved = ~np.isclose(capped, world.values[:, layer]).all(axis=1)
        # Three of four rollouts lie above the 25th percentile on -axis, and are brought to it.
        assert moved.mean() == pytest.approx(0.75, abs=0.01)


def test_intervals_over_questions_are_as_wide_as_the_planted_questions_make_them(world: World, axis: np.ndarray):
    addresses = world.addresses()
    rows = [n for n, address in enumerate(addresses) if world.score(address) == 3.0]
    personas = np.array([world.roles.index(addresses[n].persona) for n in rows])
    questions = np.array([addresses[n].question_index for n in rows])
    projections_NL = project(world.values[rows], axis)
    low_PL, high_PL = question_intervals(projections_NL, personas, questions, samples=400)
    # A bootstrap mean of Q questions varies by their standard deviation (n) over the root of Q.
    expected = 2 * 1.96 * np.sqrt((world.question_shift.var() + NOISE**2) / world.num_questions)
    assert np.mean(high_PL - low_PL) == pytest.approx(expected, rel=0.1)
    truth_PL = (OFFSET + PC1_COSINE * world.scores[:, 0])[:, None]
    assert ((low_PL < truth_PL) & (truth_PL < high_PL)).mean() > 0.97
