"""Files of prompts: which lines are read, as which dialogues, and what is said of the others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.sources.read_prompts import read_prompts

SAID = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
REPLIED = [*SAID, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Why?"}]


def written(tmp_path: Path, *lines: Any) -> str:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def test_each_form_of_a_line_is_read(tmp_path: Path):
    lines = [
        {"question": "Who are you?"},
        {"system": "Be a pirate.", "turns": ["Hi", "Since when?"], "category": "sea", "id": 7},
        {"messages": SAID},
        REPLIED,
    ]
    found = read_prompts(written(tmp_path, *lines))
    assert [(one.persona, one.question_index, one.conversation_index) for one in found] == [
        ("talks", 0, 0),
        ("sea", 1, 1),
        ("talks", 2, 2),
        ("talks", 3, 3),
    ]
    assert [one.system_prompt for one in found] == ["", "Be a pirate.", "Be brief.", "Be brief."]
    assert [one.turns for one in found] == [("Who are you?",), ("Hi", "Since when?"), ("Hi",), ("Why?",)]
    assert [one.turn_indices for one in found] == [(1,), (1, 3), (1,), (3,)]
    assert json.loads(found[1].extra) == {"id": 7}
    assert found[3].history == (ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello."))


@pytest.mark.parametrize(
    ("line", "field", "reason"),
    [
        ({"system": "x"}, None, "has one of question, turns and messages; there are system"),
        ({"question": "a", "turns": ["b"]}, None, "there are question and turns"),
        ({"question": " "}, "question", "is blank"),
        ({"question": 3}, "question", "is not a text"),
        ({"turns": []}, "turns", "is not a list of texts"),
        ({"turns": ["a", ""]}, "turns[1]", "is blank"),
        ({"messages": REPLIED[:3]}, "messages", "do not end with the user's"),
        ({"messages": [SAID[1], SAID[1]]}, "messages", "are not the user's and the assistant's in turn"),
        ({"system": "x", "messages": SAID}, "messages", "has a system message, and there is system beside it"),
        ({"question": "\ud800"}, "question", "holds half a character"),
        ("Hi", None, "is not a JSON object but str"),
    ],
)
def test_a_line_that_is_no_prompt_is_refused_by_file_line_and_field(
    line: Any, field: str | None, reason: str, tmp_path: Path
):
    source = written(tmp_path, {"question": "Fine."}, line)
    with pytest.raises(InputError, match=r"line 2") as caught:
        read_prompts(source)
    assert reason in caught.value.message
    assert (caught.value.field, caught.value.file) == (field, source)


def test_an_empty_file_and_a_directory_are_refused(tmp_path: Path):
    with pytest.raises(InputError, match="holds no prompt"):
        read_prompts(written(tmp_path))
    with pytest.raises(InputError, match="is a directory"):
        read_prompts(str(tmp_path))
