"""A Pareto study of the tiny model with planted labels and results: the planted front comes back, named and drawn."""

from __future__ import annotations

import dataclasses
import json
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from persona_atlas.analysis.axis_source import open_axis
from persona_atlas.analysis.exchange.capping_file import read_experiment
from persona_atlas.analysis.intervening.resolve import resolve_released
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.run.local import open_local_backend
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.studies.pareto import harm_rates, pareto_results, prepare_pareto, task_results
from persona_atlas.cluster.sweeping.prepare import PreparedSweep, prepare_sweep
from persona_atlas.cluster.sweeping.run import run_sweep
from persona_atlas.jobs.interventions import Cap
from persona_atlas.jobs.judging.outcomes import Outcome
from persona_atlas.jobs.judging.rubrics import load_rubric
from persona_atlas.jobs.specs.pareto_spec import load_pareto, make_pareto
from persona_atlas.storage.derived.verdicts import write_verdict_record, write_verdicts
from persona_atlas.storage.format.judge_record import JudgeRecord
from persona_atlas.storage.format.layout import verdict_folder
from persona_atlas.storage.query.run import Run, run_at
from rich.console import Console

from command_line import Answered, Refused
from tiny_axes import tiny_run

# By setting: harmful replies of six, right answers of twenty, and the mean strength of feelings, from 0 to 100.
PLANTED = {
    "plain": (6, 15, 60.0),
    "layers_0:2-p0.25": (2, 10, 60.0),
    "layers_0:2-p0.5": (3, 15, 60.0),
    "layers_1:3-p0.25": (2, 8, 60.0),
    "layers_1:3-p0.5": (5, 15, 64.0),
}
FRONT = ["layers_1:3-p0.5", "layers_0:2-p0.5", "layers_0:2-p0.25"]


@dataclass(frozen=True)
class World:
    axis: Run
    spec: dict[str, Any]
    file: Path

    def with_section(self, folder: Path, **changes: Any) -> Path:
        """Write the spec with another section ``pareto``."""
        file = folder / "other.yaml"
        file.write_text(yaml.safe_dump(self.spec | {"pareto": self.spec["pareto"] | changes}))
        return file


def write_results(folder: Path, right: int, strength: float) -> None:
    """Write results as ``lm_eval --output_path FOLDER --log_samples`` does: one task in full, one without samples."""
    documents = [
        {
            "doc_id": number,
            "doc_hash": f"{number:064x}",
            "filter": kind,
            "exact_match": float(number < right - (kind == "strict")),
        }
        for kind in ("flexible", "strict")
        for number in range(20)
    ]
    sums = {"alias": "sums", "exact_match,flexible": right / 20, "exact_match_stderr,flexible": 0.1}
    sums |= {"exact_match,strict": (right - 1) / 20, "exact_match_stderr,strict": 0.1}
    feelings = {"alias": "feelings", "strength,none": strength, "strength_stderr,none": 1.0}
    content = {
        "results": {"sums": sums, "feelings": feelings},
        "group_subtasks": {"sums": [], "feelings": []},
        "n-samples": {name: {"original": 20, "effective": 20} for name in ("sums", "feelings")},
        "higher_is_better": {"sums": {"exact_match": True}, "feelings": {"strength": True}},
    }
    (folder / "tiny").mkdir(parents=True)
    (folder / "tiny" / "results_2026-01-01.json").write_text(json.dumps(content))
    lines = "".join(json.dumps(document) + "\n" for document in documents)
    (folder / "tiny" / "samples_sums_2026-01-01.jsonl").write_text(lines)


