"""Conversations as users have them: read as they are, refused by file, line and field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.conversation import Conversation
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sources.reading.read_conversations import read_conversations

USER = {"role": "user", "content": "Who are you?"}
ASSISTANT = {"role": "assistant", "content": "Nobody."}


def write_lines(path: Path, *lines: Any) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def read(path: Path) -> tuple[Conversation, ...]:
    return read_conversations(str(path)).conversations


def test_lines_with_messages_or_a_conversation_keep_their_order_their_turns_and_their_other_keys(tmp_path: Path):
    path = write_lines(
        tmp_path / "talks.jsonl",
        {"messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT, USER, ASSISTANT], "id": 7},
        "",
        {"conversation": [USER, {**ASSISTANT, "mood": "calm"}], "tags": ["a"], "model": "m"},
    )
    first, second = read(path)
    assert (first.conversation_index, second.conversation_index) == (0, 1)
    assert (first.question_index, second.question_index) == (0, 1)
    assert {(g.kind, g.persona, g.polarity, g.prompt_index, g.sample_index) for g in (first, second)} == {
        ("conversation", "talks", "pos", 0, 0)
    }
    assert (first.system_prompt, second.system_prompt) == ("Be brief.", "")
    assert [message.role for message in first.messages] == ["user", "assistant", "user", "assistant"]
    assert list(first.turn_indices()) == [1, 3]
    assert (first.num_turns, second.num_turns) == (2, 1)
    assert json.loads(first.extra_of(1)) == {"id": 7}
    assert json.loads(second.extra_of(1)) == {"tags": ["a"], "model": "m", "message": {"mood": "calm"}}
    assert [message.content for message in first.chat()[:-1] if message.role == "user"][-1] == "Who are you?"
    assert second.place == f"{path}, line 3"


@pytest.mark.parametrize(
    ("whole", "persona_turns"),
    [
        ([USER, ASSISTANT], [1]),
        ({"model": "m", "conversation": [USER, ASSISTANT, USER, ASSISTANT], "projections": [0.1, 0.2]}, [2]),
        ([{"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}], [1, 1]),
        ([[USER, ASSISTANT], [USER, ASSISTANT]], [1, 1]),
    ],
    ids=["a list of messages", "a released transcript", "a list of objects", "a list of lists"],
)
def test_json_transcripts_of_every_shape(whole: Any, persona_turns: list[int], tmp_path: Path):
    path = tmp_path / "drift.json"
    path.write_text(json.dumps(whole, indent=2))
    found = read(path)
    assert [given.num_turns for given in found] == persona_turns
    assert {given.persona for given in found} == {"drift"}


def test_a_system_prompt_beside_the_messages_counts_unless_they_hold_it_already(tmp_path: Path):
    merged = {"role": "user", "content": "Be a pirate.\n\nWho are you?"}
    system = {"role": "system", "content": "Be a poet."}
    path = write_lines(
        tmp_path / "talks.jsonl",
        {"conversation": [USER, ASSISTANT], "system_prompt": "Be a pirate."},
        {"conversation": [merged, ASSISTANT], "system_prompt": "Be a pirate."},
        {"conversation": [system, USER, ASSISTANT], "system_prompt": "Be a pirate."},
        {"conversation": [USER, ASSISTANT], "system_prompt": ""},
    )
    assert [given.system_prompt for given in read(path)] == ["Be a pirate.", "", "Be a poet.", ""]


def released(prompt: int, question: int, label: str = "pos", **more: Any) -> dict[str, Any]:
    return {
        "system_prompt": "Be it.",
        "label": label,
        "prompt_index": prompt,
        "question_index": question,
        "question": "Who are you?",
        "conversation": [{"role": "system", "content": "Be it."}, USER, ASSISTANT],
        **more,
    }


def test_the_released_pipelines_directory_gives_roles_traits_and_the_default(tmp_path: Path):
    write_lines(tmp_path / "pirate.jsonl", released(0, 0), released(0, 1), released(1, 0), released(0, 1))
    write_lines(tmp_path / "default.jsonl", released(0, 0, "default"))
    write_lines(tmp_path / "humble.jsonl", released(0, 0), released(0, 0, "neg"))
    found = read(tmp_path)
    addresses = [(g.kind, g.persona, g.polarity, g.prompt_index, g.question_index, g.sample_index) for g in found]
    assert addresses == [
        ("default", "assistant_default", "pos", 0, 0, 0),
        ("trait", "humble", "pos", 0, 0, 0),
        ("trait", "humble", "neg", 0, 0, 0),
        ("role", "pirate", "pos", 0, 0, 0),
        ("role", "pirate", "pos", 0, 1, 0),
        ("role", "pirate", "pos", 1, 0, 0),
        ("role", "pirate", "pos", 0, 1, 1),
    ]
    assert [given.conversation_index for given in found] == list(range(7))
    assert json.loads(found[3].extra)["label"] == "pos"


def test_parts_of_type_text_are_put_together(tmp_path: Path):
    parts = [{"type": "text", "text": "No"}, {"type": "text", "text": "body."}]
    (given,) = read(write_lines(tmp_path / "a.jsonl", {"messages": [USER, {"role": "assistant", "content": parts}]}))
    assert given.messages[1].content == "Nobody."


def test_other_line_separators_stay_inside_their_texts(tmp_path: Path):
    text = "a\u2028b\u0085c\x0b"
    path = tmp_path / "a.jsonl"
    line = json.dumps({"messages": [USER, {"role": "assistant", "content": text}]}, ensure_ascii=False)
    path.write_text(f"\ufeff{line}\r\n", encoding="utf-8")
    (given,) = read(path)
    assert given.messages[1].content == text


def refusal(path: Path) -> InputError:
    with pytest.raises(InputError) as caught:
        read(path)
    assert caught.value.file
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("line", "field", "says"),
    [
        ("{not json", None, "is not JSON: Expecting property name"),
        ('"text"', None, "is not a JSON object"),
        ("[]", "messages", "is an empty list"),
        ("7", None, "is not a JSON object but a number"),
        ("null", None, "is not a JSON object but null"),
        ({"turns": []}, "messages", "is required and missing"),
        ({"messages": []}, "messages", "is an empty list"),
        ({"messages": "[]"}, "messages", "is an empty list"),
        ({"messages": {}}, "messages", "is not a list of messages"),
        ({"messages": "hello"}, "messages", "is not a list of messages"),
        ({"messages": [USER]}, "messages", "no message of the assistant"),
        ({"messages": ["hello", ASSISTANT]}, "messages[0]", "is not an object"),
        ({"messages": [USER, {"role": "function", "content": ""}]}, "messages[1].role", "not 'function'"),
        (
            {"messages": [{"content": "x"}, ASSISTANT]},
            "messages[0].role",
            "is system, developer, user, assistant or tool",
        ),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content", "missing"),
        ({"messages": [USER, {"role": "assistant", "content": 7}]}, "messages[1].content", "int 7"),
        ({"conversation": [{"role": "system", "content": "x"}]}, "conversation", "only a system message"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "messages[1].content", "missing"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT]},
            "messages[0].content[0]",
            "type text but of type image_url",
        ),
        ({"messages": [USER, {"role": "assistant", "content": "\ud83d"}]}, "messages[1].content", "half a character"),
        ({"messages": [USER, ASSISTANT], "system_prompt": 3}, "system_prompt", "is not a text"),
    ],
)
def test_what_is_wrong_is_named_by_file_line_and_field(line: Any, field: str | None, says: str, tmp_path: Path):
    path = write_lines(tmp_path / "talks.jsonl", {"messages": [USER, ASSISTANT]}, line)
    error = refusal(path)
    assert error.field == field
    assert says in error.message
    assert error.file == str(path)
    assert "line 2" in error.message


def test_a_released_line_without_its_numbers_is_refused(tmp_path: Path):
    line = released(0, 1)
    del line["question_index"]
    error = refusal(write_lines(tmp_path / "pirate.jsonl", released(0, 0), line))
    assert error.field == "question_index"
    assert "line 2" in error.message


def test_places_without_conversations_are_refused(tmp_path: Path):
    assert refusal(tmp_path / "missing.jsonl").code == "unreadable_file"
    assert refusal(tmp_path).code == "no_conversations"
    assert refusal(write_lines(tmp_path / "empty.jsonl", "", "")).code == "no_conversations"
    (tmp_path / "latin.jsonl").write_bytes(b'{"messages": "\xe9"}')
    error = refusal(tmp_path / "latin.jsonl")
    assert (error.code, "line 1" in error.message, "0xe9" in error.message) == ("not_utf8", True, True)


def test_an_entry_of_a_json_file_is_named_by_its_number(tmp_path: Path):
    path = tmp_path / "all.json"
    path.write_text(json.dumps([{"messages": [USER, ASSISTANT]}, {"messages": [USER]}]))
    assert f"{path}, entry 2" in refusal(path).message


def test_several_kinds_of_bad_lines_each_say_their_own_fix(tmp_path: Path):
    path = tmp_path / "talks.jsonl"
    lines = [{"messages": [{"role": "pirate", "content": "Arr"}]}, {"prompt": "Who?", "completion": "Me."}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError) as caught:
        read_conversations(str(path))
    told = caught.value.message.splitlines()
    assert len(told) == 3
    (converted,) = [line for line in told if "line 2" in line]
    assert "jq" in converted or "messages" in converted.split(".", 2)[-1]
