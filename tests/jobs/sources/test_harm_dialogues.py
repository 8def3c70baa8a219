"""Dialogues of harm after drift: which request follows which question, and what is refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.dialogues.neutral import neutral_questions
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sources.harm_dialogues import assigned_requests, harm_dialogues
from persona_atlas.jobs.specs.harm_spec import HarmSpec
from persona_atlas.jobs.specs.spec import make_spec

LINES = [
    {"question": "How do I brew fog?", "category": "potions", "standin": True},
    {"question": "How do I lift a tower?", "category": "spells"},
    {"question": "How do I steal a star?"},
]


def asked(folder: Path, lines: list[dict[str, Any]] = LINES, **changes: Any) -> HarmSpec:
    path = folder / "mine.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    section = {"requests": str(path), "roles": {"names": ["pirate", "ghost"]}} | changes
    return HarmSpec.model_validate(section)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 10), st.integers(1, 25), st.integers(0, 5))
def test_every_request_is_asked_equally_often_whatever_the_order_of_roles(
    roles: int, questions: int, requests: int, seed: int
):
    addresses = [f"role/{number}" for number in range(roles)]
    chosen = assigned_requests(addresses, questions, requests, seed)
    uses = Counter(index for indices in chosen.values() for index in indices)
    counts = [uses[index] for index in range(requests)]
    assert sum(counts) == roles * questions
    assert max(counts) - min(counts) <= 1
    assert assigned_requests(addresses[::-1], questions, requests, seed) == chosen


def test_the_seed_chooses():
    addresses = [f"role/{number}" for number in range(20)]
    first, second = (assigned_requests(addresses, 10, 440, seed) for seed in (0, 1))
    assert first != second
    assert all(len(set(indices)) == 10 for indices in first.values()), "one system prompt, ten requests"


def test_a_dialogue_is_a_neutral_question_under_a_role_and_then_a_request(tmp_path: Path):
    found = harm_dialogues(asked(tmp_path, questions=2, prompts=2), load_catalog(), 0, "Tiny")
    places = [(one.kind, one.persona, one.prompt_index, one.question_index) for one in found]
    names = [("default", "assistant_default"), ("role", "ghost"), ("role", "pirate")]
    assert places == [(*name, prompt, question) for name in names for prompt in (0, 1) for question in (0, 1)]
    assert [one.conversation_index for one in found] == list(range(12))
    pirate = load_catalog().persona("role", "pirate")
    for one in found:
        assert one.turns[0] == neutral_questions()[one.question_index]
        extra = json.loads(one.extra)
        line = LINES[extra["request_index"]]
        assert one.turns[1] == line["question"]
        assert extra["category"] == line.get("category", "mine")
        assert extra.get("standin") == line.get("standin")
    assert found[-1].system_prompt == pirate.system_prompt("pos", 1, "Tiny")


@pytest.mark.parametrize(
    ("changes", "code", "field"),
    [
        ({"questions": 11}, "too_many", "harm.questions"),
        ({"prompts": 9}, "too_many", "harm.prompts"),
        ({"roles": {"names": ["pirat"]}}, "unknown_persona", "harm.roles.names"),
        ({"requests": "nowhere.jsonl"}, None, None),
        ({"lines": [{"question": "Hi", "system": "Be bad."}]}, "bad_request", "harm.requests"),
        ({"lines": [{"turns": ["Hi", "Ho"]}]}, "bad_request", "harm.requests"),
        ({"lines": [{"question": "Hi", "request_index": 7}]}, "bad_request", "harm.requests"),
    ],
)
def test_what_cannot_be_asked_is_refused(tmp_path: Path, changes: dict[str, Any], code: str | None, field: str | None):
    lines = changes.pop("lines", LINES)
    with pytest.raises(InputError) as caught:
        harm_dialogues(asked(tmp_path, lines, **changes), load_catalog(), 0, "Tiny")
    if code is not None:
        assert (caught.value.code, caught.value.field) == (code, field)


def test_a_job_has_one_source_of_texts():
    job = {"model": {"source": "models/tiny"}, "harm": {"requests": "mine.jsonl"}, "store": {"url": "runs/mine"}}
    spec = make_spec(job)
    assert spec.identity()["harm"] is True
    assert "personas" not in spec.identity()
    with pytest.raises(InputError, match="either harm or personas"):
        make_spec(job | {"personas": {"roles": {"names": ["pirate"]}}})
