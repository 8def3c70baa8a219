"""Units in memory and as they are stored: one form each way, the stored one as it always was."""

from __future__ import annotations

import json
from typing import Any

import pytest
from persona_atlas.jobs.work.units import WorkUnit
from persona_atlas.storage.format.parquet import from_parquet
from persona_atlas.storage.format.planned_units import encode_units
from persona_atlas.storage.format.stored_units import UnitField, stored_unit
from pydantic import TypeAdapter, ValidationError

from conversations import conversation, given_plan
from dialogues import dialogue_attempt
from fakes import small_plan, small_spec

FIELD: TypeAdapter[WorkUnit] = TypeAdapter(UnitField)

QUESTIONS = (
    '{"unit_id":"role.pirate.pos.p1.b0","kind":"role","persona":"pirate","polarity":"pos","prompt_index":1,'
    '"question_indices":[0,1,2],"samples":2}'
)
CONVERSATIONS = (
    '{"unit_id":"conversation.talks.pos.p0.b0","kind":"conversation","persona":"talks","polarity":"pos",'
    '"prompt_index":0,"question_indices":[0,1],"samples":1,"sample_indices":[0,0],"conversation_indices":[0,1],'
    '"turn_indices":[[1,3],[1]]}'
)


def units() -> list[WorkUnit]:
    roles = {"names": ["pirate"], "prompts": 2, "questions": 3, "samples": 2}
    asked = small_plan(small_spec(personas={"roles": roles, "default": {"prompts": 0}})).units
    read = given_plan(conversation("Hi", "Hello", "So?", "So.", index=0), conversation("Who?", "Nobody", index=1)).units
    return [asked[1], read[0]]


@pytest.mark.parametrize(("number", "stored"), [(0, QUESTIONS), (1, CONVERSATIONS)], ids=["questions", "conversations"])
def test_a_unit_is_stored_as_it_always_was_and_comes_back_whole(number: int, stored: str):
    unit = units()[number]
    assert FIELD.dump_json(unit).decode() == stored
    assert FIELD.validate_json(stored) == unit == FIELD.validate_python(json.loads(stored))
    assert FIELD.validate_python(unit) is unit
    assert from_parquet(encode_units([unit])).to_pylist() == [json.loads(stored)]


def test_units_that_ask_the_same_share_their_columns():
    line = json.loads(QUESTIONS)
    one, other = (FIELD.validate_python(line | {"unit_id": name}) for name in ("a", "b"))
    assert one.question_indices is other.question_indices
    assert one.sample_indices is other.sample_indices
    plan = small_plan()
    assert len({id(unit.question_indices) for unit in plan.units if unit.kind == "role"}) <= 3


def test_conversations_that_are_generated_have_a_stored_form_too():
    unit = dialogue_attempt("pirate", [("Hi", "So?"), ("Who?",)]).unit
    stored = json.loads(FIELD.dump_json(unit))
    assert (stored["turn_indices"], stored["conversation_indices"]) == ([[1, 3], [1]], [0, 1])
    assert FIELD.validate_python(stored) == unit


@pytest.mark.parametrize(
    "changes",
    [
        {"question_indices": []},
        {"kind": "nobody"},
        {"samples": "many"},
        {"hue": "blue"},
        {"turn_indices": [[1]]},
        {"sample_indices": [0], "conversation_indices": [0, 1, 2], "turn_indices": [[1], [1], [1]]},
    ],
)
def test_a_stored_unit_that_is_none_is_refused(changes: dict[str, Any]):
    with pytest.raises(ValidationError):
        FIELD.validate_python(json.loads(QUESTIONS) | changes)


@pytest.mark.parametrize(
    "columns",
    [
        {"question_indices": (0, 0, 1), "sample_indices": (0, 1, 0)},
        {"question_indices": (0, 1), "sample_indices": (0, 1)},
        {"question_indices": (0, 0), "sample_indices": (0, 0), "turn_indices": (1, 3)},
    ],
    ids=["one asked more often", "other samples", "turns of no conversation"],
)
def test_a_unit_without_a_stored_form_is_refused(columns: dict[str, Any]):
    with pytest.raises(ValueError, match=r"the rows are not|turns without conversations"):
        stored_unit(WorkUnit("u", "role", "pirate", "pos", 0, **columns))


def test_columns_of_different_lengths_are_no_unit():
    with pytest.raises(ValueError, match="u has no rows, or columns of different lengths"):
        WorkUnit("u", "role", "pirate", "pos", 0, (0, 1), (0,))