def plant_labels(sweep: PreparedSweep) -> None:
    """Label the replies of every setting as a judge ``planted`` would, so many of them harmful."""
    rubric = load_rubric("harm", "rubric")
    harmful, harmless = (float(rubric.labels.index(name)) for name in ("harmful", "refusal"))
    write_verdict_record(sweep.location, rubric.name, JudgeRecord(name="planted", source="engine"))
    for one in sweep.settings:
        run = run_at(one.job.location)
        lines = sorted(zip(run.index["row"].to_pylist(), run.index["unit_id"].to_pylist(), strict=True))
        for unit in dict.fromkeys(unit for _, unit in lines):
            outcomes = [
                Outcome(row, harmful if number < PLANTED[one.setting.name][0] else harmless)
                for number, (row, of_unit) in enumerate(lines)
                if of_unit == unit
            ]
            folder = verdict_folder(rubric.name, "planted", one.setting.folder)
            write_verdicts(sweep.location, folder, unit, outcomes, rubric.labels, {row for row, _ in lines})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("pareto")
    axis = tiny_run(folder / "axis")
    for name, (_, right, strength) in PLANTED.items():
        write_results(folder / "results" / name.replace(":", "-"), right, strength)
    spec = {
        "model": {"source": axis.model_name},
        "personas": {"roles": {"names": ["pirate", "poet"], "prompts": 1, "questions": 3}, "default": {"prompts": 0}},
        "sampling": {"max_new_tokens": 4},
        "placement": {"device": "cpu"},
        "pareto": {
            "axis": axis.url,
            "windows": ["0:2", "1:3"],
            "percentiles": ["p0.25", "p0.5"],
            "capability": {
                "tasks": ["sums", "feelings"],
                "scales": {"feelings": 100},
                "results": str(folder / "results"),
            },
        },
        "store": {"url": str(folder / "study"), "mantissa_bits": 23},
    }
    progress = Progress(Console(quiet=True))
    sweep = prepare_sweep(make_pareto(spec).sweep, progress)
    assert run_sweep(sweep, progress, open_local_backend, nullcontext).is_complete
    plant_labels(sweep)
    (folder / "pareto.yaml").write_text(yaml.safe_dump(spec))
    return World(axis, spec, folder / "pareto.yaml")


def test_the_planted_front_comes_back_named_and_drawn(world: World, answered: Answered, tmp_path: Path):
    found = answered("pareto", world.file, "--png", tmp_path / "front.png")
    assert found["front"] == FRONT
    assert (found["chosen"], found["harm_labels"], found["judge"]) == (
        "layers_0:2-p0.5",
        ["partial", "harmful"],
        "planted",
    )
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
    assert [point["name"] for point in found["points"]] == list(PLANTED)
    for point in found["points"]:
        harmful, right, strength = PLANTED[point["name"]]
        expected = (right - 15) / 20 / 2 + (strength - 60) / 100 / 2
        assert point["harm_change"]["value"] == pytest.approx((harmful - 6) / 6)
        assert point["capability_change"]["value"] == pytest.approx(expected)
        assert point["harm"] | {"low": 0, "high": 0} == {
            "labelled": 6, "count": harmful, "rate": harmful / 6, "low": 0, "high": 0
        }  # fmt: skip
        assert point["tasks"]["sums"]["metric"] == "exact_match,flexible"
        assert 0 <= point["front_share"] <= 1
    widths = [point["tasks"]["sums"]["change"] for point in found["points"][1:]]
    assert widths[1] == {"value": 0, "low": 0, "high": 0}, "the same documents are right, so pairs do not differ"
    assert found["notes"] == [
        "Not paired document by document, so their intervals are wide: feelings.",
        "Not in the files: under which edits the results for any setting were made. The folders are trusted.",
    ]
    shown = CliRunner().invoke(cli, ["pareto", str(world.file)], env={"COLUMNS": "240"})
    assert shown.exit_code == 0
    assert "Chosen: layers_0:2-p0.5, at a cost of at most 1 points." in shown.output


def test_the_capping_file_of_the_chosen_point_does_what_its_setting_did(
    world: World, answered: Answered, refused: Refused, tmp_path: Path
):
    file = tmp_path / "chosen.pt"
    chosen = world.with_section(tmp_path, choose="layers_1:3-p0.25")
    found = answered("pareto", chosen, "--write-capping", file)
    assert (found["chosen"], found["tolerance"]) == ("layers_1:3-p0.25", None)
    edits = resolve_released(read_experiment(str(file), "layers_1:3-p0.25"), 3, 32, source="file").edits
    axis = open_axis(world.axis.url)
    assert [edit.layer for edit in edits] == [1, 2]
    for edit in edits:
        assert isinstance(edit, Cap)
        assert edit.floor == pytest.approx(axis.floor(edit.layer, "p0.25"), rel=1e-6)
        np.testing.assert_allclose(edit.vector.unit, axis.unit_D(edit.layer), atol=1e-6)
    error = refused("pareto", world.with_section(tmp_path, positions="response"), "--write-capping", file)
    assert error["field"] == "--write-capping"


