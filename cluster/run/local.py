"""Run a job in this process: one replica, without Ray and without other processes, as in a notebook.

The model runs in a separate thread while the caller's thread commits, so Ctrl-C interrupts the caller at once. The
model's thread ends when its engine next pulls a request: before the next forward pass or, if the batch is full, when
the next response ends.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ...jobs.errors import EngineDied, UnitError
from ...jobs.scheduling.worker_load import WorkerLoad
from ...jobs.wording import count_of
from ...jobs.work.units import RolloutRequest, UnitAttempt
from ...storage.format.layout import driver_path
from ...storage.run.lease import HeldLease
from ...workers.chat.spans import load_renderer
from ...workers.engine import CapturedRollout, Reader, Responder
from ..pool.assemble import load_engine
from ..pool.executor import Answer, Wait, WorkerView
from ..pool.placement import place
from ..pool.session import local_resources
from ..pool.vllm_nodes import vllm_here
from ..pool.worker_loop import Load, WorkerLoop
from ..pool.worker_settings import WorkerSettings
from .backend import Backend, describe_server, rendering_of, worker_settings
from .engine_choice import ENGINE_NAMES, engine_for
from .held_weights import described_weights, weights_here
from .prepare import Job
from .progress import Progress

_NAME = "this-process"


@contextmanager
def open_local_backend(job: Job, progress: Progress) -> Iterator[Backend]:
    """Make this process the only worker of a job.

    Args:
        job: The prepared job; its ``placement.replicas`` is ignored.
        progress: Prints a line before the model is loaded.

    Yields:
        A backend with this process as its only worker.

    Raises:
        InputError: There is no chat template or not enough memory, no engine can run the job here, or the server that
            generates does not serve the model.
    """
    spec = job.plan.spec
    renderer = load_renderer(job.model_directory, job.chat_template).renderer
    placement = place(spec.placement.model_copy(update={"replicas": 1}), local_resources())
    engine = engine_for(job.plan, placement, lambda: vllm_here(placement), progress)
    weights = weights_here(job, engine, placement)
    rendering = rendering_of(job, renderer) | describe_server(spec, renderer, is_checked=True)

    def make_executor(lease: HeldLease) -> InProcessExecutor:
        progress.say(
            f"Loading the model in this process: {placement.device}, {count_of(placement.threads, 'thread')}, "
            f"{ENGINE_NAMES[engine]}{described_weights(job, weights)}."
        )
        return InProcessExecutor(worker_settings(job, placement, driver_path(lease.generation), engine, weights))

    yield Backend(rendering, make_executor, engine)


class InProcessExecutor:
    """An executor whose only worker is this process, with the model in a separate thread.

    Args:
        settings: Settings of the worker.
        load: Loads the engine.
    """

    def __init__(self, settings: WorkerSettings, load: Load = load_engine) -> None:
        self._stopped = stopped = threading.Event()

        def load_stoppable(settings: WorkerSettings, on_wait: Callable[[str], None]) -> Responder:
            return _StoppableResponder(load(settings, on_wait), stopped)

        self._loop = WorkerLoop(settings, _NAME, load_stoppable)
        self._load = WorkerLoad()
        self._is_ready = False
        self._wait: Wait | None = None
        self._num_rows = 0
        self._ended: EngineDied | None = None
        self._since = time.time()

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Load the model."""
        tick()
        self._loop.prepare()
        self._is_ready = True
        self._since = time.time()

    @property
    def passes(self) -> str:
        """Which texts have a forward pass of their own, and why; see ``Executor``."""
        return self._loop.passes

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
        """This process, when it has requested work."""
        return [_NAME] if self._load.takes_more else []

    @property
    def num_workers(self) -> int:
        """One."""
        return 1

    @property
    def views(self) -> list[WorkerView]:
        """The state of this process, and the units that it holds."""
        doing = "loading" if not self._is_ready else "idle" if self._load.is_empty else "working"
        units = tuple(attempt.unit.unit_id for attempt in self._load.attempts)
        return [WorkerView(_NAME, _NAME, doing, units, self._since, self._wait, self._num_rows)]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Always empty."""
        return {}

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Queue units for the model's thread and return at once."""
        del worker
        self._since = time.time()
        self._load.take(attempts)
        self._loop.take(attempts)

    def wait(self, timeout_s: float) -> list[Answer]:
        """Wait for the next report of the model's thread, for at most ``timeout_s``.

        Raises:
            EngineDied: The engine has ended, and nobody replaces the only worker.
        """
        if self._ended is not None:
            raise self._ended
        if self._load.is_empty:
            time.sleep(timeout_s)
            return []
        # Python handles a signal that arrives just before a wait begins only after the wait, so none is without end.
        report = self._loop.next_report(timeout_s)
        if report.held_up_by is not None:
            began = self._wait.since if self._wait else time.time()
            self._wait = Wait(report.held_up_by, began) if report.held_up_by else None
        if report.num_rows is not None:
            self._num_rows = report.num_rows
        if report.work_request is not None:
            self._load.note_request(report.work_request)
        results = tuple(result for result in report.results if self._load.answered(result.unit_id) is not None)
        if results:
            self._since = time.time()
        # Raised by the next call, so that what was finished before is committed.
        self._ended = report.ended
        return [Answer(_NAME, results)] if results else []

    def close(self) -> None:
        """Tell the model thread to stop, and let go of the model; what is in flight is lost."""
        self._stopped.set()
        # After Ctrl-C the traceback, which a notebook keeps, holds this object; the model must not stay with it.
        self._loop.release()


class _StoppableResponder:
    """Wraps a responder so that it raises at the next request once the job is stopped, and the model stops running."""

    def __init__(self, responder: Responder, stopped: threading.Event) -> None:
        self._responder = responder
        self._stopped = stopped
        self.prefetch = responder.prefetch

    @property
    def reader(self) -> Reader:
        """The reader of the wrapped responder."""
        return self._responder.reader

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Generate until the job is stopped; see ``Responder.generate``."""

        def next_unless_stopped() -> RolloutRequest | None:
            self._check()
            return next_request()

        self._check()
        yield from self._responder.generate(next_unless_stopped)

    def _check(self) -> None:
        if self._stopped.is_set():
            raise UnitError("the job was stopped.", code="stopped")
