"""Drift of conversations: a planted drift comes back, intervals cover, tests have their size, nothing hides a gap."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from persona_atlas.analysis.axes.axis_model import AxisModel
from persona_atlas.analysis.axis_source import AxisSource
from persona_atlas.analysis.dialogues.drift import DriftResults, DriftSettings, drift_of
from persona_atlas.analysis.dialogues.moves import changes_of, largest_moves
from persona_atlas.analysis.dialogues.picture import write_picture
from persona_atlas.analysis.dialogues.resampling import holm, mean_intervals, sign_flip_p
from persona_atlas.analysis.dialogues.trajectories import Window, drops_of, grid_of, trajectory_of
from persona_atlas.analysis.dialogues.turns import Turns
from persona_atlas.cluster.cli.studies.turns_output import print_drift
from persona_atlas.jobs.errors import InputError

from fakes import FACTS
from made_turns import made_turns
from planted_vectors import LAYERS, WIDTH, plant

DRIFTS = {"coding": 0.0, "philosophy": -0.4, "therapy": -0.8, "writing": 0.0}
"""Planted change of the mean projection from one reply to the next."""
START, BETWEEN, WITHIN = 9000.0, 3.0, 2.0
"""Mean of the first replies, and the standard deviations over conversations and of single replies."""


def world(per_group: int = 60, replies: int = 15, seed: int = 2) -> Turns:
    """Conversations of 5 to ``replies`` replies, each with a level of its own, on lines that slope as planted."""
    rng = np.random.default_rng(seed)
    made = []
    for group, slope in DRIFTS.items():
        for _ in range(per_group):
            length = int(rng.integers(5, replies + 1))
            line = START + rng.normal(0, BETWEEN) + slope * np.arange(length) + rng.normal(0, WITHIN, length)
            made.append((group, line))
    return made_turns(made)


@pytest.fixture(scope="module")
def axis() -> AxisSource:
    model = AxisModel("none", LAYERS, WIDTH, fingerprint=FACTS.fingerprint)
    return AxisSource.of(plant().reduction, model, "made")


@pytest.fixture(scope="module")
def planted(axis: AxisSource) -> DriftResults:
    return drift_of(world(), axis, DriftSettings(), store="runs/made", model="none")


def test_a_planted_drift_comes_back_within_its_interval(planted: DriftResults):
    for one in planted.trajectories:
        expected_T = START + DRIFTS[one.group] * np.arange(len(one.mean_T))
        # Five standard errors: of level and noise, and of the noise alone for changes.
        error_T = 5 * np.hypot(BETWEEN, WITHIN) / np.sqrt(one.count_T)
        assert (np.abs(one.mean_T - expected_T) < error_T).all()
        change_T = DRIFTS[one.group] * np.arange(len(one.mean_T))
        assert (np.abs(one.change_T - change_T) < 5 * WITHIN * np.sqrt(2 / one.count_T)).all()
        inside = (one.interval_T2[:, 0] <= expected_T) & (expected_T <= one.interval_T2[:, 1])
        assert inside.mean() > 0.7
        assert one.count_T[0] == 60
        assert (np.diff(one.count_T) <= 0).all()
        assert one.count_T[-1] < 20


def test_the_drop_and_its_test_tell_who_drifted(planted: DriftResults):
    drops = {drop.group: drop for drop in planted.drops}
    assert list(drops) == ["coding", "philosophy", "therapy", "writing", "all"]
    for group, slope in DRIFTS.items():
        # Lengths of 5 to 15 replies: the last three lie eight replies after the first on average.
        assert abs(drops[group].change - 8 * slope) < 1.5
        assert (drops[group].p_adjusted < 0.001) == (slope != 0)
        assert drops[group].p_adjusted >= drops[group].p_value > 0
    # Without a slope the change is noise alone: that of one reply and of the mean of three, over 60 conversations.
    width = 2 * 1.96 * WITHIN * np.sqrt((1 + 1 / 3) / 60)
    for group in ("coding", "writing"):
        assert drops[group].interval[1] - drops[group].interval[0] == pytest.approx(width, rel=0.25)
    assert drops["therapy"].share_down > 0.9
    assert drops["all"].num_conversations == 240
    assert np.isnan(drops["all"].p_adjusted)


def test_the_bootstrap_is_over_conversations_and_not_over_replies():
    # Each conversation is constant: 200 replies, but only 20 independent levels.
    rng = np.random.default_rng(0)
    levels = rng.normal(0, 1, 20)
    grid = np.repeat(levels[:, None], 10, axis=1)
    for low, high in mean_intervals(grid):
        assert high - low == pytest.approx(2 * 1.96 * levels.std() / np.sqrt(20), rel=0.1)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(3)
    draws = rng.normal(0, 1, (200, 30))
    bounds = [mean_intervals(values[:, None], samples=400, seed=n)[0] for n, values in enumerate(draws)]
    assert 0.88 <= np.mean([low <= 0 <= high for low, high in bounds]) <= 0.99


def test_sign_flips_have_the_size_that_they_say_and_never_give_zero():
    rng = np.random.default_rng(4)
    found = [sign_flip_p(rng.normal(0, 1, 20), flips=199, seed=n) for n in range(300)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.08
    assert sign_flip_p(-np.arange(1.0, 41)) == 1 / 10_000
    assert sign_flip_p(np.array([-1.0, -2.0, -3.0])) == 0.25
    assert np.isnan(sign_flip_p(np.array([])))
    with pytest.raises(ValueError, match="not finite"):
        sign_flip_p(np.array([1.0, np.nan]))


def test_holm_never_lowers_a_p_value_and_passes_over_tests_that_were_not_made():
    adjusted = holm([0.04, float("nan"), 0.01])
    assert (adjusted[0], adjusted[2]) == (0.04, 0.02)
    assert np.isnan(adjusted[1])


def test_an_empty_reply_is_a_gap_and_never_a_number():
    turns = made_turns([("a", [5.0, np.nan, 3.0, 2.0]), ("a", [np.nan, 4.0]), ("a", [np.nan])])
    grid_CT = grid_of(turns)["a"]
    found = trajectory_of("a", grid_CT)
    assert found.num_conversations == 2
    assert found.count_T.tolist() == [1, 1, 1, 1]
    assert found.mean_T.tolist() == [5, 4, 3, 2]
    # Without a first reply there is no change since it.
    assert found.change_T.tolist()[2:] == [-2, -3]
    assert np.isnan(found.change_T[1])
    assert np.isnan(found.interval_T2).all()
    (drop,) = drops_of({"a": grid_CT}, Window(1, 2))
    assert (drop.num_conversations, drop.num_left_out, drop.change) == (1, 2, -2.5)
    changes_N = changes_of(turns)
    assert changes_N[3] == -1
    assert np.isfinite(changes_N).sum() == 1
    # A gap is a gap also when the empty replies are gone.
    assert np.isfinite(changes_of(turns.measured())).sum() == 1


def test_the_replies_that_moved_most_come_with_what_stood_there():
    turns = made_turns([("a", [5.0, 1.0, 4.0]), ("b", [0.0, -1.0, -9.0])])
    away, toward = largest_moves(turns, 2)
    assert [(move.conversation_index, move.turn_index, move.change) for move in away] == [(1, 5, -8.0), (0, 3, -4.0)]
    assert [(move.conversation_index, move.turn_index, move.change) for move in toward] == [(0, 5, 3.0)]
    assert (away[0].user, away[0].reply_before, away[0].reply) == ("message 5 of 1", "reply 3 of 1", "reply 5 of 1")


def test_no_group_changes_the_numbers_of_another(axis: AxisSource, planted: DriftResults):
    turns = world()
    alone = drift_of(turns.take(turns.group == "therapy"), axis, DriftSettings(), store="s", model="m")
    together = next(one for one in planted.trajectories if one.group == "therapy")
    np.testing.assert_array_equal(alone.trajectories[0].interval_T2, together.interval_T2)
    assert alone.drops[0].interval == planted.drops[2].interval
    assert [drop.group for drop in alone.drops] == ["therapy"]


def test_conversations_are_grouped_by_a_key_of_their_own(axis: AxisSource):
    extra = [{"user_persona": name} for name in ("nurse", "pilot", "nurse")]
    turns = made_turns([("a", [1.0, 2.0]), ("a", [1.0, 0.0]), ("b", [3.0, 3.0])], extra=extra)
    found = drift_of(turns, axis, DriftSettings(by="user_persona"), store="s", model="m")
    assert [(one.group, one.num_conversations) for one in found.trajectories] == [("nurse", 2), ("pilot", 1)]
    with pytest.raises(InputError, match="user_persona"):
        drift_of(turns, axis, DriftSettings(by="mood"), store="s", model="m")


def test_conversations_without_any_projection_are_refused(axis: AxisSource):
    with pytest.raises(InputError) as told:
        drift_of(made_turns([("a", [np.nan])]), axis, DriftSettings(), store="s", model="m")
    assert told.value.code == "no_replies"


def test_json_has_scores_and_null_where_nothing_is_known(axis: AxisSource, planted: DriftResults):
    document = json.loads(json.dumps(planted.as_dict(), allow_nan=False))
    scale = planted.scale.distribution
    first = document["trajectories"][0]["replies"][0]
    assert first["z_score"] == pytest.approx((first["mean"] - scale.mean) / scale.std)
    assert first["percentile"] == 100
    assert document["drops"][2]["change_in_std"] == pytest.approx(planted.drops[2].change / scale.std)
    short = drift_of(made_turns([("a", [1.0])]), axis, DriftSettings(), store="s", model="m")
    assert short.as_dict()["drops"][0]["change"] is None
    assert any("which have no drop: 1" in note for note in short.notes)
    assert any("intervals are too narrow" in note for note in short.notes)


def test_the_picture_and_the_tables_show_every_group(planted: DriftResults, tmp_path, capsys: pytest.CaptureFixture):
    write_picture(planted, tmp_path / "drift.svg")
    drawn = (tmp_path / "drift.svg").read_text()
    assert all(f">{group}<" in drawn for group in DRIFTS)
    assert "conversations" in drawn
    print_drift(planted, tmp_path / "drift.svg")
    printed = capsys.readouterr().out
    assert all(group in printed for group in DRIFTS)
    assert "negative is away from the Assistant" in printed


def test_a_picture_of_conversations_with_one_reply_can_be_drawn(axis: AxisSource, tmp_path):
    short = drift_of(made_turns([("a", [1.0]), ("b", [2.0])]), axis, DriftSettings(), store="s", model="m")
    write_picture(short, tmp_path / "short.png")
    assert (tmp_path / "short.png").stat().st_size > 5000


def test_drift_is_the_same_twice(axis: AxisSource):
    turns = world(per_group=5)
    first, second = (drift_of(turns, axis, DriftSettings(), store="s", model="m").as_dict() for _ in range(2))
    assert first == second
    other = drift_of(turns, axis, replace(DriftSettings(), seed=1), store="s", model="m").as_dict()
    assert other["trajectories"] != first["trajectories"]