def test_results_of_another_setting_than_their_folder_says_are_refused_by_name(
    world: World, refused: Refused, tmp_path: Path
):
    results = shutil.copytree(world.file.parent / "results", tmp_path / "results")
    (file,) = results.glob("layers_0-2-p0.25/tiny/results*.json")
    config = {"model": "persona_atlas", "model_edits": 0, "model_args": {"store": "runs/axis"}}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": config}))
    error = refused("pareto", world.file, "--set", f"pareto.capability.results={results}")
    assert (error["code"], error["field"], error["file"]) == (
        "other_results", "pareto.capability.results", str(file)
    )  # fmt: skip
    assert "layers_0:2-p0.25" in error["error"]


def test_a_named_setting_without_labels_is_said_to_have_none(world: World, tmp_path: Path):
    named = "layers_0:2-p0.25"
    study = prepare_pareto(load_pareto(world.with_section(tmp_path, choose=named)), Progress(Console(quiet=True)))
    harm = harm_rates(study.sweep, load_rubric("harm", "rubric"), "planted", ("harmful",))
    unlabelled = dataclasses.replace(harm, of_prompt={**harm.of_prompt, named: {}})
    found = pareto_results(study, task_results(study), unlabelled)
    assert found.chosen is None
    assert f"{named} is named and cannot be chosen: it has no point." in found.notes
    assert not any("no setting lowers harm" in note for note in found.notes)


def test_a_larger_tolerance_and_another_metric_choose_another_point(world: World, answered: Answered, tmp_path: Path):
    wider = answered("pareto", world.file, "--set", "pareto.tolerance=0.2")
    assert wider["chosen"] == "layers_0:2-p0.25"
    metric = answered("pareto", world.file, "--set", "pareto.capability.metrics.sums=exact_match,strict")
    assert metric["points"][0]["tasks"]["sums"] == {
        "metric": "exact_match,strict", "score": 0.7, "stderr": 0.1, "change": None
    }  # fmt: skip
    strict = answered("pareto", world.file, "--set", "pareto.harm.label=partial", status=0)
    assert (strict["chosen"], strict["front"]) == (None, ["layers_1:3-p0.5"])


@pytest.mark.parametrize(
    ("change", "code", "field"),
    [
        ("pareto.percentiles=[p0.25, p0.33]", "no_such_percentile", "pareto.percentiles.1"),
        ('pareto.windows=["0:2", "2:9"]', "no_such_layer", "pareto.windows.1"),
        ('pareto.windows=["0:2", "0:2"]', "bad_value", "pareto.windows"),
        ("pareto.windows=[middle]", "bad_value", "pareto.windows.0"),
        ("pareto.choose=layers_0:2-p0.75", "bad_value", "pareto"),
        ("pareto.harm.label=harms", "no_such_label", "pareto.harm.label"),
        ("pareto.capability.tasks=[feelings, other]", "no_such_task", "pareto.capability.tasks"),
        ("pareto.capability.results=nowhere", "missing_file", "pareto.capability.results"),
        ("pareto.capability.limit=2.5", "bad_value", "pareto.capability.limit"),
        ("sweep={settings: [0]}", "not_in_a_sweep", "sweep"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    world: World, tmp_path: Path, refused: Refused, change: str, code: str, field: str
):
    store = tmp_path / "new"
    error = refused("pareto", world.file, "--set", f"store.url={store}", "--set", change)
    assert (error["code"], error["field"]) == (code, field)
    assert not store.exists()


def test_a_study_that_nobody_judges_is_refused_and_a_dry_run_shows_the_settings(
    world: World, tmp_path: Path, answered: Answered, refused: Refused
):
    new = ("--set", f"store.url={tmp_path / 'new'}")
    assert refused("pareto", world.file, *new)["code"] == "no_judge"
    planned = answered("pareto", world.file, *new, "--dry-run")["settings"]
    assert [one["name"] for one in planned] == list(PLANTED)
    assert [one["units_missing"] for one in planned] == [2] * 5
    assert not (tmp_path / "new").exists()
    assert refused("run", world.file)["code"] == "is_a_pareto"
    missing = ("--set", "pareto.capability.scales={feelings: 50}")
    assert refused("pareto", world.file, *missing)["code"] == "beyond_scale"
