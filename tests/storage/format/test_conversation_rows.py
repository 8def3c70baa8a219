"""Rows of given conversations in a store: their own columns, filters, checks, and nothing else changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.storage.format.planned_units import read_units
from persona_atlas.storage.format.records import CommitRecord, parse_record
from persona_atlas.storage.format.rollout_tables import INDEX_SCHEMA, ROLLOUT_SCHEMA
from persona_atlas.storage.query.export_file import write_query
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.index_keeper import refresh_index
from persona_atlas.storage.run.run_store import check_same_run
from persona_atlas.storage.verification.verify import verify_run

from conversations import conversation, given_plan
from fakes import FakeEngine, small_plan, small_spec, vector_of
from stored_runs import small_run, store_run

ARRAY = ("resid_post", "response_mean")
TALKS = [
    replace(conversation("Hi", "Hello", "So?", "So.", index=0), extra='{"id": 7}'),
    conversation("Who?", "Nobody", index=1),
    *[conversation(*["x", "y"] * 90, index=index) for index in (2, 3, 4)],
]


def test_rows_have_their_conversation_and_turn_and_the_inputs_other_keys(store_url: str):
    plan = given_plan(*TALKS)
    empty = RolloutAddress("conversation", "talks", "pos", 0, 1, 0, 1)
    location = store_run(store_url, plan, engine=FakeEngine(empty=frozenset({empty})))
    run = open_run(store_url)
    assert (len(plan.units), run.index.num_rows) == (2, 273)
    assert run.index.column_names == [*INDEX_SCHEMA.names, "conversation_index", "turn_index"]
    places = [(line["conversation_index"], line["turn_index"]) for line in run.index.to_pylist()]
    assert places == [(talk.conversation_index, turn) for talk in TALKS for turn in talk.turn_indices()]

    found = run.activations(conversation=[0, 3], turn=[1, 3], layer="all")
    assert found.rollouts["conversation_index"].to_pylist() == [0, 0, 3, 3]
    for line, values in zip(found.rollouts.to_pylist(), found.values, strict=True):
        address = RolloutAddress("conversation", "talks", "pos", 0, line["conversation_index"], 0, line["turn_index"])
        np.testing.assert_allclose(values, vector_of(address, ARRAY, 4, 16), rtol=1e-3)
    assert run.activations(conversation=1).values.shape[0] == 0

    texts = run.rollouts(conversation=0)
    assert texts["response"].to_pylist() == ["Hello", "So."]
    assert [json.loads(extra) for extra in texts["extra"].to_pylist()] == [{"id": 7}] * 2
    assert texts.schema.names == [*ROLLOUT_SCHEMA.names, "conversation_index", "turn_index", "extra"]
    assert run.rollouts(persona="nobody").schema == texts.schema

    assert read_units(location, run.record) == plan.by_id
    assert all(unit.turn_indices and unit.conversation_indices for unit in plan.units)
    refresh_index(location, run.record)
    assert open_run(store_url).index.equals(run.index)
    checked = verify_run(location)
    assert checked.is_sound
    assert checked.is_complete
    assert not checked.problems


def test_numbers_go_out_with_their_conversation_and_turn(tmp_path: Path):
    store_run(str(tmp_path / "run"), given_plan(*TALKS))
    query = open_run(str(tmp_path / "run")).query(conversation=[0, 1])
    write_query(query, tmp_path / "talks.npz")
    with np.load(tmp_path / "talks.npz") as file:
        assert file["conversation_index"].tolist() == [0, 0, 1]
        assert file["turn_index"].tolist() == [1, 3, 1]
    dataset = open_run(str(tmp_path / "run")).to_xarray(conversation=0)
    assert dataset.turn_index.values.tolist() == [1, 3]


def test_a_run_of_personas_is_what_it_was(tmp_path: Path):
    run = small_run(str(tmp_path / "run"))
    assert run.index.schema == INDEX_SCHEMA
    assert run.rollouts().schema == ROLLOUT_SCHEMA
    with pytest.raises(InputError, match="its texts were generated"):
        run.query(conversation=0)
    with pytest.raises(InputError, match="its texts were generated"):
        run.rollouts(turn=[1])
    path = sorted((tmp_path / "run" / "commits").iterdir())[0]
    assert set(json.loads(path.read_bytes())["manifest"]["unit"]) == {
        "unit_id", "kind", "persona", "polarity", "prompt_index", "question_indices", "samples"
    }  # fmt: skip
    commit = parse_record(CommitRecord, path.read_bytes(), str(path))
    assert commit.manifest.unit.turn_indices is None
    assert commit.manifest.unit.conversation_indices is None


def test_other_conversations_are_another_run(tmp_path: Path):
    url = str(tmp_path / "run")
    store_run(url, given_plan(*TALKS))
    record = open_run(url).record
    check_same_run(record, given_plan(*TALKS), url)
    with pytest.raises(InputError) as caught:
        check_same_run(record, given_plan(*TALKS[:2]), url)
    assert caught.value.field == "conversations.source"
    with pytest.raises(InputError) as caught:
        check_same_run(record, small_plan(small_spec(url)), url)
    assert caught.value.code == "other_run"


def test_conversations_of_nobody_have_nothing_to_reduce(tmp_path: Path):
    store_run(str(tmp_path / "run"), given_plan(*TALKS))
    with pytest.raises(InputError, match="no means to take"):
        reduce_run(open_run(str(tmp_path / "run")))
