"""Whole runs whose conversations are generated turn by turn: what is stored, and that a dialogue is stored whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import persona_atlas
import pyarrow.compute as pc
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import JobSpec, make_spec
from persona_atlas.storage.format import layout
from persona_atlas.storage.query.run import Run, open_run
from transformers import AutoTokenizer

from plain_driver import finish, run_driver, start_driver
from plain_forward import PlainModel, relative_errors
from whole_run import verified

TURNS = ["Who are you?", "Since when?", "Why?"]
LINES: list[dict[str, Any]] = [
    {"system": "You are a pirate.", "turns": TURNS, "category": "sea"},
    {"question": "Hi", "note": 1},
    {"turns": TURNS[:2], "category": "sea"},
]


def prompts_file(folder: Path, lines: list[dict[str, Any]] = LINES) -> str:
    path = folder / "talks.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return str(path)


def job(model: Path, folder: Path, store: str, **changes: Any) -> JobSpec:
    return make_spec(
        {
            "model": {"source": str(model)},
            "prompts": {"source": prompts_file(folder)},
            "sampling": {"max_new_tokens": 8, "temperature": 1.0},
            "capture": {"poolings": ["response_mean", "prompt_last"], "canary": {"check": "every_unit"}},
            "placement": {"device": "cpu", "threads": 1},
            "store": {"url": store, "mantissa_bits": 23},
        }
        | changes
    )


@pytest.fixture(scope="module")
def talks(tiny_model_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[JobSpec, Run]:
    folder = tmp_path_factory.mktemp("dialogues")
    spec = job(tiny_model_directory, folder, str(folder / "run"))
    result = persona_atlas.run(spec, progress=False)
    assert result.is_complete, result.failures
    return spec, result.run


def test_rows_are_turns_of_conversations(talks: tuple[JobSpec, Run]):
    _, run = talks
    lines = run.rollouts().to_pylist()
    columns = ("persona", "question_index", "conversation_index", "turn_index")
    assert [tuple(line[name] for name in columns) for line in lines] == [
        ("sea", 0, 0, 1),
        ("sea", 0, 0, 3),
        ("sea", 0, 0, 5),
        ("sea", 2, 2, 1),
        ("sea", 2, 2, 3),
        ("talks", 1, 1, 1),
    ]
    assert [line["question"] for line in lines] == [*TURNS, *TURNS[:2], "Hi"]
    assert json.loads(lines[5]["extra"]) == {"note": 1}
    assert len({line["seed"] for line in lines}) == 6
    assert run.record.layout_version == layout.DIALOGUE_LAYOUT_VERSION
    assert verified(run.location).is_complete


def test_a_later_turn_is_that_of_a_plain_pass_over_the_whole_conversation(
    talks: tuple[JobSpec, Run], tiny_model_directory: Path
):
    _, run = talks
    lines = run.rollouts(persona="sea", question=0).to_pylist()
    said = "".join(f"{line['question']}|{line['response']}|" for line in lines[:2])
    shown = AutoTokenizer.from_pretrained(tiny_model_directory).decode(lines[2]["prompt_token_ids"])
    assert all(text in shown for text in said.split("|"))
    start, count = lines[2]["num_prompt_tokens"], lines[2]["num_content_tokens"]
    ids = [*lines[2]["prompt_token_ids"], *lines[2]["response_token_ids"][:count]]
    states_LTD, _ = PlainModel(tiny_model_directory).run(ids)
    assert count > 0
    for name, expected in (
        ("response_mean", states_LTD[:, start:].mean(axis=1)),
        ("prompt_last", states_LTD[:, start - 1]),
    ):
        got = run.activations(persona="sea", question=0, pooling=name, layer="all").values[-1]
        assert relative_errors(got, expected).max() < 1e-4, name


def test_the_same_call_finds_all_of_it_and_another_text_is_another_run(
    talks: tuple[JobSpec, Run], tiny_model_directory: Path, tmp_path: Path
):
    spec, run = talks
    before = run.location.read(layout.INDEX)
    assert persona_atlas.run(spec, progress=False).is_complete
    assert run.location.read(layout.INDEX) == before
    other = [{**LINES[0], "turns": [*TURNS[:2], "Really?"]}, *LINES[1:]]
    changed = job(tiny_model_directory, tmp_path, run.location.url)
    prompts_file(tmp_path, other)
    with pytest.raises(InputError, match="was made from other prompts") as caught:
        persona_atlas.run(changed, progress=False)
    assert caught.value.field == "prompts.source"


def test_more_prompts_may_be_added_to_a_run(tiny_model_directory: Path, tmp_path: Path):
    spec = job(tiny_model_directory, tmp_path, str(tmp_path / "run"))
    prompts_file(tmp_path, LINES[:2])
    assert persona_atlas.run(spec, progress=False).is_complete
    prompts_file(tmp_path, LINES)
    grown = persona_atlas.run(spec, grow=True, progress=False)
    assert grown.run.index["conversation_index"].to_pylist() == [0, 0, 0, 2, 2, 1]
    assert verified(grown.run.location).is_complete


def test_what_a_kill_leaves_is_whole_dialogues(tmp_path: Path):
    lines = [{"turns": TURNS, "category": name} for name in "abcd"]

    def spec(store: str) -> JobSpec:
        return JobSpec.model_validate(
            {
                "model": {"source": "none", "name": "Nobody"},
                "prompts": {"source": prompts_file(tmp_path, lines)},
                "store": {"url": str(tmp_path / store)},
            }
        )

    end = run_driver(spec("first"), note_steps=True)
    commits = [step for step in end.steps if step.path.startswith("commits/") and "conversation.c" in step.path]
    assert start_driver(spec("run"), die_at=commits[0]).wait() is None
    left = open_run(str(tmp_path / "run"))
    kept = left.rollouts()
    assert 0 < kept.num_rows < 12
    assert kept.num_rows % 3 == 0
    finish(spec("run"))
    whole = open_run(str(tmp_path / "run"))
    assert whole.rollouts()["turn_index"].to_pylist() == [1, 3, 5] * 4
    assert whole.rollouts(persona="a").equals(kept.filter(pc.field("persona") == "a"))
    assert verified(whole.location).is_complete
