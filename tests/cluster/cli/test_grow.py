"""``--grow`` and ``grow=True``: what would be added and its cost, and the run that has it, with a real small model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import persona_atlas
import pytest
from click.testing import CliRunner
from persona_atlas import InputError, open_run
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.submission.cluster_fit import SubmitOptions
from persona_atlas.cluster.submission.ray_cluster import Cluster
from persona_atlas.cluster.submission.submit import submit_job
from persona_atlas.cluster.submission.submitted_job import SubmittedJob
from persona_atlas.jobs.specs.spec import load_spec
from rich.console import Console

from documented import JOB
from fakes import small_spec

MORE = ("--set", "personas.roles.names=[pirate, poet, teacher, void]", "--set", "personas.roles.questions=3")


def answered(*arguments: str | Path) -> dict[str, Any]:
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False, standalone_mode=False)
    return json.loads(done.stdout)


@pytest.fixture
def job(tmp_path: Path, tiny_model_directory: Path) -> Path:
    path = tmp_path / "job.yaml"
    data = {"model": {"source": str(tiny_model_directory)}, "store": {"url": str(tmp_path / "run")}}
    path.write_text(json.dumps(JOB | data))
    return path


class _NoCluster:
    """A cluster that is asked only once everything else is found to be right."""

    address = "http://head:8265"

    def info(self) -> Any:
        raise ConnectionError("asked")


def test_a_larger_spec_is_planned_run_and_shown_as_an_addition(job: Path, tmp_path: Path):
    begun = persona_atlas.run(job, progress=False)
    larger = load_spec(job, MORE[1::2])
    found = answered("plan", job, *MORE, "--grow")
    # Two prompts of three roles lack a question, and the fourth has none of its three.
    assert (found["rollouts"], found["rollouts_by_kind"]) == (12, {"role": 12})
    assert found["grows"] == {
        "store": str(tmp_path / "run"),
        "addition": 1,
        "units_before": begun.planned,
        "rollouts_before": 14,
        "rollouts_since": 26,
    }
    assert found["stored_bytes"] < answered("plan", job, *MORE)["stored_bytes"]
    assert persona_atlas.plan(larger, grow=True, progress=False).num_rollouts == 12

    cluster, progress = cast(Cluster, _NoCluster()), Progress(Console(quiet=True))
    for start in (
        lambda: persona_atlas.run(larger, progress=False),
        lambda: submit_job(larger, cluster, SubmitOptions(), progress),
    ):
        with pytest.raises(InputError, match="--grow") as caught:
            start()
        assert caught.value.code == "other_run"
    with pytest.raises(ConnectionError):
        submit_job(larger, cluster, SubmitOptions(), progress, grow=True)

    result = persona_atlas.run(larger, grow=True, progress=False)
    assert (result.is_complete, result.worked) == (True, found["units"])
    shown = answered("show", tmp_path / "run")
    assert shown["rollouts"] == 26
    assert [(one["number"], one["units"], one["rollouts"]) for one in shown["additions"]] == [(1, found["units"], 12)]
    text = CliRunner().invoke(cli, ["show", str(tmp_path / "run")], catch_exceptions=False, standalone_mode=False)
    assert "addition 1" in text.output
    # All of it is reduced, and the run resumes by its own record.
    assert result.summary is not None
    assert result.summary.units_planned == result.planned == result.run.completeness.done
    assert result.run.record.spec.personas == larger.personas
    with pytest.raises(InputError, match="nothing that is not planned") as caught:
        persona_atlas.plan(larger, grow=True, progress=False)
    assert caught.value.code == "nothing_to_add"


def test_conversations_that_were_appended_are_extracted_alone(tmp_path: Path, tiny_model_directory: Path):
    talks = [
        [{"role": "user", "content": f"Question {number}?"}, {"role": "assistant", "content": f"Answer {number}."}]
        for number in range(5)
    ]
    model, store = tiny_model_directory, tmp_path / "talks"
    before = persona_atlas.extract(model, talks[:3], store, progress=False).run.activations(layer="all").values
    with pytest.raises(InputError, match="has another text") as caught:
        persona_atlas.extract(model, [*reversed(talks[:3]), *talks[3:]], store, grow=True, progress=False)
    assert caught.value.code == "cannot_grow"
    result = persona_atlas.extract(model, talks, store, grow=True, progress=False)
    assert (result.is_complete, result.worked) == (True, 1)
    values = open_run(store).activations(layer="all").values
    assert values.shape[0] == 5
    assert (values[:3] == before).all()


def test_a_job_that_is_sent_says_whether_it_may_add_to_its_run(tmp_path: Path):
    for grow in (False, True):
        job = SubmittedJob(job_id="job-1", spec=small_spec(), version="1", python="3.12", grow=grow)
        job.write(tmp_path)
        assert SubmittedJob.model_validate_json((tmp_path / "job.json").read_bytes()).grow is grow
