"""The driver of a job on a cluster: a detached Ray actor that Ray starts again elsewhere when its node dies.

It begins as it is made, and goes on from the commits when it is made again. Whoever follows it asks for its news;
nobody has to. Its lease on the run carries the job's id, so that it takes its own run over at once.
"""

from __future__ import annotations

import io
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any, cast

from rich.console import Console

from ...jobs.errors import AtlasError
from ...jobs.scheduling.job_state import JobState
from ..run.conclude import conclude
from ..run.job import prepare_job, work_job
from ..run.progress import Progress
from ..run.status_reporter import JobStoppedError, StatusReporter
from .submitted_job import CATALOG_FOLDER, NAMESPACE, SubmittedJob, driver_actor_name

_STARTS = 20
_LONGEST_PAUSE_S = 60.0
"""The store or the cluster may be away for a while: the job is begun again so many times, from what is committed."""

_LINGER_S = 120.0
"""How long a driver that ended waits to be asked how."""

_STOP_TIMEOUT_S = 6.0
"""What a driver has to end in good order, before it is ended by force."""


@dataclass(frozen=True)
class DriverReport:
    """What a driver has said since it was asked last.

    Attributes:
        incarnation: Another one when Ray started the driver again; its lines are counted from 0.
        lines: New lines.
        next_line: What to ask for next.
        exit_status: As the command line's, when the job has ended.
        error: The error that ended it, as ``AtlasError.as_dict`` gives it.
    """

    incarnation: str
    lines: tuple[str, ...]
    next_line: int
    exit_status: int | None = None
    error: dict[str, str] | None = None


class Driver:
    """Works a job to its end in a thread of its own.

    Args:
        job: The job.
        leave: Ends this process for good; called when nothing is left to do.
    """

    def __init__(self, job: SubmittedJob, leave: Callable[[], None] | None = None) -> None:
        self._job = job
        self._leave = leave or _leave_ray(job.job_id)
        self._incarnation = uuid.uuid4().hex
        self._lines: list[str] = []
        self._exit_status: int | None = None
        self._error: dict[str, str] | None = None
        self._reporter = StatusReporter(job.job_id)
        self._was_heard = threading.Event()
        self._progress = Progress(Console(file=cast(IO[str], _Lines(self._lines)), width=200))
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
        self._thread.start()

    def news(self, incarnation: str, next_line: int) -> DriverReport:
        """Say what is new.

        Args:
            incarnation: Of the last news; empty at first.
            next_line: Of the last news; 0 at first.
        """
        start = next_line if incarnation == self._incarnation else 0
        # In this order: what was said before the end is among the lines.
        exit_status = self._exit_status
        lines = tuple(self._lines[start:])
        if exit_status is not None:
            self._was_heard.set()
        return DriverReport(self._incarnation, lines, start + len(lines), exit_status, self._error)

    def stop(self) -> None:
        """End the job: the workers go at once, what is committed stays."""
        self._reporter.stop()
        threading.Thread(target=self._force_stop, name="insist", daemon=True).start()

    def _force_stop(self) -> None:
        self._thread.join(_STOP_TIMEOUT_S)
        # Something hangs that does not ask whether it is to stop; the workers go with their owner.
        self._reporter.end(JobState.CANCELLED, "cancelled.")
        self._reporter.tell()
        self._leave()

    def _run(self) -> None:
        try:
            self._exit_status = self._work_patiently()
        except AtlasError as error:
            self._error, self._exit_status = error.as_dict(), error.exit_status
        except BaseException as error:  # noqa: BLE001 - said to whoever follows; there is nobody else to catch it
            self._progress.say(traceback.format_exc())
            self._error, self._exit_status = {"error": f"unexpected: {error!r}", "code": "internal"}, 1
        self._was_heard.wait(_LINGER_S)
        if not self._reporter.is_stopped:
            # A last answer is on its way.
            time.sleep(1.0)
        self._leave()

    def _work_patiently(self) -> int:
        with self._reporter:
            for start in range(1, _STARTS + 1):
                try:
                    return self._work()
                except JobStoppedError:
                    raise
                except AtlasError as error:
                    if start == _STARTS or not _may_pass(error):
                        raise
                    pause = min(2.0**start, _LONGEST_PAUSE_S)
                    self._progress.say(f"{error} Beginning again from what is committed in {pause:.0f} s.")
                    self._reporter.wait(pause)
        raise AssertionError

    def _work(self) -> int:
        catalog = CATALOG_FOLDER if self._job.ships_catalog else None
        job = prepare_job(self._job.spec, self._progress, catalog)
        self._progress.say(f"{len(job.committed)} of {len(job.plan.units)} units are committed.")
        outcome = work_job(job, self._progress, self._reporter, address="auto")
        conclusion = conclude(job, self._progress, self._reporter)
        for failure in outcome.failures:
            self._progress.say(f"Unit {failure.unit_id} failed for good (attempt {failure.attempt}): {failure.message}")
        self._progress.say(f"{outcome.done} of {outcome.planned} units are committed in {job.location.url}.")
        if conclusion.report_place is not None:
            self._progress.say(f"Report: {conclusion.report_place}")
        if outcome.is_complete:
            self._reporter.end(JobState.SUCCEEDED)
            return 0
        self._reporter.end(JobState.FAILED, f"{len(outcome.failures)} units were given up.")
        return 1


def _may_pass(error: AtlasError) -> bool:
    return error.retryable


class _Lines(io.TextIOBase):
    """A stream that keeps whole lines."""

    def __init__(self, lines: list[str]) -> None:
        self._kept = lines
        self._part = ""

    def write(self, text: str) -> int:
        *whole, self._part = (self._part + text).split("\n")
        self._kept.extend(whole)
        return len(text)


def _leave_ray(job_id: str) -> Callable[[], None]:
    def leave() -> None:
        import ray

        # A detached actor that ends in any other way is started again.
        myself: Any = ray.get_actor(driver_actor_name(job_id), namespace=NAMESPACE)
        ray.kill(myself, no_restart=True)

    return leave
