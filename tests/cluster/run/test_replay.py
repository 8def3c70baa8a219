"""Responses of a stored run read again by another model: the same rows, vectors and scores, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import persona_atlas
import pytest
from persona_atlas.analysis.comparison.compare import compare
from persona_atlas.analysis.comparison.sides import side_of
from persona_atlas.cluster.run.open_source import open_source
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import make_spec
from persona_atlas.storage.derived.score_copies import copy_scores
from persona_atlas.storage.derived.scores import judges, read_judge_record, read_outcomes, write_judge_record
from persona_atlas.storage.format.judge_record import JudgeRecord
from persona_atlas.storage.query.run import Run, open_run

from conversations import line, write_lines
from plain_forward import PlainModel, relative_errors
from scored_runs import score_run
from tiny_families import save_tiny_family
from tiny_models import CHAT_TEMPLATE, save_tokenizer

ADDRESS = ["kind", "persona", "polarity", "prompt_index", "question_index", "sample_index"]


def replay(model: Path, texts_of: Run | Path, store: Path, **options: Any) -> persona_atlas.JobResult:
    source = texts_of.url if isinstance(texts_of, Run) else texts_of
    return persona_atlas.extract(model, None, store, texts_of=source, progress=False, **options)


def copied(run: Run, folder: Path) -> Run:
    shutil.copytree(run.url, folder)
    return open_run(folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of the instruct model with a tokenizer that has no chat template."""
    directory = save_tiny_family(tmp_path_factory.mktemp("base"), "llama")
    save_tokenizer(directory, None)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    return directory


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a chat template, many of whose tokens end a response."""
    return save_tiny_family(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="module")
def instruct(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of personas, some of whose responses are empty, scored by one judge and reduced by its scores."""
    folder = tmp_path_factory.mktemp("instruct")
    roles = {"names": ["bard", "ghost", "pirate", "void"], "prompts": 2, "questions": 4}
    spec = {
        "model": {"source": str(model)},
        "personas": {"roles": roles, "default": {"prompts": 2, "questions": 4}},
        "sampling": {"max_new_tokens": 6, "temperature": 10.0, "top_p": 1.0},
        "capture": {"poolings": ["response_mean", "prompt_last"]},
        "store": {"url": str(folder / "run"), "mantissa_bits": 23},
    }
    run = persona_atlas.run(make_spec(spec), progress=False).run
    write_judge_record(run.location, JudgeRecord(name="tester", source="engine", model="somebody"))
    score_run(run, "tester", lambda found: 3.0 if found["question_index"] < 3 else 1.0)
    persona_atlas.reduce(run, judge="tester", min_count=2, progress=False)
    return run.refresh()


@pytest.fixture(scope="module")
def replayed(base: Path, instruct: Run, tmp_path_factory: pytest.TempPathFactory) -> persona_atlas.JobResult:
    overrides = ["capture.canary.one_in=1", "store.mantissa_bits=23"]
    store = tmp_path_factory.mktemp("replayed") / "run"
    return replay(base, instruct, store, overrides=overrides, poolings=["response_mean", "prompt_last"])


def test_the_same_weights_give_the_same_rows_scores_and_axis(instruct: Run, replayed: persona_atlas.JobResult):
    run = replayed.run
    assert (replayed.is_complete, replayed.failures) == (True, ())
    before, after = instruct.rollouts(), run.rollouts()
    before = before.filter(before["has_vector"])
    assert before.num_rows < instruct.index.num_rows
    names = [*ADDRESS, "system_prompt", "question", "response", "prompt_token_ids", "num_content_tokens"]
    assert after.select(names).equals(before.select(names))
    assert set(after["turn_index"].to_pylist()) == {1}
    assert len(set(after["conversation_index"].to_pylist())) == after.num_rows
    for pooling in ("response_mean", "prompt_last"):
        values = [of.activations(layer="all", pooling=pooling).values for of in (instruct, run)]
        assert relative_errors(values[1], values[0]).max() < 1e-4
    assert judges(run.location) == ["tester"]
    assert run.reduction is not None
    assert run.reduction.facts["judge"] == "tester"
    assert run.reduction.facts["min_count"] == 2
    found = compare(side_of(instruct), side_of(run))
    assert [layer.axis_cosine for layer in found.layers] == pytest.approx([1] * 4, abs=1e-5)
    lines = (Path(run.url) / "skipped.jsonl").read_text().splitlines()
    assert len(lines) == instruct.index.num_rows - after.num_rows
    assert json.loads(lines[0])["reason"] == "is an empty response"
    checked = persona_atlas.verify(run, recompute=5, progress=False)
    assert (checked.is_sound, checked.is_complete) == (True, True)
    assert run.record.rendering["texts_of"] == instruct.url
    assert run.record.rendering["texts_rendering"] == "tokens"


