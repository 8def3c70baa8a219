"""Prompts without an answer, from a file to a store: their values against plain forward passes, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import persona_atlas
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.work.rollouts import Rollout
from persona_atlas.storage.query.run import Run

from command_line import Answered, Refused
from conversations import line, write_lines
from plain_forward import PlainModel, pool, relative_errors
from tiny_models import CHAT_TEMPLATE, save_tiny_llama

POOLINGS = ["prompt_mean", "prompt_last", "assistant_start", "user_mean"]
PROMPTS = [
    line("Who are you?", system_prompt="Be brief.", id=7),
    line("Who are you?", "Nobody.", "Why?"),
    *[line("Tell me a story about the number " + "one " * n, system_prompt="Be brief.") for n in range(1, 20)],
    line("Who are you?", system_prompt="Be brief."),
]


def extract(model: Path, prompts: Any, store: Path, **options: Any) -> persona_atlas.JobResult:
    return persona_atlas.extract(str(model), prompts, store, prompts_only=True, progress=False, **options)


def assert_plain(run: Run, model: Path, prompts: list[dict[str, Any]], poolings: list[str]) -> None:
    """Check every row against a plain forward pass over the prompt as transformers alone renders it."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    plain = PlainModel(model)
    rows = run.rollouts().to_pylist()
    found = {pooling: run.activations(layer="all", pooling=pooling) for pooling in poolings}
    assert [row["conversation_index"] for row in rows] == list(range(len(prompts)))
    for number, (row, given) in enumerate(zip(rows, prompts, strict=True)):
        ids = tokenizer.apply_chat_template(given["messages"], add_generation_prompt=True, return_dict=False)
        assert row["prompt_token_ids"] == ids
        texts = {name: row[name] for name in ("system_prompt", "question", "response", "finish_reason", "seed")}
        rollout = Rollout(None, prompt_token_ids=tuple(ids), response_token_ids=(), num_content_tokens=0, **texts)  # type: ignore[arg-type]
        expected = pool(plain.run(ids)[0], rollout)
        for pooling in poolings:
            assert relative_errors(found[pooling].values[number], expected[pooling]).max() < 1e-3, (number, pooling)


def test_every_prompt_is_what_a_plain_forward_pass_shows(tiny_model_directory: Path, tmp_path: Path):
    path = write_lines(tmp_path / "talks.jsonl", PROMPTS)
    options: dict[str, Any] = {
        "poolings": POOLINGS,
        "overrides": ["placement.batch_tokens=400", "capture.canary.one_in=1"],
    }
    result = extract(tiny_model_directory, path, tmp_path / "run", **options)
    assert (result.is_complete, result.failures, result.summary, result.report) == (True, (), None, None)
    run = result.run
    assert_plain(run, tiny_model_directory, PROMPTS, POOLINGS)
    rows = run.rollouts()
    assert rows["turn_index"].to_pylist() == [1, 3] + [1] * 20
    assert set(rows["response"].to_pylist()) == {""}
    assert set(rows["response_token_ids"].to_pylist()[0]) == set()
    assert set(rows["finish_reason"].to_pylist()) == {"given"}
    assert set(rows["num_content_tokens"].to_pylist()) == {0}
    assert json.loads(rows["extra"][0].as_py()) == {"id": 7}
    assert (run.num_empty_responses, run.index.num_rows) == (0, len(PROMPTS))
    checked = persona_atlas.verify(run, recompute=99, progress=False)
    assert (checked.is_sound, checked.is_complete) == (True, True)
    assert checked.recomputation is not None
    # The prompt with an earlier turn: only its last texts are stored.
    assert (checked.recomputation.rollouts, checked.recomputation.left_out) == (22, {"user_mean": 1})
    assert extract(tiny_model_directory, path, tmp_path / "run", **options).worked == 0


def test_prompts_in_memory_are_pooled_at_their_last_token_and_make_a_run_of_their_own(
    tiny_model_directory: Path, tmp_path: Path
):
    prompts = PROMPTS[:3]
    run = extract(tiny_model_directory, prompts, tmp_path / "run").run
    assert run.record.spec.capture.poolings == ["prompt_last"]
    assert_plain(run, tiny_model_directory, prompts, ["prompt_last"])
    # The same by an override of the spec.
    options: dict[str, Any] = {"overrides": ["conversations.prompts_only=true"], "progress": False}
    again = persona_atlas.extract(str(tiny_model_directory), prompts, tmp_path / "run", **options)
    assert again.worked == 0
    answered = [
        entry | {"messages": [*entry["messages"], {"role": "assistant", "content": "So."}]} for entry in prompts
    ]
    whole = persona_atlas.extract(
        str(tiny_model_directory), answered, tmp_path / "whole", poolings=["prompt_last"], progress=False
    ).run
    # Where a template's header is the same with an answer, so are the values before it.
    expected = whole.activations(pooling="prompt_last", layer="all").values[[0, 2, 3]]
    found = run.activations(pooling="prompt_last", layer="all").values
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"conversations\.prompts_only: the run at .* was begun with true"):
        persona_atlas.extract(
            str(tiny_model_directory), answered, tmp_path / "run", poolings=["prompt_last"], progress=False
        )


