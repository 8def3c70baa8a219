"""The driver of a submitted job, run without Ray: its reports, its restarts, and how it is stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from persona_atlas import __version__
from persona_atlas.cluster.retry import Backoff
from persona_atlas.cluster.submission import driver_actor
from persona_atlas.cluster.submission.driver_actor import Driver, DriverReport
from persona_atlas.cluster.submission.submitted_job import SubmittedJob
from persona_atlas.jobs.errors import AtlasError, StoreError, TransientError

from fakes import small_spec


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[AtlasError], Driver]]:
    """Start a driver whose job always fails with an error; its process would exit once the test has ended."""
    exits = threading.Event()
    drivers: list[Driver] = []
    monkeypatch.setattr(driver_actor, "_RESTARTS", Backoff(tries=3, first_wait_s=0.01, longest_wait_s=0.01))
    monkeypatch.setattr(driver_actor, "_REPLY_S", 0.0)

    def start_failing(error: AtlasError) -> Driver:
        def prepare(*_: object) -> None:
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


def test_a_transient_error_restarts_the_job_until_it_has_failed_too_often(start: Callable[[AtlasError], Driver]):
    report = report_of_end(start(TransientError("the bucket is away.", code="store_failed")))
    assert report.exit_status == 1
    assert report.error == {"error": "the bucket is away.", "code": "store_failed"}
    assert list(report.lines) == ["the bucket is away. Trying again in 0.01 s."] * 2


def test_another_error_ends_the_job_at_once(start: Callable[[AtlasError], Driver]):
    report = report_of_end(start(StoreError("it is damaged.", code="bad_object")))
    assert (report.exit_status, report.lines) == (1, ())


def test_a_report_has_the_lines_since_the_previous_one_of_the_same_start(start: Callable[[AtlasError], Driver]):
    driver = start(TransientError("the bucket is away.", code="store_failed"))
    whole = report_of_end(driver)
    assert driver.report(whole.start_id, 1).lines == whole.lines[1:]
    assert driver.report(whole.start_id, whole.next_line).lines == ()
    assert driver.report("another start", whole.next_line).lines == whole.lines


def test_a_stop_before_a_restart_cancels_the_job(
    start: Callable[[AtlasError], Driver], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(driver_actor, "_RESTARTS", Backoff(tries=3, first_wait_s=100, longest_wait_s=100))
    driver = start(TransientError("the bucket is away.", code="store_failed"))
    driver.stop()
    report = report_of_end(driver)
    assert report.error is not None
    assert report.error["code"] == "cancelled"