def test_the_same_call_does_nothing_and_a_part_of_it_the_rest(
    base: Path, instruct: Run, replayed: persona_atlas.JobResult, tmp_path: Path
):
    options: dict[str, Any] = {"poolings": ["response_mean", "prompt_last"], "overrides": ["store.mantissa_bits=23"]}
    again = replay(base, instruct, Path(replayed.run.url), **options)
    assert (again.worked, again.is_complete) == (0, True)
    with pytest.raises(InputError, match="another run") as caught:
        replay(base, instruct, Path(replayed.run.url), **options, grow=True)
    assert caught.value.code == "cannot_grow"
    with pytest.raises(InputError) as caught:
        replay(base, instruct, Path(replayed.run.url), **options, rendering="plain")
    assert (caught.value.code, caught.value.field) == ("other_run", "conversations.rendering")


def test_a_judge_that_went_on_is_the_same_judge(instruct: Run, replayed: persona_atlas.JobResult, tmp_path: Path):
    of, to = (copied(run, tmp_path / name) for run, name in ((instruct, "of"), (replayed.run, "to")))
    went_on = JudgeRecord(name="tester", source="engine", model="somebody", rubrics={"role/bard": "one"})
    write_judge_record(of.location, went_on)
    score_run(of, "tester", lambda found: 2.0)
    (taken,) = copy_scores(of.location, of.index, to.location, to.index)
    assert (taken.num_copied, taken.is_other) == (to.index["kind"].to_pylist().count("role"), False)
    assert read_judge_record(to.location, "tester") == went_on
    assert set(read_outcomes(to.location, "tester", sorted(to.committed))["score"].to_pylist()) == {2.0}
    for other in ({"rubrics": {"role/bard": "two"}}, {"model": "another"}):
        write_judge_record(of.location, went_on.model_copy(update=other))
        (kept,) = copy_scores(of.location, of.index, to.location, to.index)
        assert (kept.num_copied, kept.is_other) == (0, True)


def test_what_was_begun_is_finished_although_the_other_run_has_grown(base: Path, instruct: Run, tmp_path: Path):
    growing = copied(instruct, tmp_path / "growing")
    # Every unit after it is numbered from another row on.
    put_back = taken_out(growing, "role.bard.pos.p0.*")
    whole = replay(base, growing, tmp_path / "run").run
    before = whole.rollouts()
    taken_out(whole, "role.pirate.pos.p1.*")
    put_back()
    finished = replay(base, growing, tmp_path / "run")
    assert (finished.worked, finished.is_complete) == (1, True)
    same = [*ADDRESS, "conversation_index", "turn_index", "response", "prompt_token_ids", "response_token_ids"]
    assert finished.run.rollouts().select(same).equals(before.select(same))
    (note,) = open_source(finished.run.record.spec).notes
    assert "has 1 unit more than when this run was planned" in note
    assert replay(base, growing, tmp_path / "other").run.index.num_rows > before.num_rows


def taken_out(run: Run, pattern: str) -> Callable[[], object]:
    """Take the commit record of a unit out of a store; return what puts it back."""
    (commit,) = Path(run.url, "commits").glob(pattern)
    kept = commit.read_bytes()
    commit.unlink()
    for name in ("index.parquet", "chunks.parquet"):
        Path(run.url, name).unlink()
    return lambda: commit.write_bytes(kept)


