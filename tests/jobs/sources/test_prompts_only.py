"""Prompts without an answer: which conversations are prompts, what is refused by line, and what a spec may pool."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.conversation import Conversation
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.poolings import POOLINGS
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sources.load import load_source
from persona_atlas.jobs.sources.reading.read_conversations import parse_conversations, read_conversations
from persona_atlas.jobs.specs.spec import JobSpec, load_spec, make_spec
from persona_atlas.storage.format.stored_units import stored_unit

from conversations import given_plan

USER = {"role": "user", "content": "Who are you?"}
ASSISTANT = {"role": "assistant", "content": "Nobody."}
SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "add", "arguments": {}}}]}
RESULT = {"role": "tool", "content": "4"}
OVER_PROMPTS = ["prompt_mean", "prompt_last", "assistant_start", "user_mean"]


def prompt(value: Any) -> Conversation:
    (given,) = parse_conversations(value, prompts_only=True).conversations
    return given


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def spec_of(**changes: Any) -> JobSpec:
    data = {
        "model": {"source": "none"},
        "conversations": {"source": "talks.jsonl", "prompts_only": True},
        "store": {"url": "unused"},
    }
    return make_spec(data | changes)


@pytest.mark.parametrize(
    ("value", "turn", "question"),
    [
        ([USER], 1, "Who are you?"),
        ([[USER]], 1, "Who are you?"),
        ({"messages": [SYSTEM, USER]}, 1, "Who are you?"),
        ({"conversation": [USER, ASSISTANT, USER]}, 3, "Who are you?"),
        ({"messages": json.dumps([USER])}, 1, "Who are you?"),
        ({"conversations": [{"from": "human", "value": "Who are you?"}]}, 1, "Who are you?"),
        ({"system": "Be.", "conversations": [{"from": "human", "value": "Who are you?"}]}, 1, "Who are you?"),
        ({"prompt": [SYSTEM, USER], "id": 3}, 1, "Who are you?"),
        ({"instruction": "Who are you?", "input": ""}, 1, "Who are you?"),
        ({"messages": [USER, CALL, RESULT]}, 3, "Who are you?"),
        ({"messages": [USER, ASSISTANT, {"role": "developer", "content": "B."}, USER]}, 3, "Who are you?"),
        ({"messages": [{"role": "user", "content": ""}]}, 1, ""),
    ],
)
def test_a_conversation_without_an_answer_is_one_row_after_its_last_turn(value: Any, turn: int, question: str):
    given = prompt(value)
    assert (list(given.turn_indices()), given.num_turns, given.response(turn)) == ([turn], 1, "")
    assert list(given.prompts()) == [(turn, given.chat())]
    plan = given_plan(given, conversations={"source": "talks.jsonl", "prompts_only": True})
    (unit,) = plan.units
    (request,) = plan.requests(unit).first(unit)
    assert request.given is not None
    assert (request.question, request.given.text, request.address.turn_index) == (question, "", turn)
    assert request.messages == given.chat()
    assert list(unit.addresses()) == [request.address]
    assert stored_unit(unit).to_unit() == unit
    assert (estimate(plan).response_tokens, plan.source.most_tokens(unit, 99)) == (0, 0)
    assert estimate(plan).prompt_tokens > 0


def test_other_keys_are_kept_and_those_of_the_last_message():
    given = prompt({"messages": [USER, ASSISTANT, USER | {"topic": "names"}], "id": 3})
    assert json.loads(given.extra_of(3)) == {"id": 3, "message": {"topic": "names"}}
    assert json.loads(prompt({"prompt": [USER], "id": 3}).extra_of(1)) == {"id": 3}


def test_prompts_of_the_released_pipeline_keep_their_address(tmp_path: Path):
    keys = {"prompt_index": 2, "question_index": 5, "label": "pos"}
    path = write_lines(tmp_path / "pirate.jsonl", {"conversation": [SYSTEM, USER], **keys})
    (given,) = read_conversations(str(path), prompts_only=True).conversations
    assert (given.kind, given.persona, given.prompt_index, given.question_index) == ("role", "pirate", 2, 5)
    assert list(given.turn_indices()) == [1]


@pytest.mark.parametrize(
    ("entry", "field", "reason", "hint"),
    [
        (
            {"messages": [USER, ASSISTANT]},
            "messages",
            "ends with a message of the assistant",
            "leave out --prompts-only",
        ),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "prompt", "ends with a message of the assistant", "out"),
        (
            {"instruction": "a", "input": "", "output": "b"},
            "instruction",
            "ends with a message of the assistant",
            "out",
        ),
        ({"messages": [USER, CALL]}, "messages", "ends with a message of the assistant", "out"),
        (
            {"messages": [USER, {"role": "developer", "content": "B."}]},
            "messages",
            "the role developer",
            "Put it before",
        ),
        ({"messages": [USER, SYSTEM]}, "messages", "the role system", "Put it before"),
        ({"messages": [SYSTEM]}, "messages", "only a system message", "user"),
        ({"prompt": "Once upon"}, None, "prompt as text", "content: .prompt}]}"),
        ({"question": "Why?"}, None, "question as text", "content: .question}]}"),
        ({"instruction": "Add.", "input": "1 2"}, None, "has an input", "+ .input)}]}' FILE"),
        ({"words": 1}, "messages", "is required and missing", '{"messages": [{"role": "user", "content": "..."}]}'),
    ],
)
def test_what_is_no_prompt_is_refused_by_line_with_the_fix(
    tmp_path: Path, entry: Any, field: str | None, reason: str, hint: str
):
    path = write_lines(tmp_path / "talks.jsonl", {"messages": [USER]}, entry)
    with pytest.raises(InputError) as refused:
        read_conversations(str(path), prompts_only=True)
    error = refused.value
    assert (error.field, error.file) == (field, str(path))
    assert reason in error.message
    assert "line 2" in error.message
    assert hint in (error.hint or "")
    assert "--skip-invalid" in (error.hint or "")
    found = read_conversations(str(path), prompts_only=True, skip_invalid=True)
    assert [given.conversation_index for given in found.conversations] == [0]
    assert [problem.place for problem in found.skipped] == [f"{path}, line 2"]


def test_without_prompts_only_an_answer_is_asked_for_and_the_way_out_is_named(tmp_path: Path):
    path = write_lines(tmp_path / "talks.jsonl", {"messages": [USER]})
    with pytest.raises(InputError, match="has no message of the assistant") as refused:
        read_conversations(str(path))
    assert "--prompts-only (conversations.prompts_only: true)" in (refused.value.hint or "")
    for layout in ({"prompt": [USER]}, {"instruction": "Who are you?"}):
        with pytest.raises(InputError, match="is required and missing"):
            parse_conversations(layout)
    # A last message of the user that nobody answered is left unread, as it was.
    (given,) = parse_conversations([USER, ASSISTANT, USER]).conversations
    assert (list(given.turn_indices()), given.num_turns) == ([1], 1)


def test_a_spec_of_prompts_pools_the_last_token_by_default(tmp_path: Path):
    assert spec_of().capture.poolings == ["prompt_last"]
    assert spec_of(capture={"poolings": OVER_PROMPTS}).capture.poolings == OVER_PROMPTS
    assert spec_of(capture={"layers": [1]}).replaced(store={"url": "other"}).capture.poolings == ["prompt_last"]
    without = {"source": "talks.jsonl", "prompts_only": "false"}
    assert spec_of(conversations=without).capture.poolings == ["response_mean"]
    path = tmp_path / "job.yaml"
    path.write_text("model: {source: none}\nconversations: {source: t.jsonl}\nstore: {url: runs}\n")
    assert load_spec(path, ["conversations.prompts_only=true"]).capture.poolings == ["prompt_last"]


@pytest.mark.parametrize("name", sorted(POOLINGS.keys() - set(OVER_PROMPTS)))
def test_a_pooling_of_responses_is_refused_by_name_with_those_that_are_defined(name: str):
    more = {"token_layers": "middle"} if name == "tokens" else {}
    with pytest.raises(InputError) as refused:
        spec_of(capture={"poolings": ["prompt_mean", name], **more})
    assert refused.value.field == "capture"
    assert f"poolings has {name}, but" in refused.value.message
    assert f"choose among {', '.join(OVER_PROMPTS)}" in refused.value.message


@pytest.mark.parametrize("value", ["perhaps", [], {}, 7, None])
def test_what_is_no_boolean_is_refused(value: Any):
    with pytest.raises(InputError, match=r"prompts_only|boolean"):
        spec_of(conversations={"source": "talks.jsonl", "prompts_only": value})


def test_a_spec_that_does_not_use_it_keeps_its_identity():
    texts = {"source": "talks.jsonl"}
    plain = spec_of(conversations=texts, capture={"poolings": ["prompt_last"]})
    assert "prompts_only" not in json.dumps(plain.identity())
    assert spec_of(conversations=texts | {"prompts_only": False}, capture={"poolings": ["prompt_last"]}).digest == (
        plain.digest
    )
    assert plain.digest != spec_of().digest


def test_the_source_of_a_spec_reads_prompts(tmp_path: Path):
    path = write_lines(tmp_path / "talks.jsonl", {"messages": [USER]}, {"prompt": [USER]})
    source = load_source(spec_of(conversations={"source": str(path), "prompts_only": True}))
    assert [given.is_prompt for given in source.conversations] == [True, True]
