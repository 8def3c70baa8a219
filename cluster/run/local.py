"""Run a job in this very process: one replica, no Ray, no other processes. What a notebook wants.

The model runs in a thread of its own while the caller's thread commits, so Ctrl-C reaches the caller at once. The model
thread ends when its engine next asks for a request: before the next forward pass, or, where the batch is full, when one
of the responses under way ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ...jobs.errors import UnitError
from ...jobs.rollouts import Canary
from ...jobs.scheduling.ledger import row_blocks_needed
from ...jobs.units import RolloutRequest, UnitAttempt
from ...storage.format.layout import driver_path
from ...storage.run.index_keeper import refresh_index
from ...storage.run.lease import acquire, refuse_if_driven
from ...workers.chat.spans import load_renderer
from ...workers.engine import CapturedRollout, CapturedText, Engine, TokenisedText
from ...workers.models.memory import require_memory
from ..pool.executor import Answer, WorkerView
from ..pool.session import local_resources, place
from ..pool.worker_load import WorkerLoad
from ..pool.worker_task import UnitTask, WorkerSettings, load_engine
from .job import Job, Outcome, refuse_without_server, work_units, worker_settings
from .progress import Progress
from .status_reporter import StatusReporter

_NAME = "this-process"


def work_in_process(job: Job, progress: Progress, reporter: StatusReporter) -> Outcome:
    """Do what is missing of a job in this process.

    Args:
        job: Prepared; its ``placement.replicas`` is not read, for there is one.
        progress: Prints how far it is.
        reporter: Writes the run's status.

    Returns:
        How it ended; units that failed three times are in it.

    Raises:
        InputError: No chat template, no room in memory, or another driver works the run.
        TransientError: The store failed for good.
        StoreError: Another driver took the run.
    """
    if not job.num_missing:
        if job.record is not None:
            refresh_index(job.location, job.record)
        return Outcome(len(job.plan.units), len(job.plan.units), 0, ())
    spec = job.plan.spec
    renderer = load_renderer(job.model_directory).renderer
    placement = place(spec.placement.model_copy(update={"replicas": 1}), local_resources())
    if placement.device == "cpu":
        require_memory(job.estimate.machine_bytes, 1, "cpu")
    refuse_without_server(spec, renderer)
    refuse_if_driven(job.location)
    with acquire(job.location, row_blocks_needed(job.plan, job.committed)) as lease:
        reporter.open(job.location, lease.generation)
        progress.say(f"Loading the model in this process: {placement.device}, {placement.threads} thread(s).")
        executor = InProcessExecutor(worker_settings(job, placement, driver_path(lease.generation)))
        return work_units(job, lease, executor, renderer.describe(), progress, reporter)


class InProcessExecutor:
    """A pool of one worker, which is this process.

    Args:
        settings: What the worker loads and where it writes.
        load: Makes the engine.
    """

    def __init__(self, settings: WorkerSettings, load: Callable[[WorkerSettings], Engine] = load_engine) -> None:
        self._stopped = threading.Event()
        self._task = UnitTask(settings, _NAME, load=lambda told: _StoppableEngine(load(told), self._stopped))
        self._load = WorkerLoad()
        self._is_ready = False
        self._since = time.time()

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Load the model."""
        tick()
        self._task.prepare()
        self._is_ready = True
        self._since = time.time()

    @property
    def ready(self) -> list[str]:
        """This process, once its model is loaded."""
        return [_NAME] if self._is_ready else []

    @property
    def idle(self) -> list[str]:
        """This process, while it holds no unit."""
        return [_NAME] if self._is_ready and self._load.is_empty else []

    @property
    def requesting(self) -> list[str]:
        """This process, when its running batch has room."""
        return [_NAME] if self._load.takes_more else []

    @property
    def num_workers(self) -> int:
        """One."""
        return 1

    @property
    def views(self) -> list[WorkerView]:
        """This process, and the units that it holds."""
        doing = "loading" if not self._is_ready else "idle" if self._load.is_empty else "working"
        units = tuple(attempt.unit.unit_id for attempt in self._load.attempts)
        return [WorkerView(_NAME, _NAME, doing, units, self._since)]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """None: there is no other node."""
        return {}

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Give units to the model thread; returns at once."""
        del worker
        self._since = time.time()
        self._load.take(attempts)
        self._task.take(attempts)

    def wait(self, timeout_s: float) -> list[Answer]:
        """Wait for the next report; without a unit to report of, sleep instead."""
        if self._load.is_empty:
            time.sleep(timeout_s)
            return []
        # Without a timeout, because a report always comes while the worker holds a unit. A thread that waited here in
        # the caller's place would keep the model in memory after the job.
        report = self._task.said()
        if report.requesting is not None:
            self._load.note_request(report.requesting)
        results = tuple(result for result in report.results if self._load.answered(result.unit_id) is not None)
        self._since = time.time()
        return [Answer(_NAME, results)] if results else []

    def close(self) -> None:
        """Tell the model thread to stop; what is in flight is lost."""
        self._stopped.set()


class _StoppableEngine:
    """An engine that refuses every call once the job is stopped, so that the model does not run on in vain."""

    def __init__(self, engine: Engine, stopped: threading.Event) -> None:
        self._engine = engine
        self._stopped = stopped
        self.layers = engine.layers
        self.canary_limit = engine.canary_limit

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate until the job is stopped; see ``Engine.generate``."""

        def next_unless_stopped() -> RolloutRequest | None:
            self._check()
            return next_request()

        self._check()
        yield from self._engine.generate(next_unless_stopped)

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        """Read texts, unless the job is stopped; see ``Engine.capture``."""
        self._check()
        return self._engine.capture(texts)

    def canary(self, captured: CapturedRollout) -> Canary | None:
        """Recompute a rollout, unless the job is stopped; see ``Engine.canary``."""
        self._check()
        return self._engine.canary(captured)

    def _check(self) -> None:
        if self._stopped.is_set():
            raise UnitError("the job was stopped.", code="stopped")
