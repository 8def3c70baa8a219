"""The neutral questions, the openings for base models, and the stand-in files of examples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.dialogues.neutral import neutral_questions
from persona_atlas.jobs.dialogues.prefills import Prefill, base_prefills
from persona_atlas.jobs.errors import InputError

from likeness import common_in_order, words

EXAMPLES = Path(__file__).parents[3] / "examples"


def test_ten_neutral_questions_that_differ_from_one_another_and_from_those_of_the_catalog():
    questions = neutral_questions()
    assert (len(questions), len(set(questions))) == (10, 10)
    others = [words(question.text) for question in load_catalog().questions]
    for i, question in enumerate(questions):
        mine = words(question)
        for other in [*others, *map(words, questions[:i])]:
            assert common_in_order(mine, other) <= 0.6 * min(len(mine), len(other)), question


def test_twenty_openings_in_four_groups_that_can_be_continued():
    prefills = base_prefills()
    assert Counter(p.group for p in prefills) == {"job": 5, "self": 5, "wish": 5, "others": 5}
    assert len({p.text for p in prefills}) == 20
    assert {" ".join(p.text.split()[:3]) for p in prefills if p.text[-1] in ".?! "} == set()
    assert [p.text for p in prefills if {"ai", "assistant", "model", "human"} & set(words(p.text))] == []


def test_openings_of_a_file_of_ones_own(tmp_path: Path):
    path = tmp_path / "openings.yaml"
    path.write_text("groups:\n  home:\n    - My house is\n")
    assert base_prefills(str(path)) == (Prefill("home", "My house is"),)
    path.write_text("groups:\n  home: []\n")
    with pytest.raises(InputError, match="line 2") as caught:
        base_prefills(str(path))
    assert (caught.value.field, caught.value.file) == ("groups.home", str(path))


@pytest.mark.parametrize(("name", "per_category"), [("requests-standin.jsonl", 8), ("jailbreaks-standin.jsonl", 6)])
def test_the_stand_in_files_are_marked_and_evenly_divided(name: str, per_category: int):
    lines = [json.loads(line) for line in (EXAMPLES / name).read_text().splitlines()]
    assert all(line["standin"] is True for line in lines)
    assert all(("system" in line) == name.startswith("jailbreaks") for line in lines)
    assert len({line["question"] for line in lines}) == len(lines)
    assert set(Counter(line["category"] for line in lines).values()) == {per_category}
    assert len({line["category"] for line in lines}) == 4
