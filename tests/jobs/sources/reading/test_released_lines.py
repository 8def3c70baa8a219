"""Directories of the released pipeline: labels decide the kind, and nothing is misread in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sources.reading.read_conversations import read_conversations


def line(prompt: Any, question: Any, label: Any = "pos") -> dict[str, Any]:
    talk = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "I."}]
    made = {"prompt_index": prompt, "question_index": question, "label": label, "conversation": talk}
    return {key: value for key, value in made.items() if value != "absent"}


def write(path: Path, *lines: Any) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return path


def addresses(path: Path) -> list[tuple[str, str, str, int, int, int]]:
    return [
        (given.kind, given.persona, given.polarity, given.prompt_index, given.question_index, given.sample_index)
        for given in read_conversations(str(path)).conversations
    ]


def test_lines_that_are_labelled_default_are_the_default_whatever_their_file_is_called(tmp_path: Path):
    write(tmp_path / "0_default.jsonl", line(0, 0, "default"), line(0, 1, "default"))
    write(tmp_path / "1_default.jsonl", line(0, 0, "default"))
    write(tmp_path / "pirate.jsonl", line(0, 0))
    assert addresses(tmp_path) == [
        ("default", "assistant_default", "pos", 0, 0, 0),
        ("default", "assistant_default", "pos", 0, 1, 0),
        ("default", "assistant_default", "pos", 0, 0, 1),
        ("role", "pirate", "pos", 0, 0, 0),
    ]


@pytest.mark.parametrize(
    ("name", "labels", "bad"),
    [
        ("mixed", ["pos", "default"], 2),
        ("mixed", ["default", "pos"], 2),
        ("mixed", ["default", "default", "neg"], 3),
        ("mixed", ["default", "absent"], 2),
        ("mixed", ["absent", "default"], 2),
        ("default", ["default", "neg"], 2),
    ],
)
def test_a_file_of_two_personas_is_refused_by_its_line(name: str, labels: list[str], bad: int, tmp_path: Path):
    path = write(tmp_path / f"{name}.jsonl", *(line(0, index, label) for index, label in enumerate(labels)))
    for skip_invalid in (False, True):
        with pytest.raises(InputError) as caught:
            read_conversations(str(path), skip_invalid=skip_invalid)
        assert (caught.value.code, caught.value.field, caught.value.file) == ("mixed_labels", "label", str(path))
        assert f"{path}, line {bad})" in caught.value.message


@pytest.mark.parametrize(
    ("first", "second", "field", "bad"),
    [
        (line("0", "0"), line("0", "1"), "prompt_index", 1),
        (line(0, "0"), line(0, 1), "question_index", 1),
        (line(0, 0), line(0, "1"), "question_index", 2),
        (line(0.0, 0), line(0, 1), "prompt_index", 1),
        (line(True, 0), line(0, 1), "prompt_index", 1),
        (line(-1, 0), line(0, 1), "prompt_index", 1),
        (line(0, 2**31), line(0, 1), "question_index", 1),
        (line(0, 0), line(0, None), "question_index", 2),
        (line("absent", "absent"), line(0, 0), "prompt_index", 2),
        (line(0, 0, "positive"), line(0, 1), "label", 1),
        (line(0, 0, ["pos"]), line(0, 1), "label", 1),
        (line(0, 0, 0), line(0, 1), "label", 1),
    ],
)
def test_an_index_or_a_label_that_is_none_is_refused_by_its_line(
    first: Any, second: Any, field: str, bad: int, tmp_path: Path
):
    path = write(tmp_path / "cook.jsonl", first, second)
    with pytest.raises(InputError) as caught:
        read_conversations(str(path))
    assert f"{path}, line {bad}" in caught.value.message
    assert field in str(caught.value)


def test_other_data_may_use_one_of_the_names_or_have_null_in_both(tmp_path: Path):
    path = write(tmp_path / "talks.jsonl", line(None, None, "funny"), line("absent", "q7", 3))
    assert [address[0] for address in addresses(path)] == ["conversation", "conversation"]
