"""Whatever holds a job up is told while it is waited for, and a unit that was made is not made again for it."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from persona_atlas.cluster import retry
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.pool import worker_loop
from persona_atlas.cluster.pool.executor import Answer, Wait, WorkerView
from persona_atlas.cluster.pool.worker_loop import WorkerLoop, WorkerReport
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run.drive import drive
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.status_reporter import StatusReporter
from persona_atlas.jobs.errors import TransientError
from persona_atlas.jobs.scheduling.job_state import JobState
from persona_atlas.jobs.scheduling.ledger import Failure, Ledger
from persona_atlas.jobs.work.units import UnitAttempt
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.run.status import RunStatus, WaitStatus, read_status, write_status
from persona_atlas.workers.engine import EngineSettings
from rich.console import Console

from fakes import FakeEngine, small_plan, small_spec
from local_executor import LocalExecutor
from stored_runs import begin

FULL = TransientError("the disk is full.", code="disk_full")


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(retry, "_LONGEST_WAIT_S", 0.01)


def loop_of(folder: Path, engine: FakeEngine) -> WorkerLoop:
    plan = small_plan(small_spec(str(folder)))
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, plan.layers, plan.spec.sampling, plan.spec.capture)
    return WorkerLoop(WorkerSettings(unused, 0, str(folder), None, 3, 10), "local", load=lambda *_: engine)


def failing_writes(monkeypatch: pytest.MonkeyPatch, times: float) -> None:
    """Fail so many writes of units, and let the others be."""
    write = worker_loop.write_unit_result
    left = [times]

    def write_or_fail(*arguments: object, **named: object) -> object:
        left[0] -= 1
        if left[0] >= 0:
            raise FULL
        return write(*arguments, **named)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(worker_loop, "write_unit_result", write_or_fail)


def reports_of(loop: WorkerLoop, until: Callable[[WorkerReport], bool]) -> list[WorkerReport]:
    reports = [loop.next_report()]
    while not until(reports[-1]):
        reports.append(loop.next_report())
    return reports


def test_a_worker_reports_what_it_waits_for_and_when_that_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(retry, "_LONGEST_WAIT_S", 0.2)
    monkeypatch.setattr(retry, "_FIRST_WAIT_S", 0.2)
    failing_writes(monkeypatch, times=3)
    engine = FakeEngine()
    loop = loop_of(tmp_path, engine)
    plan = small_plan(small_spec(str(tmp_path)))
    unit = plan.by_id["role.poet.pos.p0.b0"]
    loop.take([UnitAttempt(unit, plan.requests(unit), 1, 0)])
    reports = reports_of(loop, lambda report: report.held_up_by == "")
    assert [report.held_up_by for report in reports if report.held_up_by is not None] == ["the disk is full.", ""]
    results = [result for report in reports for result in report.results]
    assert [result.unit_id for result in results] == [unit.unit_id]
    assert not any(isinstance(result, Failure) for result in results)
    assert len(engine.calls) == 1


def driven(tmp_path: Path, engine: FakeEngine, require_store: Callable[[], None]) -> Ledger:
    plan = small_plan(small_spec(str(tmp_path)))
    location = open_location(str(tmp_path))
    with acquire(location, 100) as lease:
        begin(location, plan, lease)
        ledger = Ledger(plan, set(), iter(lease.row_blocks), rollouts_per_assignment=100)
        executor = LocalExecutor(loop_of(tmp_path, engine))
        executor.start()
        progress = Progress(Console(file=io.StringIO()))
        drive(ledger, executor, lambda _: None, progress, require_store=require_store)
    return ledger


def test_a_store_that_is_gone_for_good_ends_the_job_and_no_unit_is_made_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retry, "TRIES", 3)
    failing_writes(monkeypatch, times=10**9)
    engine = FakeEngine()

    def require_store() -> None:
        raise FULL

    with pytest.raises(TransientError, match="disk is full"):
        driven(tmp_path, engine, require_store)
    asked = [address for call in engine.calls for address in call]
    assert len(asked) == len(set(asked))


def test_a_store_that_only_a_worker_cannot_write_is_not_the_fault_of_its_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retry, "TRIES", 3)
    failing_writes(monkeypatch, times=3)
    checked: list[int] = []
    ledger = driven(tmp_path, FakeEngine(), lambda: checked.append(1))
    assert checked == [1]
    assert not ledger.failed
    assert sum(ledger.losses.values()) == 1
    assert ledger.num_done == len(ledger.plan.units)


class _HeldUp(LocalExecutor):
    """Two workers, of which one waits for the store."""

    wait_of_one: Wait | None = None
    doing = "working"

    @property
    def views(self) -> list[WorkerView]:
        since = time.time() - 70
        return [
            WorkerView("worker-0", "a", self.doing, (), since, self.wait_of_one),
            WorkerView("worker-1", "a", self.doing, (), since),
        ]

    def wait(self, timeout_s: float) -> list[Answer]:
        del timeout_s
        return []


def test_the_status_has_what_holds_the_job_up_and_no_time_left_meanwhile(tmp_path: Path):
    plan = small_plan(small_spec(str(tmp_path)))
    pool = _HeldUp(loop_of(tmp_path, FakeEngine()))
    pool.wait_of_one = Wait("the disk is full.", 5.0)
    reporter: Any = StatusReporter()
    reporter.attach(open_location(str(tmp_path)), 1)
    ledger = Ledger(plan, set(), iter(range(99)))
    reporter._rates = lambda _: (1.0, 2.0)
    reporter.update(ledger, pool)
    assert reporter.waits == (WaitStatus(who="worker-0", reason="the disk is full.", since=5.0),)
    reporter.write()
    status = read_status(open_location(str(tmp_path)), 1)
    assert status is not None
    assert status.waits == reporter.waits
    assert status.seconds_left is None
    pool.wait_of_one = None
    reporter._next_update = 0.0
    reporter.update(ledger, pool)
    assert reporter.waits == ()
    assert reporter._status.seconds_left is not None


def test_a_job_without_a_node_says_so(tmp_path: Path):
    pool = _HeldUp(loop_of(tmp_path, FakeEngine()))
    pool.doing = "waiting"
    reporter = StatusReporter()
    reporter.update_workers(pool)
    (wait,) = reporter.waits
    assert (wait.who, wait.reason) == ("the job", "no node has room for a worker.")
    assert time.time() - wait.since == pytest.approx(70, abs=5)
    pool.doing = "loading"
    reporter.update_workers(pool)
    assert reporter.waits == ()


def test_a_driver_that_cannot_write_its_status_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise FULL

    reporter = StatusReporter()
    reporter.attach(open_location(str(tmp_path)), 1)
    monkeypatch.setattr("persona_atlas.cluster.run.status_reporter.write_status", refuse)
    reporter.write()
    reporter.write()
    reporter.update_workers(_HeldUp(loop_of(tmp_path, FakeEngine())))
    (wait,) = reporter.waits
    assert (wait.who, wait.reason) == ("the driver", "the disk is full.")
    with pytest.raises(TransientError):
        reporter.require_store()


def test_progress_tells_a_wait_once_and_each_minute_and_when_it_is_over(monkeypatch: pytest.MonkeyPatch):
    shown = io.StringIO()
    progress = Progress(Console(file=shown, width=200))
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    wait = WaitStatus(who="worker-0", reason="the disk is full.", since=time.time() - 5)
    for seconds in (0, 1, 30, 30):
        clock[0] += seconds
        progress.show_waits([wait])
    progress.show_waits([wait.model_copy(update={"reason": "the store is away."})])
    progress.show_waits([])
    progress.show_waits([])
    lines = shown.getvalue().splitlines()
    assert [line.split(": ", 1)[-1] for line in lines[:3]] == ["the disk is full."] * 2 + ["the store is away."]
    assert all(line.startswith("Worker-0 waits since ") for line in lines[:3])
    assert lines[3:] == ["Worker-0 goes on after 5 s."]


@pytest.mark.parametrize(("age_s", "is_shown"), [(1.0, True), (60.0, False)])
def test_status_shows_waits_and_the_pace_only_of_fresh_news(tmp_path: Path, age_s: float, *, is_shown: bool):
    url = str(tmp_path / "run")
    location = open_location(url)
    with acquire(location, 9) as lease:
        begin(location, small_plan(small_spec(url)), lease)
        now = time.time()
        status = RunStatus(
            state=JobState.RUNNING,
            doing="working",
            updated_at=now - age_s,
            started_at=now - 90,
            rollouts_per_second=2.0,
            seconds_left=77.0,
            rollouts_finished=7,
            rollouts_planned=36,
            waits=(WaitStatus(who="worker-0", reason="the disk is full.", since=now - 65),),
        )
        write_status(location, lease.generation, status)
        shown = CliRunner().invoke(cli, ["status", url]).output
    assert "the disk is full." in shown
    assert "0 of 12 units, 7 of 36 rollouts" in shown
    assert ("77 s" in shown) == is_shown
    assert ("no news" in shown) == (not is_shown)
