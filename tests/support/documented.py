"""The folder in which the examples of the docs and the docstrings run: small stores under the names that they use."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import yaml
from persona_atlas.storage.run.index_keeper import refresh_index

from conversations import conversation, given_plan
from fakes import FACTS, FakeEngine, small_plan, small_spec
from stored_runs import record_of, store_run
from tiny_axes import save_tiny_axis
from tiny_models import save_tiny_llama

_COUNTS = {"prompts": 2, "questions": 4}
_PERSONAS = {"roles": {"names": ["pirate", "poet", "teacher"], **_COUNTS}, "default": _COUNTS}

JOB = {
    "model": {"source": "models/tiny"},
    "personas": {
        "roles": {"names": ["pirate", "poet", "teacher"], "prompts": 2, "questions": 2},
        "default": {"prompts": 1, "questions": 2},
    },
    "sampling": {"max_new_tokens": 8},
    "store": {"url": "runs/mine"},
}
"""A job that a 3-layer random model does in a second."""


def write_stores(folder: Path) -> None:
    """Write stand-ins for the demo's store and its variants, 30 layers x 576 wide, without running a model.

    ``runs/demo``: 3 roles and the default, 2 prompts x 4 questions each; ``runs/tokens``: the same with every token of
    two layers; ``runs/talks``: one given conversation of two turns.
    """
    plan = small_plan(small_spec(personas=_PERSONAS), facts=replace(FACTS, n_layers=30, d_model=576))
    engine = FakeEngine(layers=tuple(range(30)), d_model=576, more=", and at some length")
    location = store_run(str(folder / "runs" / "demo"), plan, engine=engine)
    refresh_index(location, record_of(plan))
    talks = given_plan(conversation("Hi", "Hello", "So?", "So."), facts=plan.facts)
    store_run(str(folder / "runs" / "talks"), talks, engine=engine)
    keeps = {"poolings": ["response_mean", "tokens"], "token_layers": [15, 20]}
    keeping = small_plan(small_spec(personas=_PERSONAS, capture=keeps), facts=plan.facts)
    store_run(str(folder / "runs" / "tokens"), keeping, engine=replace(engine, token_layers=(15, 20)))


def write_job(folder: Path, examples: Path) -> None:
    """Write ``job.yaml``, the model that it names, a made-up axis of that model, and the project's examples."""
    save_tiny_llama(folder / "models" / "tiny")
    save_tiny_axis(folder / "models" / "tiny-axis")
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    shutil.copytree(examples, folder / "examples")
