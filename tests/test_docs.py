"""The README and the docs, taken at their word: every command parses or runs, every Python block runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import replace
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.jobs.specs.interventions_spec import InterventionSpec
from persona_atlas.jobs.specs.pareto_spec import ParetoSection, load_pareto
from persona_atlas.jobs.specs.spec import JobSpec, load_spec
from persona_atlas.jobs.specs.sweep_spec import SweepSection, load_sweep
from persona_atlas.storage.derived.reduction import ARRAYS

from fakes import FACTS, small_plan

ROOT = Path(__file__).parents[1]
READING = ("show", "query", "verify", "gc", "reduce", "report", "catalog")
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FOLDERS = ("jobs", "workers", "storage", "analysis", "cluster", "tests", "docs", "examples", "benchmarks")
HISTORY = ("log.md", "CHANGELOG.md")
"""Pages that name what was there once."""


def blocks(language: str) -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for text in re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            found.append((page.name, text))
    return found


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for _, text in blocks("sh") for line in text.splitlines()]
    # What a shell variable is to hold is a command too.
    lines = [re.sub(r"^\w+=\$\((.*?)\).*", r"\1", line) for line in lines]
    return sorted({line for line in lines if line.startswith("persona-atlas ")})


def run_command(line: str) -> None:
    done = CliRunner().invoke(cli, shlex.split(line)[1:], catch_exceptions=False, standalone_mode=False)
    assert done.exit_code == 0, done.output


def test_every_command_that_reads_a_store_or_the_catalog_runs(documented_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(documented_folder)
    reading = [line for line in commands() if line.split()[1] in READING]
    reading = [
        line for line in reading if "my-personas" not in line and "on-cluster" not in line and "runs/second" not in line
    ]
    # A model makes it; tests/cluster/run/test_edited_runs.py shows and queries one.
    reading = [line for line in reading if "runs/capped" not in line]
    # There is no hub here; tests/storage/sharing/test_hub.py has a stand-in.
    reading = [line for line in reading if "hf://" not in line]
    # It loads the model of the run; tests/cluster/run/test_recompute.py does so.
    reading = [line for line in reading if "--recompute" not in line]
    # It needs a judge's scores; tests/cluster/cli/test_judge_command.py has them.
    reading = [line for line in reading if "--judge" not in line]
    assert len(reading) >= 11
    for line in reading:
        run_command(line)


def test_every_other_command_parses(monkeypatch: pytest.MonkeyPatch):
    for line in commands():
        name, *arguments = shlex.split(re.split(r" [<>] ", line)[0])[1:]
        assert name in cli.commands, line
        command = cli.commands[name]
        if isinstance(command, click.Group):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(name, list(arguments), resilient_parsing=False)


def python_blocks() -> list[object]:
    """Those that run SmolLM2 need it installed."""
    return [
        pytest.param(page, text, marks=[pytest.mark.model] if "package://" in text else [], id=f"{page}-{number}")
        for number, (page, text) in enumerate(blocks("python"))
    ]


@pytest.mark.parametrize(("page", "text"), python_blocks())
def test_every_python_block_runs_and_prints_what_it_says(
    page: str, text: str, documented_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(documented_folder)
    if "runs/demo" in text:
        run_command("persona-atlas reduce runs/demo")
        capsys.readouterr()
    # The store of the demo is made without a model here.
    text = text.replace('Monitor("runs/demo"', 'Monitor("models/tiny-axis", "models/tiny"')
    exec(compile(text, page, "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    for line, told in zip(printed, re.findall(r"print\(.*\)\s+# (\([\d, ]+\)[^;\n]*)", text), strict=False):
        assert told == line or "units" in line


def test_every_yaml_block_of_the_readme_is_a_spec(tmp_path: Path):
    # Others are sections of a spec, or rubrics.
    whole = [text for _, text in blocks("yaml") if re.search(r"^model:", text, re.MULTILINE)]
    assert len(whole) >= 3
    for text in whole:
        path = tmp_path / "job.yaml"
        path.write_text(text)
        assert isinstance(_job_of(path), JobSpec)


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_is_a_plan(example: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    plan = small_plan(_job_of(example), facts=replace(FACTS, n_layers=30, d_model=576))
    if example.name == "full.yaml":
        assert plan.rollouts_by_kind() == {"default": 1200, "role": 330_000, "trait": 576_000}
    if example.name == "demo.yaml":
        roles, traits = plan.spec.personas.roles.names, plan.spec.personas.traits.names
        assert (len(roles), len(traits)) == (26, 4)


def _job_of(example: Path) -> JobSpec:
    """Read an example; of a sweep and of a Pareto study the job of its first setting."""
    text = example.read_text()
    if "\nsweep:" not in text and "\npareto:" not in text:
        return load_spec(example)
    sweep = load_sweep(example) if "\nsweep:" in text else load_pareto(example).sweep
    return sweep.job_of(sweep.settings[0])


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_file_that_a_page_names_is_there():
    named = [
        (page, path)
        for page in PAGES
        if page.name not in HISTORY
        for path in re.findall(r"`(\w+/[\w/.-]+)`", page.read_text())
    ]
    files = [(page, path) for page, path in named if path.split("/")[0] in FOLDERS]
    assert len(files) > 50
    for page, path in files:
        assert (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_test_that_a_page_names_is_there():
    tests = {name for file in (ROOT / "tests").rglob("test_*.py") for name in (*_tests_of(file), file.name)}
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+(?:\.py)?)`", page.read_text())}
    assert len(named) > 10
    assert not named - tests


def _tests_of(file: Path) -> list[str]:
    return re.findall(r"^def (test_\w+)", file.read_text(), re.MULTILINE)


def test_the_spec_page_names_every_field():
    text = (ROOT / "docs" / "spec.md").read_text()

    def names(model: type, path: str = "") -> list[str]:
        found = []
        for name, info in model.model_fields.items():
            nested = hasattr(info.annotation, "model_fields")
            found += names(info.annotation, f"{path}{name}.") if nested else [f"{path}{name}"]
        return found

    studies = [*names(SweepSection, "sweep."), *names(ParetoSection, "pareto.")]
    for name in [*names(JobSpec), *names(InterventionSpec, "interventions[]."), *studies]:
        parent, _, leaf = name.rpartition(".")
        told = f"`{name}`" in text or f"`{parent}.*`" in text or f"`.{leaf}`" in text
        assert told, name


def test_the_science_page_names_every_array_of_a_reduction():
    text = (ROOT / "docs" / "science.md").read_text()
    assert not [name for name in ARRAYS if f"`{name}`" not in text]


def test_help_is_there_for_every_verb():
    for name, command in cli.commands.items():
        assert isinstance(command, click.Command)
        assert command.help, name