def test_texts_are_rendered_again_for_another_vocabulary(instruct: Run, tmp_path: Path):
    from transformers import AutoTokenizer

    other = save_tiny_family(tmp_path / "model", "qwen3")
    save_other_vocabulary(other)
    with pytest.raises(InputError, match="another vocabulary") as caught:
        replay(other, instruct, tmp_path / "run")
    assert (caught.value.code, caught.value.field) == ("other_vocabulary", "conversations.rendering")
    run = replay(other, instruct, tmp_path / "run", rendering="plain", overrides=["capture.canary.one_in=1"]).run
    assert run.record.rendering["texts_rendering"] == "plain"
    texts = instruct.rollouts(kind="role", persona="pirate").to_pylist()
    plain, places = PlainModel(other), 0
    tokenizer: Any = AutoTokenizer.from_pretrained(other)
    for row in run.rollouts(kind="role", persona="pirate").to_pylist():
        (text,) = (t for t in texts if all(t[name] == row[name] for name in ADDRESS))
        written = tokenizer.decode(row["prompt_token_ids"])
        assert written == f"{text['system_prompt'].strip()}\n\nUser:\n{text['question'].strip()}\n\nAssistant:\n"
        states, _ = plain.run(row["prompt_token_ids"] + row["response_token_ids"])
        expected = states[:, len(row["prompt_token_ids"]) :].astype(np.float64).mean(axis=1)
        where = {name.removesuffix("_index"): row[name] for name in ADDRESS[3:5]}
        found = run.activations(persona="pirate", layer="all", **where).values
        assert relative_errors(found[0], expected).max() < 1e-3
        places += 1
    assert places


def save_other_vocabulary(directory: Path) -> None:
    """Save a tokenizer of the same tokens with other numbers, without a chat template."""
    save_tokenizer(directory, None)
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    path = directory / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    tokenizer["model"]["vocab"] = {token: i if i < 3 else 261 - i for token, i in vocabulary.items()}
    path.write_text(json.dumps(tokenizer))


def test_turns_of_conversations_are_read_by_their_tokens_and_as_conversations(model: Path, base: Path, tmp_path: Path):
    talks = [line("Hi", "Hello.", "So?", "So it is.", "And?", ""), line("Why?", "Because.", system_prompt="Be.", id=4)]
    source = persona_atlas.extract(
        model, write_lines(tmp_path / "talks.jsonl", talks), tmp_path / "talks", progress=False
    ).run
    by_tokens = replay(base, source, tmp_path / "tokens").run
    by_template = replay(base, source, tmp_path / "template", chat_template=template_file(tmp_path)).run
    assert by_template.record.rendering["texts_rendering"] == "template"
    expected = source.activations(layer="all").values
    for run in (by_tokens, by_template):
        assert run.index.select(["conversation_index", "turn_index"]).to_pylist() == [
            {"conversation_index": index, "turn_index": turn} for index, turn in ((0, 1), (0, 3), (1, 1))
        ]
        assert relative_errors(run.activations(layer="all").values, expected).max() < 2e-3
        assert json.loads(run.rollouts(conversation=1)["extra"][0].as_py()) == {"id": 4}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"conversations": {"texts_of": "runs/a", "source": "b.jsonl"}}, "conversations"),
        ({"conversations": {"source": "b.jsonl", "rendering": "plain"}}, "conversations"),
        ({"conversations": {"texts_of": "runs/a", "prompts_only": True}}, "conversations"),
        ({"conversations": {"texts_of": "runs/a"}, "capture": {"poolings": ["user_mean"]}}, "capture"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_field(changes: dict[str, Any], field: str):
    with pytest.raises(InputError) as caught:
        make_spec({"model": {"source": "models/a"}, "store": {"url": "runs/b"}} | changes)
    assert caught.value.field == field


def test_stores_without_responses_and_the_own_store_are_refused(base: Path, instruct: Run, tmp_path: Path):
    with pytest.raises(InputError) as caught:
        replay(base, tmp_path / "nothing", tmp_path / "run")
    assert (caught.value.code, caught.value.field) == ("no_run", "conversations.texts_of")
    with pytest.raises(InputError) as caught:
        replay(base, instruct, Path(instruct.url))
    assert caught.value.code == "same_store"
    options: dict[str, Any] = {"prompts_only": True, "chat_template": "builtin:plain", "progress": False}
    talk = [{"role": "user", "content": "Hi"}]
    prompts = persona_atlas.extract(base, talk, tmp_path / "prompts", **options).run
    with pytest.raises(InputError) as caught:
        replay(base, prompts, tmp_path / "run")
    assert caught.value.code == "no_responses"


def template_file(folder: Path) -> Path:
    path = folder / "chat.jinja"
    path.write_text(CHAT_TEMPLATE)
    return path
