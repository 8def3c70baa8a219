"""Openings that a base model completes under the axis of another model: stored, resumed, counted by group."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import persona_atlas
import pytest
from persona_atlas.cluster.run.local import open_local_backend
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.sweeping.prepare import prepare_sweep
from persona_atlas.cluster.sweeping.results import open_ruler, results_of
from persona_atlas.cluster.sweeping.run import run_sweep
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import make_spec
from persona_atlas.jobs.specs.sweep_spec import make_sweep
from persona_atlas.storage.query.run import Run, open_run
from rich.console import Console

from plain_forward import PlainModel, relative_errors
from tiny_axes import tiny_run
from tiny_models import save_tiny_llama

OPENINGS = "groups:\n  job: [My job is to, All day long I]\n  wish: [I want]\n"
QUIET = Progress(Console(quiet=True))


@pytest.fixture(scope="module")
def axis(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny_run(tmp_path_factory.mktemp("axis") / "axis")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As wide and as deep as the model of the axis, with other weights and without a chat template."""
    import torch
    from transformers import AutoModelForCausalLM

    directory = save_tiny_llama(tmp_path_factory.mktemp("base"), chat_template=None)
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    model.save_pretrained(directory)
    return directory


def spec_of(base: Path, folder: Path, **more: Any) -> dict[str, Any]:
    (folder / "openings.yaml").write_text(OPENINGS)
    return {
        "model": {"source": str(base)},
        "prefills": {"source": str(folder / "openings.yaml"), "samples": 2},
        "sampling": {"max_new_tokens": 8},
        "capture": {"canary": {"one_in": 1}},
        "placement": {"device": "cpu"},
        "store": {"url": str(folder / "run"), "mantissa_bits": 23},
    } | more


def test_openings_are_completed_under_the_axis_of_another_model(axis: Run, base: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    section = {"axis": axis.url, "layers": [1], "transfer": True, "settings": [-2, 0], "rubric": "base_completion"}
    spec = spec_of(base, tmp_path, sweep=section)
    prepared = prepare_sweep(make_sweep(spec), QUIET)
    outcome = run_sweep(prepared, QUIET, open_local_backend, nullcontext)
    assert outcome.is_complete
    runs = [open_run(one.job.location.url) for one in prepared.settings]
    tokenizer, plain = AutoTokenizer.from_pretrained(base), PlainModel(base)
    for run in runs:
        rows = run.rollouts().to_pylist()
        assert [(r["kind"], r["persona"], r["question_index"], r["sample_index"], r["turn_index"]) for r in rows] == [
            ("conversation", group, place, sample, 1)
            for group, place in (("job", 0), ("job", 1), ("wish", 2))
            for sample in range(2)
        ]
        assert all(row["prompt_token_ids"] == tokenizer(row["question"])["input_ids"] for row in rows)
        assert persona_atlas.verify(run, recompute=2, progress=False).is_sound
        assert run.record.rendering["chat_template"]
    row = next(row for row in runs[1].rollouts().to_pylist() if row["has_vector"])
    where = {"conversation": row["conversation_index"]}
    states, _ = plain.run(row["prompt_token_ids"] + row["response_token_ids"])
    start = len(row["prompt_token_ids"])
    expected = states[:, start : start + row["num_content_tokens"]].astype(np.float64).mean(axis=1)
    assert relative_errors(runs[1].activations(layer="all", **where).values[0], expected).max() < 1e-3
    again = run_sweep(prepare_sweep(make_sweep(spec), QUIET), QUIET, open_local_backend, nullcontext)
    assert (again.worked, again.is_complete) == (0, True)
    points = results_of(prepared, open_ruler(prepared, 1), None, None, by="persona").points
    steered, unsteered = (point for point in points if point.group == "all")
    assert steered.replies == 6
    assert steered.projection < unsteered.projection
    assert {point.group for point in points} == {"all", "job", "wish"}


def test_what_does_not_fit_is_refused_by_field(axis: Run, base: Path, tmp_path: Path):
    entry: dict[str, Any] = {"steer": -1, "axis": axis.url, "layers": [1]}
    with pytest.raises(InputError) as caught:
        persona_atlas.run(make_spec(spec_of(base, tmp_path, interventions=[entry])), progress=False)
    assert caught.value.field == "interventions.0.axis"
    wider = save_wider(tmp_path / "wider")
    spec = make_spec(spec_of(wider, tmp_path, interventions=[entry | {"transfer": True}]))
    with pytest.raises(InputError, match="32") as caught:
        persona_atlas.run(spec, progress=False)
    assert caught.value.field == "interventions.0.axis"
    for more in ({"generation": {"endpoint": "http://gpu:8000/v1"}}, {"personas": {"roles": {"names": ["pirate"]}}}):
        with pytest.raises(InputError):
            make_spec(spec_of(base, tmp_path, **more))
    with pytest.raises(InputError, match="without a chat template"):
        make_spec(spec_of(base, tmp_path, model={"source": str(base), "chat_template": "builtin:plain"}))


def save_wider(directory: Path) -> Path:
    from transformers import LlamaConfig

    from tiny_families import SHAPE, save_tiny_model

    shape: dict[str, Any] = SHAPE | {"hidden_size": 48, "num_hidden_layers": 3}
    return save_tiny_model(directory, LlamaConfig(**shape))
