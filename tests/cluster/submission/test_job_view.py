"""The state of a run as its store shows it: how old the news of its driver is, and what a stopped driver leaves."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.submission.job_view import view_job, view_run
from persona_atlas.cluster.submission.ray_cluster import RayJob
from persona_atlas.jobs.scheduling.job_state import JobState, RayState
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.lease import LEASE_SECONDS, acquire
from persona_atlas.storage.run.status import RunStatus, write_status

from fakes import small_plan, small_spec
from stored_runs import begin, small_run


@pytest.mark.parametrize(("since_status_s", "since_lease_s", "heard_s"), [(3, 15, 3), (90, 15, 15), (40, 50, 40)])
def test_the_age_of_the_last_news_is_that_of_the_newer_of_status_and_lease(
    tmp_path: Path, since_status_s: float, since_lease_s: float, heard_s: float
):
    url = str(tmp_path / "run")
    location = open_location(url)
    with acquire(location, 9) as lease:
        begin(location, small_plan(small_spec(url)), lease)
        now = time.time()
        status = RunStatus(state=JobState.RUNNING, doing="working", updated_at=now - since_status_s, started_at=0.0)
        write_status(location, lease.generation, status)
        held: Any = lease
        stored = held._lease.model_copy(update={"expires_at": now - since_lease_s + LEASE_SECONDS})
        location.write(f"drivers/{lease.generation:06}.json", stored.to_bytes())
        view = view_run(url)
        assert view.state is JobState.RUNNING
        assert view.silent_s(now) == pytest.approx(heard_s)
        assert view.as_dict()["driver_heard_at"] == pytest.approx(now - heard_s)
        shown = CliRunner().invoke(cli, ["status", url]).output
        assert "last heard from" in shown
    view = view_run(url)
    assert (view.state, view.driver, view.silent_s(now)) == (JobState.FAILED, None, None)
    assert "last heard from" not in CliRunner().invoke(cli, ["status", url]).output


@pytest.mark.parametrize(
    ("ray", "state", "state_of_one_that_adds_nothing"),
    [
        (RayState.PENDING, JobState.QUEUED, JobState.SUCCEEDED),
        (RayState.RUNNING, JobState.RUNNING, JobState.SUCCEEDED),
        (RayState.FAILED, JobState.FAILED, JobState.SUCCEEDED),
        (RayState.SUCCEEDED, JobState.SUCCEEDED, JobState.SUCCEEDED),
    ],
)
def test_a_job_that_is_to_add_to_a_finished_run_is_not_done_before_it_has_begun(
    tmp_path: Path, ray: RayState, state: JobState, state_of_one_that_adds_nothing: JobState
):
    url = str(tmp_path / "run")
    run = small_run(url)
    assert run.completeness.is_complete
    job = RayJob("job-1", ray, "", url, None, run.record.spec.model_dump_json(), "1", 0.0, None)
    assert view_job(job).state is state_of_one_that_adds_nothing
    assert view_job(replace(job, grows_from=run.record.plan_digest)).state is state
    # The run has grown since.
    assert view_job(replace(job, grows_from="0" * 64)).state is JobState.SUCCEEDED
