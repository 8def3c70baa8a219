"""The replies of a run of conversations as columns: whose they are, what was said, and where they lie on an axis."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from persona_atlas.analysis.axes.axis_model import AxisModel
from persona_atlas.analysis.axis_source import AxisSource
from persona_atlas.analysis.dialogues import turns as turns_module
from persona_atlas.analysis.dialogues.turns import Turns, read_turns
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.storage.query.run import Run, open_run

from conversations import conversation, given_plan
from fakes import FACTS, FakeEngine, vector_of
from planted_vectors import LAYERS, WIDTH, plant
from stored_runs import small_run, store_run

EMPTY = RolloutAddress("conversation", "coding", "pos", 0, 1, 0, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three conversations of two, three and one replies in two groups; the second reply of the second is empty."""
    talks = [
        conversation("c0", "a", "c1", "b", index=0),
        conversation("d0", "a", "d1", "", "d2", "c", index=1),
        conversation("t0", "a", index=2),
    ]
    talks = [
        replace(talk, persona=persona, extra=extra)
        for talk, persona, extra in zip(
            talks,
            ("coding", "coding", "therapy"),
            ('{"topic": "tests", "n": 1}', '{"topic": "loops"}', '{"topic": "sleep"}'),
            strict=True,
        )
    ]
    plan = given_plan(*talks)
    return open_run(
        store_run(str(tmp_path_factory.mktemp("turns") / "run"), plan, engine=FakeEngine(empty=frozenset({EMPTY}))).url
    )


@pytest.fixture(scope="module")
def axis() -> AxisSource:
    return axis_at(tuple(range(LAYERS)))


def axis_at(layers: tuple[int, ...], **model: object) -> AxisSource:
    known = {"source": "none", "n_layers": LAYERS, "d_model": WIDTH, "fingerprint": FACTS.fingerprint} | model
    return AxisSource.of(plant(layers).reduction, AxisModel(**known), "made")  # pyright: ignore[reportArgumentType]


def test_each_reply_has_its_texts_and_its_own_projection(run: Run, axis: AxisSource):
    turns = read_turns(run, axis, [3, 1])
    assert turns.layers == (3, 1)
    assert turns.conversation_index.tolist() == [0, 0, 1, 1, 1, 2]
    assert turns.turn_index.tolist() == [1, 3, 1, 3, 5, 1]
    assert turns.reply_number.tolist() == [1, 2, 1, 2, 3, 1]
    assert turns.group.tolist() == ["coding"] * 5 + ["therapy"]
    assert turns.user.tolist() == ["c0", "c1", "d0", "d1", "d2", "t0"]
    assert (turns.response[0], turns.response[3], turns.num_conversations) == ("a", "", 3)
    for place in range(len(turns)):
        question, turn = int(turns.question_index[place]), int(turns.turn_index[place])
        address = RolloutAddress("conversation", str(turns.group[place]), "pos", 0, question, 0, turn)
        vector_LD = vector_of(address, ("resid_post", "response_mean"), LAYERS, WIDTH).astype(np.float64)
        expected = [vector_LD[layer] @ axis.unit_D(layer) for layer in (3, 1)]
        if address == EMPTY:
            expected = [np.nan, np.nan]
        # Stored with ten bits of mantissa.
        np.testing.assert_allclose(turns.projections_NL[place], expected, atol=0.02)
    assert np.array_equal(turns.at_layer(3), turns.projection, equal_nan=True)
    assert "Replies without text, which have no projection: 1." in turns.notes
    assert turns.measured().turn_index.tolist() == [1, 3, 1, 5, 1]


def test_parts_of_a_unit_each_give_the_same(run: Run, axis: AxisSource, monkeypatch: pytest.MonkeyPatch):
    whole = read_turns(run, axis)
    monkeypatch.setattr(turns_module, "_PART_BYTES", 1)
    np.testing.assert_array_equal(read_turns(run, axis).projections_NL, whole.projections_NL)


def test_labels_of_conversations_are_there_where_all_have_them(run: Run, axis: AxisSource):
    turns = read_turns(run, axis)
    labels = turns.labels("topic")
    assert labels is not None
    assert labels.tolist() == ["tests"] * 2 + ["loops"] * 3 + ["sleep"]
    assert turns.labels("n") is None
    numbers = turns.take(turns.conversation_index == 0).labels("n")
    assert numbers is not None
    assert numbers.tolist() == ["1", "1"]


def test_the_layer_is_the_captured_one_nearest_to_the_middle_of_the_axis(run: Run):
    assert read_turns(run, axis_at((0, 3))).layers == (3,)
    with pytest.raises(InputError, match="layer 1 has no axis"):
        read_turns(run, axis_at((0, 3)), 1)


def test_a_run_that_is_not_of_conversations_is_refused(tmp_path_factory: pytest.TempPathFactory, axis: AxisSource):
    with pytest.raises(InputError) as told:
        read_turns(small_run(str(tmp_path_factory.mktemp("plain") / "run")), axis)
    assert told.value.code == "no_conversations"


def test_another_model_is_refused_unless_it_is_meant(run: Run):
    other = axis_at((0, 1, 2, 3), source="another", fingerprint="e" * 64)
    with pytest.raises(InputError) as told:
        read_turns(run, other)
    assert told.value.code == "other_model"
    assert "Transferred" in read_turns(run, other, transfer=True).notes[0]


def test_replies_that_were_never_reached_are_no_turns(run: Run, axis: AxisSource, monkeypatch: pytest.MonkeyPatch):
    import pyarrow as pa

    index = run.index
    reasons = index["finish_reason"].to_pylist()
    reasons[3] = "not_reached"
    place = index.column_names.index("finish_reason")
    shortened = index.set_column(place, "finish_reason", pa.array(reasons))
    monkeypatch.setattr(Run, "index", property(lambda _: shortened))
    turns = read_turns(run, axis)
    assert turns.turn_index.tolist() == [1, 3, 1, 5, 1]
    assert turns.notes == ()


def test_conversations_are_found_whatever_the_sorting(run: Run, axis: AxisSource):
    turns = read_turns(run, axis)
    shuffled: Turns = turns.take(np.array([5, 2, 1, 0, 4, 3]))
    found = shuffled.by_conversation()
    assert list(found) == [2, 1, 0]
    assert [shuffled.turn_index[places].tolist() for places in found.values()] == [[1], [1, 3, 5], [1, 3]]
