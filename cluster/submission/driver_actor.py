"""The driver of a submitted job: a detached Ray actor, which Ray restarts on another node when its node dies.

The job starts with the actor's constructor; after a restart it continues from the committed units. The entrypoint polls
``report`` to print the log, and the job does not depend on being polled. The lease on the run carries the job's id, so
that a restarted driver takes over its own lease at once instead of waiting for it to expire.
"""

from __future__ import annotations

import io
import os
import threading
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

from rich.console import Console

from ...jobs.errors import AtlasError, TransientError
from ...jobs.machine_faults import refuse_machine_fault
from ...jobs.redaction import without_secrets
from ...jobs.scheduling.job_state import JobState
from ...jobs.sources.source import RequestSource
from ...jobs.wording import count_of
from ..retry import Backoff, with_retries
from ..run.backend import open_ray_backend
from ..run.conclude import Conclusion, conclude
from ..run.job import Outcome, worked_job
from ..run.open_source import open_source
from ..run.prepare import Job, prepare_job
from ..run.progress import Progress
from ..run.status_reporter import StatusReporter
from .submitted_job import CATALOG_FOLDER, NAMESPACE, SubmittedJob, driver_actor_name

_RESTARTS = Backoff(tries=20, first_wait_s=2.0, longest_wait_s=60.0)
"""Restarts of the whole job after a transient error, each from the committed units. Together they bridge a quarter of
an hour in which the store or the cluster is down, in addition to the retries within the job."""

_EXIT_DELAY_S = 120.0
"""How long an ended driver stays, so that the entrypoint can fetch its exit status."""

_REPLY_S = 1.0
"""Time for Ray to deliver a pending reply before the process exits."""

_STOP_TIMEOUT_S = 6.0
"""How long a stopped job may take to end by itself before its process is killed."""


@dataclass(frozen=True)
class DriverReport:
    """What a driver has logged since the previous report, and how it ended.

    Attributes:
        start_id: Random id of this start of the actor; another one after Ray has restarted it.
        lines: Log lines since the previous report of the same start.
        next_line: Number of lines logged by this start so far; pass it to the next call.
        exit_status: Exit status of the job, as of the command line; None while it runs.
        error: The error that ended the job, in the shape of ``AtlasError.as_dict``; None without one.
    """

    start_id: str
    lines: tuple[str, ...]
    next_line: int
    exit_status: int | None = None
    error: dict[str, str] | None = None


