"""A driver in a process of its own, so that it can be killed: a real job, without Ray and without a model.

It prepares and works the job as the command line does, with the real run loop, ledger, lease, commits, status and
index. Only the model's facts are made up, and the one worker is the process itself, with FakeEngine's numbers.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from persona_atlas.cluster import retry
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.pool.worker_loop import WorkerLoop
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run import prepare
from persona_atlas.cluster.run.backend import Backend, worker_settings
from persona_atlas.cluster.run.job import Outcome, work_job
from persona_atlas.cluster.run.prepare import Job, prepare_job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.status_reporter import StatusReporter
from persona_atlas.jobs.errors import AtlasError
from persona_atlas.jobs.sources.source import RequestSource
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.storage.format.layout import driver_path
from persona_atlas.storage.run import lease
from persona_atlas.workers.engine import CapturedRollout
from rich.console import Console

from crash_points import Step, StepWatch
from fakes import FACTS, FakeEngine
from local_executor import LocalExecutor

# Forked from a process that has loaded all modules and has no threads: a start takes no two seconds of imports.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "persona_atlas.cluster.run.job",
        "persona_atlas.cluster.pool.worker_loop",
        "persona_atlas.storage.verification.verify",
        "pyarrow.dataset",
        "s3fs",
    ]
)


@dataclass(frozen=True)
class Start:
    """Settings of a driver.

    Attributes:
        spec: The job; says where.
        die_at: A step of writing into a directory that it does not survive.
        grow: Whether it may add to the run in its store.
        note_steps: Whether its end lists the steps it made.
        seconds_per_unit: Seconds that the model takes.
        tries: How often it tries what may pass; as often as a job when None.
        lease_s: Seconds that its lease lasts without being renewed; as long as a job's when None.
        rollouts_per_assignment: That fill its worker's batch.
        environment: Environment variables of the process, besides those of AWS.
    """

    spec: JobSpec
    die_at: Step | None = None
    grow: bool = False
    note_steps: bool = False
    seconds_per_unit: float = 0.0
    tries: int | None = None
    lease_s: float | None = None
    rollouts_per_assignment: int = 1
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class End:
    """How a driver ended that was not killed.

    Attributes:
        status: What the command line would exit with.
        error: As ``--json`` prints it; empty when there was none.
        failures: Units given up, with their last error.
        worked: Units this start committed.
        model_was_loaded: Whether it came so far.
        output: What it printed for people.
        steps: Made in the directory.
    """

    status: int
    error: dict[str, str]
    failures: dict[str, str]
    worked: int
    model_was_loaded: bool
    output: str
    steps: tuple[Step, ...]


class Driver:
    """A driver that was started."""

    def __init__(self, start: Start) -> None:
        environment = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "NO_PROXY"))}
        self._end, theirs = _processes.Pipe(duplex=False)
        start = Start(**{**start.__dict__, "environment": environment | start.environment})
        self.process = _processes.Process(target=_run, args=(start, theirs), daemon=True)
        self.process.start()
        theirs.close()

    def strike(self) -> None:
        """Kill it without waiting, because another thread waits for its end."""
        self.process.kill()

    def kill(self) -> None:
        """Kill it and wait until it is gone."""
        self.process.kill()
        self.process.join(30)
        assert self.process.exitcode is not None

    def wait(self, timeout_s: float = 120) -> End | None:
        """Wait until it is gone; None when it was killed."""
        try:
            end = self._end.recv() if self._end.poll(timeout_s) else None
        except EOFError:
            end = None
        self.process.join(timeout_s)
        assert self.process.exitcode is not None, "the driver hangs"
        self._end.close()
        return end


def start_driver(spec: JobSpec, **how: Any) -> Driver:
    """Start a driver; ``how`` are fields of ``Start``."""
    return Driver(Start(spec, **how))


def run_driver(spec: JobSpec, **how: Any) -> End:
    """Run a driver to its own end."""
    end = start_driver(spec, **how).wait()
    assert end is not None, "the driver died"
    return end


def finish(spec: JobSpec, **how: Any) -> End:
    """Give the command again, as a user does after a crash: it must end well."""
    end = run_driver(spec, **how)
    assert (end.status, end.error, end.failures) == (0, {}, {}), f"{end.error} {end.failures}\n{end.output}"
    return end


def work_here(spec: JobSpec, *, grow: bool = False, source: RequestSource | None = None) -> Outcome:
    """Work a job in this process, which takes less time and cannot be killed; errors are raised."""
    driver = _PlainDriver(Start(spec, grow=grow))
    return driver.finish(driver.prepare(source))


def prepare_here(spec: JobSpec, *, grow: bool = False, source: RequestSource | None = None) -> Callable[[], Outcome]:
    """Prepare a job in this process, and return what works it."""
    driver = _PlainDriver(Start(spec, grow=grow))
    return partial(driver.finish, driver.prepare(source))


@dataclass
class _SlowEngine(FakeEngine):
    """Takes its time."""

    seconds_per_call: float = 0.0

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        time.sleep(self.seconds_per_call)
        yield from super().generate(next_request)


def _run(start: Start, send: Connection) -> None:
    os.environ.update(start.environment)
    if start.tries is not None:
        retry.TRIES = start.tries
    if start.lease_s is not None:
        lease.LEASE_SECONDS, lease.RENEW_SECONDS = start.lease_s, start.lease_s / 5
    watch = StepWatch(start.spec.store.url, start.die_at) if start.die_at or start.note_steps else None
    driver = _PlainDriver(start)
    error: dict[str, str] = {}
    outcome: Outcome | None = None
    try:
        outcome = driver.work()
        status = 0 if outcome.is_complete else 1
    except AtlasError as raised:
        status, error = raised.exit_status, raised.as_dict()
    failures = {failure.unit_id: failure.message for failure in outcome.failures} if outcome else {}
    worked = outcome.worked if outcome else 0
    steps = tuple(watch.steps) if watch else ()
    send.send(End(status, error, failures, worked, driver.model_was_loaded, driver.output.getvalue(), steps))


class _PlainDriver:
    def __init__(self, start: Start) -> None:
        self._start = start
        self.output = io.StringIO()
        self._progress = Progress(Console(file=self.output, width=1000))
        self.model_was_loaded = False

    def work(self) -> Outcome:
        return self.finish(self.prepare())

    def prepare(self, source: RequestSource | None = None) -> Job:
        with (
            patch.object(prepare, "find_model", lambda *_: Path("none")),
            patch.object(prepare, "read_facts", lambda _: FACTS),
            # Without a model there is no chat template to check texts against.
            patch.object(prepare, "require_readable", lambda *_: {}),
            patch.object(prepare, "require_same_rules", lambda *_: None),
        ):
            job = prepare_job(self._start.spec, self._progress, source, grow=self._start.grow)
        return replace(job, estimate=replace(job.estimate, rows_per_assignment=self._start.rollouts_per_assignment))

    def finish(self, job: Job) -> Outcome:
        # Not entered: its thread would write the status at moments of its own, and steps would not repeat.
        return work_job(job, self._progress, StatusReporter(), open_backend=self._open_backend)

    @contextmanager
    def _open_backend(self, job: Job, progress: Progress) -> Iterator[Backend]:
        del progress

        def make_executor(held: lease.HeldLease) -> LocalExecutor:
            settings = worker_settings(job, Placement(1, "cpu", 1, 0), driver_path(held.generation))
            return LocalExecutor(WorkerLoop(settings, "local", self._load))

        yield Backend({}, make_executor)

    def _load(self, settings: WorkerSettings, _: Callable[[str], None]) -> FakeEngine:
        self.model_was_loaded = True
        capture = settings.engine.capture
        return _SlowEngine(
            arrays=tuple((hook, pooling) for hook in capture.hook_points for pooling in capture.pooled),
            layers=settings.engine.layers,
            token_layers=settings.engine.token_layers,
            seconds_per_call=self._start.seconds_per_unit,
        )
