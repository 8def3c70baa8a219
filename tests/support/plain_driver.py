"""A driver without Ray and without a model, in a process of its own that a test can kill.

It takes the same steps as ``cluster/run/job.py``, with the real run loop, ledger, lease, commits and index. Its only
worker is the process itself, with a FakeEngine.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from persona_atlas.cluster import retry
from persona_atlas.cluster.pool.executor import LocalExecutor
from persona_atlas.cluster.pool.worker_task import UnitTask, WorkerSettings
from persona_atlas.cluster.retry import with_retries
from persona_atlas.cluster.run.drive import drive
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.errors import AtlasError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.ledger import Ledger, row_blocks_needed
from persona_atlas.jobs.spec import JobSpec
from persona_atlas.jobs.units import RolloutRequest
from persona_atlas.storage.format.planned_units import encode_units
from persona_atlas.storage.format.records import Manifest, RunRecord
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run import lease
from persona_atlas.storage.run.commits import commit_unit, committed_units
from persona_atlas.storage.run.index_keeper import IndexKeeper, refresh_index
from persona_atlas.storage.run.lease import HeldLease, acquire, refuse_if_driven
from persona_atlas.storage.run.run_store import begin_run, check_same_run, read_run_record, reserve_rows
from persona_atlas.workers.engine import CapturedRollout, EngineSettings
from rich.console import Console

from crash_points import Step, StepWatch
from fakes import FakeEngine, small_plan

# Forked from a process that has loaded all modules and has no threads: a start takes no two seconds of imports.
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(
    [
        "persona_atlas.cluster.run.drive",
        "persona_atlas.cluster.pool.worker_task",
        "persona_atlas.storage.verification.verify",
        "pyarrow.dataset",
        "s3fs",
    ]
)


@dataclass(frozen=True)
class Start:
    """Settings of a driver.

    Attributes:
        spec: The job.
        die_at: Step of writing into a directory before which it is killed; None: none.
        note_steps: Whether it reports the steps it made.
        seconds_per_unit: Seconds that each call of the engine takes.
        tries: Tries of retryable calls; None: as many as in a job.
        lease_s: Seconds after which its lease expires; None: as in a job.
        rollouts_per_assignment: Rollouts that are assigned at a time.
        environment: More environment variables of its process.
    """

    spec: JobSpec
    die_at: Step | None = None
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
        status: Exit status, as of the command line.
        error: The error as ``--json`` prints it; empty if there was none.
        failures: Last error of each unit that was given up.
        worked: Number of units that this start committed.
        model_was_loaded: Whether it loaded the model.
        said: Lines of progress.
        steps: Steps of writing into the directory.
    """

    status: int
    error: dict[str, str]
    failures: dict[str, str]
    worked: int
    model_was_loaded: bool
    said: str
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


def finish(spec: JobSpec) -> End:
    """Give the command again, as a user does after a crash: it must end well."""
    end = run_driver(spec)
    assert (end.status, end.error, end.failures) == (0, {}, {}), f"{end.error} {end.failures}\n{end.said}"
    return end


@dataclass
class _SlowEngine(FakeEngine):
    """Takes its time."""

    seconds_per_call: float = 0.0

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        time.sleep(self.seconds_per_call)
        yield from super().generate(next_request)


def _run(start: Start, tell: Connection) -> None:
    os.environ.update(start.environment)
    if start.tries is not None:
        retry.TRIES = start.tries
    if start.lease_s is not None:
        lease.LEASE_SECONDS, lease.RENEW_SECONDS = start.lease_s, start.lease_s / 5
    spec = start.spec
    watch = StepWatch(spec.store.url, start.die_at) if start.die_at or start.note_steps else None
    plan = small_plan(spec)
    arrays = tuple((hook, pooling) for hook in spec.capture.hook_points for pooling in spec.capture.poolings)
    engine = _SlowEngine(arrays=arrays, layers=plan.layers, seconds_per_call=start.seconds_per_unit)
    job = _Job(plan, engine, start.rollouts_per_assignment)
    error: dict[str, str] = {}
    try:
        status = job.work()
    except AtlasError as raised:
        status, error = raised.exit_status, raised.as_dict()
    failures = {unit_id: failure.message for unit_id, failure in job.ledger.failed.items()} if job.ledger else {}
    worked = len(job.ledger.committed) - job.committed_before if job.ledger else 0
    steps = tuple(watch.steps) if watch else ()
    tell.send(End(status, error, failures, worked, job.model_was_loaded, job.said.getvalue(), steps))


class _Job:
    def __init__(self, plan: Plan, engine: FakeEngine, rollouts_per_assignment: int) -> None:
        self._plan = plan
        self._engine = engine
        self._rollouts_per_assignment = rollouts_per_assignment
        self.said = io.StringIO()
        self._progress = Progress(Console(file=self.said, width=1000))
        self.ledger: Ledger | None = None
        self.committed_before = 0
        self.model_was_loaded = False

    def work(self) -> int:
        """The steps of ``prepare_job`` and ``work_job``."""
        store = self._plan.spec.store
        location = open_location(store.url, store.endpoint_url)
        record = read_run_record(location)
        if record is not None:
            check_same_run(record, self._plan, location.url)
        committed = committed_units(location) if record is not None else set[str]()
        if record is not None and not set(self._plan.by_id) - committed:
            refresh_index(location, record)
            return 0
        refuse_if_driven(location)
        with acquire(location, row_blocks_needed(self._plan, committed)) as held:
            return self._work_under_lease(location, held, record)

    def _work_under_lease(self, location: Location, held: HeldLease, record: RunRecord | None) -> int:
        executor = LocalExecutor(UnitTask(self._worker_settings(location), "local", load=self._load))
        say = self._progress.say
        try:
            executor.start()
            units = encode_units(self._plan.units)
            record = record or RunRecord.of(
                self._plan,
                units_sha256=sha256(units).hexdigest(),
                rendering={},
                versions={"fake": "1"},
                created_at="2026-01-01T00:00:00+00:00",
            )
            with_retries(lambda: begin_run(location, record, units), say)
            with_retries(lambda: reserve_rows(location, record, held.row_blocks.stop), say)
            committed = with_retries(lambda: committed_units(location), say)
            self.committed_before = len(committed)
            ledger = Ledger(self._plan, committed, iter(held.row_blocks), self._rollouts_per_assignment)
            self.ledger = ledger
            with IndexKeeper(location, record, say) as keeper:

                def commit(manifest: Manifest) -> None:
                    keeper.add(commit_unit(location, held, manifest))

                drive(ledger, executor, commit, self._progress)
        finally:
            executor.close()
        return 0 if set(self._plan.by_id) <= ledger.committed else 1

    def _load(self, _settings: WorkerSettings) -> FakeEngine:
        self.model_was_loaded = True
        return self._engine

    def _worker_settings(self, location: Location) -> WorkerSettings:
        spec = self._plan.spec
        unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, self._plan.layers, spec.sampling, spec.capture)
        return WorkerSettings(
            engine=unused,
            needed_bytes=0,
            store_url=location.url,
            endpoint_url=location.endpoint_url,
            rows_per_block=self._plan.rows_per_block,
            mantissa_bits=spec.store.mantissa_bits,
        )