def test_prompts_are_shown_queried_and_not_reduced(
    tiny_model_directory: Path, tmp_path: Path, answered: Answered, refused: Refused
):
    store = tmp_path / "run"
    extract(tiny_model_directory, PROMPTS[:4], store)
    shown = answered("show", store)
    assert (shown["rollouts"], shown["prompts_only"], shown["empty_responses"]) == (4, True, 0)
    out = tmp_path / "found.npz"
    assert answered("query", store, "--pooling", "prompt_last", "--out", out)["shape"] == [4, 32]
    with np.load(out) as file:
        assert file["conversation_index"].tolist() == [0, 1, 2, 3]
    assert answered("query", store, "--pooling", "prompt_last", "--max-tokens", "0")["shape"] == [4, 32]
    assert refused("reduce", store)["code"] == "nothing_to_reduce"
    assert answered("verify", store)["sound"] is True


def test_prompts_of_roles_and_the_default_are_reduced_over_their_pooling(tiny_model_directory: Path, tmp_path: Path):
    folder = tmp_path / "prompts"
    folder.mkdir()
    for name, label in (("pirate", "pos"), ("poet", "pos"), ("bard", "pos"), ("default", "default")):
        write_lines(
            folder / f"{name}.jsonl",
            [
                line(text, system_prompt=f"You are {name}.", prompt_index=0, question_index=number, label=label)
                for number, text in enumerate(["Who are you?", "Why?"])
            ],
        )
    result = extract(tiny_model_directory, folder, tmp_path / "run")
    assert result.summary is not None
    reduction = result.run.reduction
    assert reduction is not None
    assert reduction.without_vector == {}
    found = result.run.activations(layer="all", pooling="prompt_last", persona="poet", kind="role").values
    assert reduction.role_vectors is not None
    expected = found.astype(np.float64).mean(axis=0)
    place = reduction.role_names.index("poet")
    np.testing.assert_allclose(reduction.role_vectors[place], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "field", "told"),
    [
        (
            ("--pooling", "response_mean"),
            "capture",
            "choose among prompt_mean, prompt_last, assistant_start, user_mean",
        ),
        (("--pooling", "prompt_last", "--pooling", "response_last"), "capture", "poolings has response_last, but"),
        (("--pooling", "tokens", "--token-layers", "1"), "capture", "poolings has tokens, but"),
    ],
)
def test_a_pooling_of_responses_is_refused_before_anything_is_read(
    tmp_path: Path, refused: Refused, options: tuple[str, ...], field: str, told: str
):
    arguments = ("--model", "nowhere", "--conversations", "none.jsonl", "--store", tmp_path / "run")
    error = refused("extract", *arguments, "--prompts-only", *options)
    assert (error["code"], error["field"]) == ("bad_value", field)
    assert told in error["error"]


def test_what_ends_with_an_answer_is_refused_by_line_and_may_be_left_out(
    tiny_model_directory: Path, tmp_path: Path, refused: Refused
):
    path = write_lines(tmp_path / "talks.jsonl", [PROMPTS[0], line("Who?", "Nobody.")])
    arguments = ("--model", tiny_model_directory, "--conversations", path, "--store", tmp_path / "run")
    error = refused("extract", *arguments, "--prompts-only")
    assert "line 2" in error["error"]
    assert "ends with a message of the assistant" in error["error"]
    # The other way round, the option is named.
    error = refused("extract", *arguments)
    assert "line 1" in error["error"]
    assert "--prompts-only" in error["hint"]
    assert not (tmp_path / "run").exists()
    result = extract(tiny_model_directory, path, tmp_path / "run", skip_invalid=True)
    assert (result.skipped, result.run.index.num_rows) == (1, 1)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n"),
        "{% for m in messages %}[INST] {{ m['content'] }} [/INST]<think>\n{% endfor %}",
    ],
)
def test_a_template_whose_prompts_end_in_reasoning_is_refused_at_plan(tmp_path: Path, template: str):
    model = save_tiny_llama(tmp_path / "model", chat_template=template)
    path = write_lines(tmp_path / "talks.jsonl", PROMPTS[:1])
    spec = {
        "model": {"source": str(model)},
        "conversations": {"source": str(path), "prompts_only": True},
        "store": {"url": str(tmp_path / "run")},
    }
    with pytest.raises(InputError, match="inside of <think>") as refused:
        persona_atlas.plan(spec, progress=False)
    assert refused.value.code == "opens_reasoning"
    closed = tmp_path / "closed.jinja"
    closed.write_text(template.replace("<think>\n", "<think>\n\n</think>\n\n"))
    spec["model"]["chat_template"] = str(closed)
    assert persona_atlas.plan(spec, progress=False).num_rollouts == 1


def test_a_prompt_longer_than_the_context_is_refused_by_line(tmp_path: Path):
    model = save_tiny_llama(tmp_path / "model", max_context=64)
    with pytest.raises(InputError, match=r"tokens; the model's context is 64 \(.*entry 2") as refused:
        extract(model, [PROMPTS[1], line("word " * 40)], tmp_path / "run")
    assert refused.value.code == "too_long"
