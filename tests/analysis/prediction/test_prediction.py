"""Prediction of replies by messages: a planted R^2 comes back, no relation gives none, and nothing held out is seen."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
from persona_atlas.analysis.axes.axis_model import AxisModel
from persona_atlas.analysis.axis_source import AxisSource
from persona_atlas.analysis.dialogues.turns import Turns
from persona_atlas.analysis.prediction.clusters import clusters_of, k_means
from persona_atlas.analysis.prediction.holding_out import Scheme, folds_of, permuted_places, schemes_of
from persona_atlas.analysis.prediction.picture import write_picture
from persona_atlas.analysis.prediction.predict import PredictionResults, PredictionSettings, predict_of
from persona_atlas.analysis.prediction.regression import Fit, Regression, regress
from persona_atlas.analysis.prediction.ridge import STRENGTHS, RidgePath, held_out, r_squared
from persona_atlas.jobs.errors import InputError

from fakes import FACTS
from made_turns import made_turns
from planted_vectors import LAYERS, WIDTH, plant

GROUPS, PERSONAS, PER_PERSONA, REPLIES, FEATURES = 3, 4, 6, 8, 12
OFFSET = 5000.0


@dataclass(frozen=True)
class World:
    """Replies whose projection is a known part of the message, of its conversation, and of noise."""

    turns: Turns
    features_NE: np.ndarray


def world(
    share: float, of_conversation: float = 0.3, seed: int = 0, features: int = FEATURES, alike: float = 0.5
) -> World:
    """Make 72 conversations of eight replies.

    Args:
        share: Share of the variance of the projection that is linear in the message: the R^2 that can be had.
        of_conversation: Share that is the conversation's own; the rest is noise of each reply.
        seed: Seed of the world.
        features: Width of the messages.
        alike: Share of the variance of the messages that is their conversation's own.
    """
    rng = np.random.default_rng(seed)
    conversations = GROUPS * PERSONAS * PER_PERSONA
    own_CE = rng.normal(size=(conversations, 1, features))
    features_CTE = np.sqrt(alike) * own_CE + np.sqrt(1 - alike) * rng.normal(size=(conversations, REPLIES, features))
    weights_E = rng.normal(size=features)
    weights_E *= np.sqrt(share) / np.linalg.norm(weights_E)
    values_CT = features_CTE @ weights_E
    values_CT += np.sqrt(of_conversation) * rng.normal(size=(conversations, 1))
    values_CT += np.sqrt(1 - share - of_conversation) * rng.normal(size=values_CT.shape)
    names = [f"group{place % GROUPS}" for place in range(conversations)]
    prompts = [place // GROUPS % PERSONAS for place in range(conversations)]
    made = [(name, OFFSET + 30 * values_T) for name, values_T in zip(names, values_CT, strict=True)]
    return World(made_turns(made, prompts=prompts), features_CTE.reshape(-1, features))


def of(found: World, permutations: int = 99, **changes: int) -> Regression:
    numbers = {"folds": 5, "permutations": permutations, "samples": 300, "seed": 0} | changes
    schemes, _ = schemes_of(found.turns)
    return regress("projection", found.turns, found.features_NE, found.turns.projection, schemes, **numbers)


def named(found: Regression) -> dict[str, Fit]:
    return {fit.name: fit for fit in found.fits}


@pytest.fixture(scope="module")
def related() -> Regression:
    return of(world(0.5))


@pytest.fixture(scope="module")
def unrelated() -> Regression:
    return of(world(0.0, features=60))


def test_a_planted_r_squared_comes_back_when_conversations_and_personas_are_held_out(related: Regression):
    fits = named(related)
    assert list(fits) == [
        "in-sample",
        "in-sample, weakest penalty",
        "held-out conversations",
        "held-out user personas",
        "held-out groups",
    ]
    for name in ("held-out conversations", "held-out user personas", "held-out groups"):
        # 576 replies of 72 conversations whose own levels are 0.3 of the variance: 0.08 is about two standard errors.
        assert fits[name].r_squared == pytest.approx(0.5, abs=0.08), name
        assert not fits[name].flatters
        assert fits[name].p_value == 0.01
    low, high = fits["held-out conversations"].interval
    assert low < 0.5 < high
    assert high - low < 0.25
    assert fits["in-sample"].flatters
    assert fits["in-sample"].r_squared > fits["held-out conversations"].r_squared
    assert fits["held-out user personas"].num_groups == GROUPS * PERSONAS
    assert np.isnan(fits["held-out groups"].interval[0])
    assert np.corrcoef(related.predicted_N, related.actual_N)[0, 1] == pytest.approx(np.sqrt(0.5), abs=0.1)


def test_without_a_relation_what_is_held_out_is_not_predicted_and_the_in_sample_figure_flatters(unrelated: Regression):
    fits = named(unrelated)
    for name, fit in fits.items():
        if name.startswith("held-out"):
            assert fit.r_squared < 0.02, name
            assert fit.p_value > 0.05, name
    assert fits["in-sample, weakest penalty"].r_squared > 0.15
    assert fits["in-sample"].r_squared > fits["held-out conversations"].r_squared


def test_the_permutation_test_has_its_size_though_conversations_have_levels_of_their_own():
    """Levels and messages that are alike within a conversation make single replies look related."""
    p_values = []
    for seed in range(24):
        found = world(0.0, of_conversation=0.9, seed=seed, features=2, alike=0.95)
        numbers = {"folds": 3, "permutations": 19, "samples": 10, "seed": seed}
        schemes = schemes_of(found.turns)[0][:1]
        fits = regress("change", found.turns, found.features_NE, found.turns.projection, schemes, **numbers).fits
        p_values.append(fits[-1].p_value)
    assert np.mean(np.array(p_values) <= 0.1) <= 0.25
    assert min(p_values) >= 0.05


def test_a_relation_between_groups_alone_is_found_but_is_no_more_than_the_group():
    rng = np.random.default_rng(5)
    made, features = [], []
    for place in range(60):
        group = place % 3
        made.append((f"group{group}", 10.0 * group + rng.normal(size=6)))
        features.append(np.eye(3)[[group] * 6] + 0.05 * rng.normal(size=(6, 3)))
    fit = named(of(World(made_turns(made), np.concatenate(features))))["held-out conversations"]
    assert fit.r_squared > 0.95
    assert fit.group_only == pytest.approx(fit.r_squared, abs=0.02)
    assert fit.p_value > 0.05
    assert fit.mean_only <= 0


def test_r_squared_is_against_the_mean_of_all_replies_and_not_of_a_training_part_that_is_moved_away():
    """Three groups of levels of their own and no message: leaving one out moves the mean of the others far from it."""
    rng = np.random.default_rng(3)
    made = [(f"group{place % 3}", 10.0 * (place % 3) + rng.normal(size=6)) for place in range(30)]
    found = World(made_turns(made), rng.normal(size=(180, 4)))
    # Without prompts of their own the user personas are the groups.
    fit = named(of(found))["held-out user personas"]
    # The training mean is off by 15, 0 and 15, where the groups lie 10, 0 and 10 from the mean of all.
    assert fit.mean_only == pytest.approx(1 - 450 / 200, abs=0.1)
    assert fit.r_squared < -0.8


def test_no_row_has_a_part_in_the_model_or_in_the_strength_that_predicts_it():
    rng = np.random.default_rng(6)
    features_NE, targets_NP = rng.normal(size=(40, 5)), rng.normal(size=(40, 1))
    fold_N = np.arange(40) % 4
    before = held_out(features_NE, targets_NP, fold_N)
    changed = targets_NP.copy()
    changed[fold_N == 2] += 1000 * rng.normal(size=(10, 1))
    after = held_out(features_NE, changed, fold_N)
    np.testing.assert_array_equal(before.predicted_NP[fold_N == 2], after.predicted_NP[fold_N == 2])
    np.testing.assert_array_equal(before.strength_KP[2], after.strength_KP[2])
    assert not np.allclose(before.predicted_NP[fold_N != 2], after.predicted_NP[fold_N != 2])
    with pytest.raises(ValueError, match="2 folds"):
        held_out(features_NE, targets_NP, fold_N % 2)


def test_ridge_is_the_solution_of_its_normal_equations():
    rng = np.random.default_rng(7)
    features_NE, targets_NP = 3 + rng.normal(size=(30, 4)), 100 + rng.normal(size=(30, 2))
    centred_NE = features_NE - features_NE.mean(axis=0)
    penalty = 0.1 * np.trace(centred_NE.T @ centred_NE) / 4
    weights_EP = np.linalg.solve(centred_NE.T @ centred_NE + penalty * np.eye(4), centred_NE.T @ targets_NP)
    expected = targets_NP.mean(axis=0) + centred_NE @ weights_EP
    np.testing.assert_allclose(RidgePath(features_NE, targets_NP).predict(features_NE, 0.1), expected, atol=1e-9)
    # Features without variance say nothing.
    flat = RidgePath(np.ones((30, 4)), targets_NP).predict(np.ones((3, 4)), STRENGTHS[-1])
    np.testing.assert_allclose(flat, np.tile(targets_NP.mean(axis=0), (3, 1)))
    constant = np.ones((3, 1))
    assert np.isnan(r_squared(constant, constant)[0])


def test_held_out_groups_are_whole_and_folds_alike():
    labels_N = np.repeat(np.arange(20), np.arange(1, 21))
    fold_N = folds_of(Scheme("conversations", labels_N, 20), 5, seed=0)
    assert all(len(set(fold_N[labels_N == group])) == 1 for group in range(20))
    sizes = np.bincount(fold_N)
    assert len(sizes) == 5
    assert sizes.max() - sizes.min() <= 5


def test_schemes_that_are_the_same_or_too_small_are_named_and_left_out():
    extra = [{"topic": name, "user_persona": "nurse"} for name in ("a", "b", "a", "c")]
    turns = made_turns([("therapy", [1.0, 2.0])] * 4, extra=extra)
    schemes, notes = schemes_of(turns)
    assert [(scheme.name, scheme.num_groups) for scheme in schemes] == [("conversations", 4), ("topics", 3)]
    assert any("user personas, of which there are 1" in note for note in notes)
    same, notes = schemes_of(made_turns([("a", [1.0]), ("b", [1.0]), ("c", [1.0])]))
    assert [scheme.name for scheme in same] == ["conversations"]
    assert sum("the same as held-out conversations" in note for note in notes) == 3


def test_conversations_are_permuted_whole_and_within_their_group():
    turns = made_turns([("a", [1, 2, 3]), ("a", [4, 5]), ("b", [6]), ("b", [7]), ("a", [8, 9, 10])])
    places = permuted_places(turns, 50, seed=0)
    assert places is not None
    for column in places.T:
        assert (turns.group[column] == turns.group).all()
        moved = turns.conversation_index[column]
        assert len(set(moved[:3])) == len(set(moved[3:5])) == 1
        # The third reply of a longer conversation gets the first value of a shorter one.
        assert column[:3].tolist() in ([0, 1, 2], [3, 4, 3], [7, 8, 9])
    assert len({tuple(column) for column in places.T}) > 5
    assert permuted_places(made_turns([("a", [1.0]), ("b", [1.0])]), 3, seed=0) is None


def test_clusters_tell_which_messages_move_the_persona():
    rng = np.random.default_rng(8)
    centres = np.eye(3) * 4
    effects = (-5.0, 0.0, 4.0)
    kinds = rng.integers(0, 3, (30, 9))
    lines, features, texts = [], [], []
    for conversation in range(30):
        line = np.cumsum([0.0, *(effects[kind] + rng.normal(0, 1) for kind in kinds[conversation])])
        lines.append(("therapy" if conversation % 2 else "coding", line))
        features.append(rng.normal(size=(1, 3)))
        features.append(centres[kinds[conversation]] + 0.3 * rng.normal(size=(9, 3)))
        texts += ["first", *(f"kind {kind}" for kind in kinds[conversation])]
    turns, features_NE = made_turns(lines, user=texts), np.concatenate(features)
    later = turns.reply_number > 1
    changes_N = np.concatenate([np.diff(line) for _, line in lines])
    found = clusters_of(turns.take(later), features_NE[later], changes_N, count=3, typical=3, samples=500, seed=0)
    assert [cluster.typical for cluster in found] == [("kind 0",), ("kind 1",), ("kind 2",)]
    assert [cluster.effect for cluster in found] == ["away", "keeps", "toward"]
    for cluster, effect in zip(found, effects, strict=True):
        assert cluster.change == pytest.approx(effect, abs=0.5)
        assert (cluster.p_value < 0.01) == (effect != 0)
        assert sum(share for _, share in cluster.groups) == pytest.approx(1)
    assert sum(cluster.num_messages for cluster in found) == 270


def test_k_means_is_the_same_twice_and_leaves_no_cluster_empty():
    points = np.random.default_rng(9).normal(size=(80, 4))
    labels, centres = k_means(points, 7, seed=1)
    again, _ = k_means(points, 7, seed=1)
    np.testing.assert_array_equal(labels, again)
    assert np.bincount(labels).min() > 0
    np.testing.assert_allclose(centres[3], points[labels == 3].mean(axis=0))
    # Fewer different points than clusters.
    few, centres = k_means(np.repeat([[0.0], [1.0]], 5, axis=0), 4, seed=0)
    assert (len(centres), sorted(np.bincount(few))) == (2, [5, 5])


@pytest.fixture(scope="module")
def axis() -> AxisSource:
    return AxisSource.of(plant().reduction, AxisModel("none", LAYERS, WIDTH, fingerprint=FACTS.fingerprint), "made")


def results_of(found: World, axis: AxisSource, **settings: int) -> PredictionResults:
    chosen = PredictionSettings(**({"permutations": 19, "samples": 100} | settings))
    return predict_of(found.turns, found.features_NE, axis, chosen, store="s", model="m", embedder="e")


def test_replies_without_a_projection_or_a_message_are_passed_over_and_json_has_no_nan(axis: AxisSource, tmp_path):
    made = world(0.5)
    projections_NL = made.turns.projections_NL.copy()
    projections_NL[3] = np.nan
    user = made.turns.user.copy()
    user[REPLIES] = " "
    turns = Turns(**{**vars(made.turns), "projections_NL": projections_NL, "user": user})
    found = results_of(World(turns, made.features_NE), axis)
    total = GROUPS * PERSONAS * PER_PERSONA * REPLIES
    assert found.projection.num_replies == total - 2
    assert found.change is not None
    # The reply after the empty one has no change either; the first replies have none.
    assert found.change.num_replies == total - GROUPS * PERSONAS * PER_PERSONA - 2
    document = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert document["projection"]["fits"][0]["flatters"] is True
    assert document["projection"]["fits"][0]["p_value"] is None
    assert any("in-sample figures flatter" in note for note in document["notes"])
    assert document == results_of(World(turns, made.features_NE), axis).as_dict()
    write_picture(found, tmp_path / "prediction.svg")
    drawn = (tmp_path / "prediction.svg").read_text()
    assert "(flatters)" in drawn
    assert "held-out user personas" in drawn


def test_too_few_conversations_or_embeddings_that_are_no_numbers_are_refused(axis: AxisSource):
    few = World(made_turns([("a", [1.0, 2.0]), ("a", [1.0, 3.0])]), np.ones((4, 2)))
    with pytest.raises(InputError) as told:
        results_of(few, axis)
    assert told.value.code == "too_few_conversations"
    with pytest.raises(InputError, match="not finite"):
        results_of(World(few.turns, np.full((4, 2), np.nan)), axis)


def test_conversations_of_one_reply_have_no_changes(axis: AxisSource):
    rng = np.random.default_rng(1)
    found = results_of(
        World(made_turns([("a", [value]) for value in rng.normal(size=12)]), rng.normal(size=(12, 2))), axis
    )
    assert (found.change, found.clusters) == (None, ())
    assert any("Too few conversations have a second reply" in note for note in found.notes)
