"""The driver of a submitted job, run without Ray: its reports, its restarts, and how it is stopped."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from persona_atlas import __version__
from persona_atlas.cluster.retry import Backoff
from persona_atlas.cluster.submission import driver_actor
from persona_atlas.cluster.submission.driver_actor import Driver, DriverReport
from persona_atlas.cluster.submission.submitted_job import CATALOG_FOLDER, SubmittedJob
from persona_atlas.jobs.errors import InputError, StoreError, TransientError

from fakes import small_spec


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Exception], Driver]]:
    """Start a driver whose job always fails with an error; its process would exit once the test has ended."""
    exits = threading.Event()
    drivers: list[Driver] = []
    monkeypatch.setattr(driver_actor, "_RESTARTS", Backoff(tries=3, first_wait_s=0.01, longest_wait_s=0.01))
    monkeypatch.setattr(driver_actor, "_REPLY_S", 0.0)

    def start_failing(error: Exception) -> Driver:
        def prepare(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(driver_actor, "prepare_job", prepare)
        job = SubmittedJob(job_id="job-1", spec=small_spec(), version=__version__, python="3.11")
        drivers.append(Driver(job, exits.set))
        return drivers[-1]

    yield start_failing
    for driver in drivers:
        driver.report("", 0)
    assert exits.wait(20), "the driver did not exit after its end was reported"


def report_of_end(driver: Driver) -> DriverReport:
    deadline = time.monotonic() + 20
    while (report := driver.report("", 0)).exit_status is None:
        assert time.monotonic() < deadline, "the job did not end"
        time.sleep(0.01)
    return report


def test_a_transient_error_restarts_the_job_until_it_has_failed_too_often(start: Callable[[Exception], Driver]):
    report = report_of_end(start(TransientError("the bucket is away.", code="store_failed")))
    assert report.exit_status == 1
    assert report.error == {"error": "the bucket is away.", "code": "store_failed"}
    assert list(report.lines) == ["the bucket is away. Trying again in 0.01 s."] * 2


def test_another_error_ends_the_job_at_once(start: Callable[[Exception], Driver]):
    report = report_of_end(start(StoreError("it is damaged.", code="bad_object")))
    assert (report.exit_status, report.lines) == (1, ())


def test_a_report_has_the_lines_since_the_previous_one_of_the_same_start(start: Callable[[Exception], Driver]):
    driver = start(TransientError("the bucket is away.", code="store_failed"))
    whole = report_of_end(driver)
    assert driver.report(whole.start_id, 1).lines == whole.lines[1:]
    assert driver.report(whole.start_id, whole.next_line).lines == ()
    assert driver.report("another start", whole.next_line).lines == whole.lines


def test_a_stop_before_a_restart_cancels_the_job(start: Callable[[Exception], Driver], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver_actor, "_RESTARTS", Backoff(tries=3, first_wait_s=100, longest_wait_s=100))
    driver = start(TransientError("the bucket is away.", code="store_failed"))
    driver.stop()
    report = report_of_end(driver)
    assert report.error is not None
    assert report.error["code"] == "cancelled"


def test_a_fault_of_the_machine_restarts_the_job_even_where_it_looks_like_wrong_input(
    start: Callable[[Exception], Driver],
):
    gone = FileNotFoundError(2, "No such file or directory")
    blamed = InputError("the configuration is unknown.", code="unknown_model", field="model.source")
    blamed.__cause__ = gone
    for error in (gone, blamed):
        report = report_of_end(start(error))
        assert report.exit_status == 1
        assert report.error is not None
        assert report.error["code"] == "machine_fault"
        assert len(report.lines) == 2, "it was restarted"


def test_a_driver_leaves_its_directory_and_finds_its_files_where_they_were(tmp_path: Path):
    program = """
import os, shutil, sys
from persona_atlas.cluster.submission.driver_actor import leave_working_directory
if sys.argv[1] == "gone":
    shutil.rmtree(os.getcwd())
print(leave_working_directory())
print(os.getcwd())
"""
    for state in ("there", "gone"):
        folder = tmp_path / state
        folder.mkdir()
        env = os.environ | {"PWD": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program, state]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(folder), "/"]


def test_the_files_of_a_job_are_waited_for_and_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver_actor, "_RESTARTS", Backoff(tries=500, first_wait_s=0.01, longest_wait_s=0.01))
    monkeypatch.setattr(driver_actor, "_REPLY_S", 0.0)
    catalogs: list[str | None] = []
    tries: list[object] = []

    def load(_: object, catalog: str | None) -> object:
        catalogs.append(catalog)
        return object()

    def prepare(_spec: object, _progress: object, source: object, _template: object, **__: object) -> None:
        tries.append(source)
        if len(tries) == 1:
            (tmp_path / CATALOG_FOLDER).rmdir()
            raise TransientError("the bucket is away.", code="store_failed")
        raise StoreError("it is damaged.", code="bad_object")

    monkeypatch.setattr(driver_actor, "open_source", load)
    monkeypatch.setattr(driver_actor, "prepare_job", prepare)
    job = SubmittedJob(job_id="job-1", spec=small_spec(), version=__version__, python="3.11", ships_catalog=True)
    driver = Driver(job, lambda: None, tmp_path)
    while not driver.report("", 0).lines:
        time.sleep(0.01)
    assert "is not on this node yet" in driver.report("", 0).lines[0]
    (tmp_path / CATALOG_FOLDER).mkdir()
    assert report_of_end(driver).error == {"error": "it is damaged.", "code": "bad_object"}
    assert catalogs == [str(tmp_path / CATALOG_FOLDER)]
    assert len(tries) == 2
