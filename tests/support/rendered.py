"""Render a cluster for a test, without model files, with few personas, and with secrets in the environment."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.model_facts import ModelFacts
from persona_atlas.jobs.sizing.known_models import known_models
from persona_atlas.jobs.specs.spec_parts import ModelSpec

from fakes import FACTS

ROOT = Path(__file__).parents[2]
_NOT_RENDERED = {"capped", "sweep", "pareto", "drift", "harm", "jailbreaks"}
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.yaml") if path.stem not in _NOT_RENDERED)
"""Those that a cluster can run: others have files on this machine, are no single job, or end in a table of a study."""
LLAMA = ROOT / "examples" / "llama-3.3-70b.yaml"
FEW = ("--set", "personas.roles.names=[pirate]", "--set", "personas.traits.names=[]")
"""Few personas are planned faster and render the same."""

SECRETS = {"AWS_SECRET_ACCESS_KEY": "hunter2", "AWS_ACCESS_KEY_ID": "AKIAHUNTER", "HF_TOKEN": "hf_hunter"}

_MODULE = "persona_atlas.cluster.run.prepare"
_load_catalog = cache(load_catalog)


def render(kind: str, example: Path = LLAMA, *options: str, few: bool = True) -> str:
    """Return what ``cluster render`` prints for an example, with a store in a bucket."""
    arguments = ["--kind", kind, "--spec", str(example), "--set", "store.url=s3://bucket/x", *(FEW if few else ())]
    return render_plainly(*arguments, *options)


def render_plainly(*arguments: str) -> str:
    """Return what ``cluster render`` prints; its errors are raised."""
    with (
        patch(f"{_MODULE}.sketch_model", _sketch),
        patch("persona_atlas.jobs.sources.load.load_catalog", _load_catalog),
    ):
        runner = CliRunner(env=SECRETS)
        done = runner.invoke(cli, ["cluster", "render", *arguments], catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def _sketch(model: ModelSpec, _say: object) -> tuple[ModelFacts, str]:
    return known_models().get(model.source, replace(FACTS, n_layers=30, d_model=576)), "table"


def documents(kind: str, example: Path = LLAMA, *options: str, few: bool = True) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(render(kind, example, *options, few=few)))


def cluster_spec(found: list[dict[str, Any]]) -> dict[str, Any]:
    spec = found[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def templates(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """List every pod template, including the submitter's."""
    spec = cluster_spec(found)
    pods = [spec["headGroupSpec"]["template"], *(group["template"] for group in spec["workerGroupSpecs"])]
    submitter = found[-1]["spec"].get("submitterPodTemplate")
    return pods if submitter is None else [*pods, submitter]


def containers(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for template in templates(found):
        yield from template["spec"]["containers"]


def worker(found: list[dict[str, Any]]) -> dict[str, Any]:
    return cluster_spec(found)["workerGroupSpecs"][0]


def parse_own_command(line: str) -> dict[str, Any]:
    """Parse a ``persona-atlas`` command and return its parameters."""
    program, name, *arguments = shlex.split(line)
    assert program == "persona-atlas"
    return cli.commands[name].make_context(name, list(arguments)).params
