"""Layouts of conversations: what can be read without guessing is, and the rest is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sources.reading.read_conversations import GivenInput, parse_conversations, read_conversations

USER = {"role": "user", "content": "Who are you?"}
ASSISTANT = {"role": "assistant", "content": "Nobody."}
TURNS = [("user", "Who are you?"), ("assistant", "Nobody.")]


def read_one(entry: Any) -> Any:
    (given,) = parse_conversations([entry]).conversations
    return given


@pytest.mark.parametrize(
    ("entry", "system_prompt", "turns"),
    [
        (
            {"conversations": [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "Nobody."}]},
            "",
            TURNS,
        ),
        (
            {
                "system": "Be brief.",
                "conversations": [{"from": "user", "value": "Who are you?"}, {"from": "model", "value": "Nobody."}],
            },
            "Be brief.",
            TURNS,
        ),
        ({"conversations": [USER, ASSISTANT]}, "", TURNS),
        ({"messages": json.dumps([USER, ASSISTANT])}, "", TURNS),
        ({"messages": None, "conversation": [USER, ASSISTANT]}, "", TURNS),
        ({"instruction": "Who are you?", "input": "", "output": "Nobody."}, "", TURNS),
        ({"prompt": [USER], "completion": [ASSISTANT]}, "", TURNS),
        (
            {"messages": [{"role": "system", "content": "A."}, {"role": "system", "content": "B."}, USER, ASSISTANT]},
            "A.",
            [("system", "B."), *TURNS],
        ),
        (
            {"messages": [{"role": "developer", "content": "A."}, USER, ASSISTANT]},
            "",
            [("developer", "A."), *TURNS],
        ),
        (
            {"messages": [USER, ASSISTANT, {"role": "system", "content": "B."}, USER, ASSISTANT]},
            "",
            [*TURNS, ("system", "B."), *TURNS],
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "output_text", "text": "Nobody."}]}]},
            "",
            TURNS,
        ),
    ],
)
def test_what_leaves_nothing_to_guess_is_read(entry: Any, system_prompt: str, turns: list[tuple[str, str]]):
    given = read_one(entry)
    assert given.system_prompt == system_prompt
    assert [(message.role, message.content) for message in given.messages] == turns


def test_turns_are_counted_without_system_messages():
    given = read_one({"messages": [USER, ASSISTANT, {"role": "system", "content": "B."}, USER, ASSISTANT]})
    assert list(given.turn_indices()) == [1, 3]


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": "Nobody.", "reasoning_content": "Hm."},
        {"role": "assistant", "content": "Nobody.", "reasoning": "Hm."},
        {
            "role": "assistant",
            "content": [{"type": "reasoning", "reasoning": "Hm."}, {"type": "text", "text": "Nobody."}],
        },
        {
            "role": "assistant",
            "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Nobody."}],
        },
    ],
)
def test_reasoning_of_its_own_is_kept_apart(message: Any):
    last = read_one({"messages": [USER, message]}).messages[-1]
    assert (last.content, last.reasoning) == ("Nobody.", "Hm.")


def test_tool_calls_need_no_content_and_their_results_keep_their_ids():
    calls = [{"id": "c1", "type": "function", "function": {"name": "tides", "arguments": '{"at": "Oldhaven"}'}}]
    tools = [{"type": "function", "function": {"name": "tides", "arguments": {}}}]
    result = {"role": "tool", "tool_call_id": "c1", "name": "tides", "content": "04:12"}
    given = read_one(
        {
            "messages": [USER, {"role": "assistant", "content": None, "tool_calls": calls}, result, ASSISTANT],
            "tools": tools,
        }
    )
    _, call, answer, _ = given.messages
    assert (call.content, json.loads(call.tool_calls)) == ("", calls)
    assert (answer.role, answer.content, answer.tool_call_id, answer.name) == ("tool", "04:12", "c1", "tides")
    assert json.loads(given.tools) == tools
    assert list(given.turn_indices()) == [1, 3]
    assert json.loads(given.extra_of(1))["message"] == {"tool_calls": calls}


@pytest.mark.parametrize(
    ("entry", "says", "hint"),
    [
        ({"instruction": "Add.", "input": "1 2", "output": "3"}, "Alpaca", "jq"),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT]}, "preference pair", ".chosen"),
        ({"prompt": "a", "completion": "b"}, "without a chat template", ".completion"),
        ({"question": "a", "answer": "b"}, "question and answer", ".answer"),
        ({"mapping": {}, "title": "x"}, "ChatGPT export", "branch"),
        ({"text": "Once."}, "text without turns", "messages"),
        ({"rows": 3, "columns": 4}, "there are 'rows', 'columns'", "messages"),
        ({}, "there are no keys", "messages"),
        ({"messages": "[{'role': 'user', 'content': 'x'}]"}, "repr", "json.dumps"),
        ({"messages": "Hello."}, "not a list of messages but a text", "messages"),
        ({"messages": [USER, ASSISTANT | {"tool_calls": "f(1)"}]}, "not a list of calls but a text", "OpenAI"),
        ({"conversations": [{"from": "function_call", "value": "x"}]}, "not 'function_call'", "tool"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, ASSISTANT]}, "input_audio", "texts"),
    ],
)
def test_what_would_need_a_guess_is_refused_by_name_with_the_conversion(entry: Any, says: str, hint: str):
    with pytest.raises(InputError) as caught:
        parse_conversations([entry])
    assert says in caught.value.message
    assert hint in (caught.value.hint or "")


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def skipping(path: Path) -> GivenInput:
    return read_conversations(str(path), skip_invalid=True)


def test_all_bad_lines_are_told_at_once_or_left_out_and_counted(tmp_path: Path):
    good = {"messages": [USER, ASSISTANT]}
    path = write(tmp_path / "talks.jsonl", good, "{", {"text": "x"}, good, {"messages": [USER]}, {"text": "y"}, good)
    with pytest.raises(InputError) as caught:
        read_conversations(str(path))
    error = caught.value
    assert error.message.startswith("4 places cannot be read:")
    for line in (2, 3, 5, 6):
        assert f"{path}, line {line}" in error.message
    assert "--skip-invalid" in (error.hint or "")
    found = skipping(path)
    assert [given.conversation_index for given in found.conversations] == [0, 3, 6]
    assert [given.question_index for given in found.conversations] == [0, 3, 6]
    assert [problem.place for problem in found.skipped] == [f"{path}, line {line}" for line in (2, 3, 5, 6)]


def test_thousands_of_bad_lines_make_a_short_message(tmp_path: Path):
    path = write(tmp_path / "talks.jsonl", {"messages": [USER, ASSISTANT]}, *[{"text": "x"}] * 5000)
    with pytest.raises(InputError) as caught:
        read_conversations(str(path))
    assert "5,000 places" in caught.value.message
    assert "4,990 more" in caught.value.message
    assert len(caught.value.message) < 3000


def test_nothing_is_left_after_leaving_out(tmp_path: Path):
    with pytest.raises(InputError, match="text without turns"):
        skipping(write(tmp_path / "a.jsonl", {"text": "x"}))


def test_no_depth_of_nesting_is_too_much_for_the_report_of_it(tmp_path: Path):
    depths = range(900, 1010)
    lines = [f'{{"messages": {json.dumps([USER, ASSISTANT])}, "x": {"[" * depth}{"]" * depth}}}' for depth in depths]
    given = read_conversations(
        str(write(tmp_path / "deep.jsonl", json.dumps([USER, ASSISTANT]), *lines)), skip_invalid=True
    )
    assert len(given.conversations) + len(given.skipped) == len(depths) + 1
    assert given.skipped
