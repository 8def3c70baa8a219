"""How a job's texts become tokens, from the spec to the record: templates that are given, counts, and earlier rules."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import persona_atlas
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.format.records import RunRecord, parse_record
from persona_atlas.storage.query.run import Run

from documented import JOB
from tiny_models import CHAT_TEMPLATE, save_tiny_llama

TALK = [{"role": "user", "content": "Who are you?"}, {"role": "assistant", "content": "A pirate!"}]
QUOTES = [{"role": "user", "content": "What is <|end|>?"}, {"role": "assistant", "content": "It is: <|end|>"}]
ALWAYS_OPEN = CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n")
OTHER = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|end|>\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"  # noqa: E501


@pytest.fixture
def model_with(tmp_path: Path) -> Callable[[str | None], str]:
    def make(template: str | None) -> str:
        return str(save_tiny_llama(tmp_path / "model", chat_template=template))

    return make


def job(model: str, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    return JOB | {"model": {"source": model}, "store": {"url": str(tmp_path / "run")}} | changes


def test_a_job_whose_answers_would_be_reasoning_is_refused_before_anything_is_written(model_with, tmp_path: Path):
    model = model_with(ALWAYS_OPEN)
    for spend in (persona_atlas.plan, lambda spec: persona_atlas.run(spec, progress=False)):
        with pytest.raises(InputError, match="inside of <think>") as caught:
            spend(job(model, tmp_path))
        assert (caught.value.code, caught.value.field) == ("opens_reasoning", "model.source")
    assert not (tmp_path / "run").exists()
    closed = tmp_path / "closed.jinja"
    closed.write_text(ALWAYS_OPEN.replace("<think>\n", "<think>\n\n</think>\n\n"))
    done = persona_atlas.run(
        job(model, tmp_path) | {"model": {"source": model, "chat_template": str(closed)}}, progress=False
    )
    assert done.is_complete


def test_a_template_of_the_spec_makes_a_base_model_answer_and_is_part_of_the_run(
    model_with, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = model_with(None)
    with pytest.raises(InputError, match=r"no chat template.*model\.chat_template"):
        persona_atlas.extract(model, TALK, tmp_path / "run", progress=False)
    file, moved = tmp_path / "own.jinja", tmp_path / "home" / "moved.jinja"
    file.write_text(OTHER)
    run = persona_atlas.extract(model, TALK, tmp_path / "run", chat_template=file, progress=False).run
    assert prompt_of(run) == "user: Who are you?<|end|>\nassistant: "
    assert run.record.rendering["chat_template"] == OTHER
    assert run.record.rendering["chat_template_sha256"] == hashlib.sha256(OTHER.encode()).hexdigest()
    # Its text counts, not its place; and ~ is the home directory.
    monkeypatch.setenv("HOME", str(moved.parent))
    moved.parent.mkdir()
    file.rename(moved)
    again = persona_atlas.extract(model, TALK, tmp_path / "run", chat_template="~/moved.jinja", progress=False)
    assert again.worked == 0
    moved.write_text(OTHER + " ")
    with pytest.raises(InputError, match="another chat template") as caught:
        persona_atlas.extract(model, TALK, tmp_path / "run", chat_template=moved, progress=False)
    assert (caught.value.code, caught.value.field) == ("other_run", "model.chat_template")


def test_a_spec_without_a_template_has_the_digest_that_it_always_had(model_with, tmp_path: Path):
    plan = persona_atlas.plan(job(model_with(CHAT_TEMPLATE), tmp_path))
    assert "chat_template" not in json.dumps(plan.spec.identity())
    assert all(isinstance(size, int) for size in plan.identity()[2:])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read as a chat template"),
        ("", "it is empty"),
        ("{% for m in messages %}", "line 1"),
        ("{{ messages", "line 1"),
        ("Just some words.", "does not write the user's message"),
        ("{{ raise_exception('never') }}", "cannot render a question: never"),
    ],
)
def test_a_file_that_is_no_template_is_refused(model_with, tmp_path: Path, text: str | None, says: str):
    file = tmp_path / "own.jinja"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=says) as caught:
        persona_atlas.extract(model_with(None), TALK, tmp_path / "run", chat_template=file, progress=False)
    assert "model.chat_template" in str(caught.value)
    assert not (tmp_path / "run").exists()


def prompt_of(run: Run, row: int = 0) -> str:
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(run.record.spec.model.source)
    return tokenizer.decode(run.rollouts()["prompt_token_ids"][row].as_py())


def test_rows_with_texts_that_are_not_taken_as_they_are_are_counted(model_with, tmp_path: Path):
    talks = [TALK, QUOTES, [*QUOTES, *TALK]]
    run = persona_atlas.extract(model_with(CHAT_TEMPLATE), talks, tmp_path / "run", progress=False).run
    assert run.record.rendering["rows"] == {"control_tokens": 3}
    responses = run.rollouts()["response_token_ids"].to_pylist()
    assert not any(2 in ids for ids in responses)
    assert persona_atlas.verify(run).is_complete


def test_a_response_column_has_the_text_that_its_numbers_are_of(model_with, tmp_path: Path):
    drops = CHAT_TEMPLATE.replace("message['content']", "message['content'].split('</think>')[-1] | trim")
    talk = [
        TALK[0],
        {"role": "assistant", "content": "Hm.</think>\nSeven."},
        TALK[0],
        {"role": "assistant", "content": " Aye "},
    ]
    run = persona_atlas.extract(model_with(drops), talk, tmp_path / "run", progress=False).run
    assert run.rollouts()["response"].to_pylist() == ["Seven.", " Aye "]
    assert run.record.rendering["rows"] == {"responses_shortened": 1}
    assert persona_atlas.verify(run).is_complete


def begun_before(store: Path) -> None:
    """Make a run look as if an earlier version had begun it and done nothing."""
    record = parse_record(RunRecord, (store / "run.json").read_bytes(), "run.json")
    rendering = {name: value for name, value in record.rendering.items() if name not in ("rules", "rows")}
    body = {name: getattr(record, name) for name in RunRecord.model_fields if name != "seal"}
    (store / "run.json").write_bytes(RunRecord.sealed(**(body | {"rendering": rendering})).to_bytes())
    for commit in (store / "commits").rglob("*.json"):
        commit.unlink()


@pytest.mark.parametrize(
    ("asks", "talk", "says"),
    [
        ("", QUOTES, "read control tokens that texts spell as real ones"),
        ("{{ strftime_now('%Y-%m-%d') }}", TALK, "wrote the date of the chat template in another format"),
        ("{{ strftime_now('%d %b %Y') }}", TALK, None),
        ("", TALK, None),
    ],
)
def test_a_run_of_earlier_rules_is_continued_only_where_they_are_the_same(
    model_with, tmp_path: Path, asks: str, talk: list[dict[str, str]], says: str | None
):
    model, store = model_with(asks + CHAT_TEMPLATE), tmp_path / "run"
    persona_atlas.extract(model, talk, store, progress=False)
    begun_before(store)
    if says is None:
        assert persona_atlas.extract(model, talk, store, progress=False).worked == 1
        return
    with pytest.raises(InputError, match=says) as caught:
        persona_atlas.extract(model, talk, store, progress=False)
    assert (caught.value.code, caught.value.field) == ("other_rules", "store.url")
