"""The status file of a driver: progress, rates, workers, and failures, the first of them in full."""

from __future__ import annotations

from pathlib import Path

import pytest
from persona_atlas.cluster.pool.executor import WorkerView
from persona_atlas.cluster.pool.worker_loop import WorkerLoop
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run.status_reporter import JobStoppedError, StatusReporter
from persona_atlas.jobs.errors import StoreError
from persona_atlas.jobs.scheduling.job_state import JobState
from persona_atlas.jobs.scheduling.ledger import Failure, Ledger
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.status import RunStatus, Stage, UnitFailure, read_status
from persona_atlas.workers.engine import EngineSettings

from fakes import FakeEngine, small_plan, small_spec
from local_executor import LocalExecutor
from stored_runs import write_unit


class _Pool(LocalExecutor):
    """One worker that is working and one that waits for resources; one excluded node."""

    @property
    def views(self) -> list[WorkerView]:
        return [
            WorkerView("worker-0", "a", "working", ("unit-1", "unit-2"), 5.0),
            WorkerView("worker-3", "", "waiting", (), 6.0),
        ]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        return {"b": "3 workers died on it, the last: gone"}


@pytest.fixture
def pool(tmp_path: Path) -> _Pool:
    spec = small_spec(str(tmp_path))
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, (0,), spec.sampling, spec.capture)
    return _Pool(
        WorkerLoop(WorkerSettings(unused, 0, str(tmp_path), None, 3, 10), "local", load=lambda *_: FakeEngine())
    )


def written(place: Path) -> RunStatus:
    status = read_status(open_location(str(place)), 1)
    assert status is not None
    return status


def fail(ledger: Ledger, unit_id: str, reason: str) -> None:
    attempt = ledger.num_attempts[unit_id]
    ledger.fail(Failure(unit_id, attempt, f"{reason} ({attempt})", f"Traceback of {reason} ({attempt})"), "worker-0")


def test_the_status_has_progress_workers_and_failures(tmp_path: Path, pool: _Pool):
    location = open_location(str(tmp_path))
    plan = small_plan(small_spec(str(tmp_path)))
    ledger = Ledger(plan, set(), iter(range(100)), rollouts_per_assignment=9)
    first, second, third = (attempt.unit.unit_id for attempt in ledger.next_assignment())
    with StatusReporter("job-1") as reporter:
        reporter.attach(location, 1)
        reporter.set_phase("working")
        manifest = write_unit(location, plan, first, 0)
        reporter.count_commit(manifest)
        ledger.commit(first)
        fail(ledger, second, "no memory")
        fail(ledger, third, "no luck")
        while third not in ledger.failed:
            if third in [attempt.unit.unit_id for attempt in ledger.next_assignment()]:
                fail(ledger, third, "no luck")
        reporter.update(ledger, pool)
        reporter.write()
    status = written(tmp_path)
    assert status.job_id == "job-1"
    assert status.stages == (Stage(name="rollouts", done=1, planned=12), Stage(name="reduction", done=0, planned=1))
    assert (status.units_failed, status.units_in_flight) == (1, 10)
    assert [(worker.name, worker.doing) for worker in status.workers] == [
        ("worker-0", "working"),
        ("worker-3", "waiting"),
    ]
    assert status.nodes_left_out == {"b": "3 workers died on it, the last: gone"}
    assert status.failures == (
        UnitFailure(
            unit_id=second,
            attempts=1,
            error="no memory (1)",
            detail="Traceback of no memory (1)",
            is_given_up=False,
        ),
        UnitFailure(unit_id=third, attempts=3, error="no luck (3)", detail="", is_given_up=True),
    )


def test_workers_are_listed_while_they_load_and_a_stop_ends_the_job(tmp_path: Path, pool: _Pool):
    def load(reporter: StatusReporter) -> None:
        with reporter:
            reporter.attach(open_location(str(tmp_path)), 1)
            reporter.update_workers(pool)
            reporter.write()
            assert [worker.doing for worker in written(tmp_path).workers] == ["working", "waiting"]
            reporter.stop()
            reporter.update_workers(pool)

    with pytest.raises(JobStoppedError):
        load(StatusReporter("job-1"))
    status = written(tmp_path)
    assert (status.state, status.workers, status.error) == (JobState.CANCELLED, (), "cancelled.")


def test_an_error_is_written_as_the_end_of_the_job(tmp_path: Path):
    def work(reporter: StatusReporter) -> None:
        with reporter:
            reporter.attach(open_location(str(tmp_path)), 1)
            raise StoreError("the roof is gone.", code="gone")

    with pytest.raises(StoreError):
        work(StatusReporter())
    assert (written(tmp_path).state, written(tmp_path).error) == (JobState.FAILED, "the roof is gone.")