class Driver:
    """Runs a job to its end, in a thread.

    Args:
        job: The job.
        exit_process: Ends this process without a restart; called when the job is over. None: kills the Ray actor.
        folder: The job's working directory; None: the current directory.
    """

    def __init__(
        self, job: SubmittedJob, exit_process: Callable[[], None] | None = None, folder: Path | None = None
    ) -> None:
        self._job = job
        self._folder = folder or Path()
        self._source: RequestSource | None = None
        self._exit_process = exit_process or _kill_own_actor(job.job_id)
        self._start_id = uuid.uuid4().hex
        self._lines: list[str] = []
        self._exit_status: int | None = None
        self._error: dict[str, str] | None = None
        self._reporter = StatusReporter(job.job_id)
        self._end_was_reported = threading.Event()
        self._progress = Progress(Console(file=cast(IO[str], _LineCollector(self._lines)), width=200))
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
        self._thread.start()

    def report(self, start_id: str, next_line: int) -> DriverReport:
        """Report new log lines, and the exit status once the job has ended.

        Args:
            start_id: ``start_id`` of the caller's previous report; empty for all lines.
            next_line: ``next_line`` of the caller's previous report.
        """
        start = next_line if start_id == self._start_id else 0
        # Read before the lines: a status that is set guarantees that every line of the job is among them.
        exit_status = self._exit_status
        lines = tuple(self._lines[start:])
        if exit_status is not None:
            self._end_was_reported.set()
        return DriverReport(self._start_id, lines, start + len(lines), exit_status, self._error)

    def stop(self) -> None:
        """Cancel the job and return at once: its workers are stopped, committed units are kept."""
        self._reporter.stop()
        threading.Thread(target=self._exit_after_timeout, name="stop-timeout", daemon=True).start()

    def _exit_after_timeout(self) -> None:
        self._thread.join(_STOP_TIMEOUT_S)
        # The job may hang in a call that does not check for a stop. Workers die with the actor that owns them.
        self._reporter.end(JobState.CANCELLED, "cancelled.")
        self._reporter.write()
        self._exit_process()

    def _run(self) -> None:
        try:
            self._exit_status = self._work_with_restarts()
        except AtlasError as error:
            self._error, self._exit_status = error.as_dict(), error.exit_status
        except BaseException as error:  # noqa: BLE001 - nothing above this thread could report it
            self._progress.say(traceback.format_exc())
            self._error, self._exit_status = (
                {
                    "error": without_secrets(f"unexpected: {error!r}"),
                    "code": "internal",
                },
                1,
            )
        self._end_was_reported.wait(_EXIT_DELAY_S)
        if not self._reporter.is_stopped:
            time.sleep(_REPLY_S)
        self._exit_process()

    def _work_with_restarts(self) -> int:
        with self._reporter:
            try:
                return with_retries(self._work, self._progress.say, self._reporter.stop_event, backoff=_RESTARTS)
            except AtlasError as error:
                # A stop ends the wait before a restart, and then the job was cancelled rather than failed.
                if error.retryable:
                    self._reporter.raise_if_stopped()
                raise

    def _work(self) -> int:
        try:
            return self._work_once()
        except Exception as error:
            # Also one that was taken for wrong input: the job was planned before, from the same files.
            refuse_machine_fault(error)
            raise

    def _work_once(self) -> int:
        source = self._load_source()
        job = prepare_job(
            self._job.spec,
            self._progress,
            source,
            self._job.chat_template,
            grow=self._job.grow,
            edits=self._job.run_edits,
        )
        if job.growth is not None:
            self._progress.say(str(job.growth))
        self._progress.say(f"{len(job.committed)} of {len(job.plan.units)} units are committed.")
        with worked_job(job, self._progress, self._reporter, partial(open_ray_backend, address="auto")) as outcome:
            conclusion = conclude(job, self._progress, self._reporter)
            self._say_outcome(job, outcome, conclusion)
            if outcome.is_complete:
                self._reporter.end(JobState.SUCCEEDED)
            else:
                self._reporter.end(
                    JobState.FAILED, f"{count_of(len(outcome.failures), 'unit')} failed and were given up."
                )
            self._reporter.write()
        return 0 if outcome.is_complete else 1

    def _load_source(self) -> RequestSource:
        """Load the source once; a job that is restarted does not read its files again."""
        if self._source is None:
            catalog = self._folder / CATALOG_FOLDER if self._job.ships_catalog else None
            if catalog is not None and not catalog.is_dir():
                raise TransientError(
                    f"{catalog}, which was sent with the job, is not on this node yet.", code="machine_fault"
                )
            self._source = open_source(self._job.spec, None if catalog is None else str(catalog))
        return self._source

    def _say_outcome(self, job: Job, outcome: Outcome, conclusion: Conclusion) -> None:
        for failure in outcome.failures:
            self._progress.say(f"Unit {failure.unit_id} is given up (attempt {failure.attempt}): {failure.message}")
        self._progress.say(f"{outcome.done} of {outcome.planned} units are committed in {job.location.url}.")
        if conclusion.report_place is not None:
            self._progress.say(f"Report: {conclusion.report_place}")


class DriverActor(Driver):
    """The driver in a process of its own, which does not depend on the directory that it was started in.

    Ray removes a job's working directory, and unpacks it again, when a node is started again on the same machine.

    Args:
        job: The job.
    """

    def __init__(self, job: SubmittedJob) -> None:
        super().__init__(job, folder=leave_working_directory())


def leave_working_directory() -> Path:
    """Make the root of the file system the current directory, for it is always there.

    Returns:
        The absolute path of the directory that was the current one; it may be gone.
    """
    try:
        folder = Path.cwd()
    except FileNotFoundError:
        # The shell that started this process in its working directory has noted it.
        folder = Path(os.environ.get("PWD", "/"))
    os.chdir("/")
    return folder


class _LineCollector(io.TextIOBase):
    """A text stream that appends each finished line to a list."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = lines
        self._unfinished = ""

    def write(self, text: str) -> int:
        *finished, self._unfinished = (self._unfinished + text).split("\n")
        self._lines.extend(finished)
        return len(text)


def _kill_own_actor(job_id: str) -> Callable[[], None]:
    def kill() -> None:
        import ray

        # If the process ended in any other way, Ray would restart the detached actor.
        myself: Any = ray.get_actor(driver_actor_name(job_id), namespace=NAMESPACE)
        ray.kill(myself, no_restart=True)

    return kill
