"""Where a worker's block meets the store: run units, write each block, answer with manifests. Knows no Ray.

One object of this class lives in each Ray actor; the local executor holds one too. Assignments may come while others
are worked: their units join the running batch as room comes, and what is finished is encoded and uploaded beside it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

from ...jobs.errors import InputError
from ...jobs.rollouts import UnitResult
from ...jobs.scheduling.ledger import Failure
from ...jobs.spec import GenerationSpec, ModelSpec
from ...jobs.units import UnitAttempt
from ...storage.arrays.unit_writer import write_unit_result
from ...storage.format.records import Manifest
from ...storage.locations.location import Location, open_location
from ...workers.chat.spans import load_renderer
from ...workers.engine import EngineSettings, Responder
from ...workers.models.memory import require_memory
from ...workers.models.model_files import find_model
from ...workers.responders.given import GivenResponder
from ...workers.run_units import failure_of, run_units
from ..retry import with_retries
from .worker_load import WorkRequest

_BLOCKS_WAITING = 2
"""Finished blocks that may wait to be written; then generation waits for the store, and memory does not grow."""

_SENTINEL_PAUSES_S = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that a worker is told; the orders bring the rest.

    Attributes:
        engine: The model and how to run it.
        needed_bytes: Memory of one replica, asked for before loading.
        store_url: Where blocks go.
        endpoint_url: Of an S3-compatible server.
        rows_per_block: Of the run.
        tokens_per_block: Of the run; 0 when it keeps no tokens.
        mantissa_bits: Of the run.
        model: Which model, for a machine that does not have its files where the driver has them; None: all have.
        reads_given: Whether the responses exist already and are only read.
        generation: The server that generates; None where nothing does, or the engine itself.
        served_model: What that server calls the model.
        sentinel: Path of an object that the driver has written; a machine that does not see it looks at another store.
    """

    engine: EngineSettings
    needed_bytes: int
    store_url: str
    endpoint_url: str | None
    rows_per_block: int
    mantissa_bits: int
    model: ModelSpec | None = None
    reads_given: bool = False
    generation: GenerationSpec | None = None
    served_model: str = ""
    sentinel: str = ""
    tokens_per_block: int = 0


def load_engine(settings: WorkerSettings) -> Responder:
    """Load the model, if there is room for it, behind what answers requests: itself, given texts or a server.

    Raises:
        InputError: There is no room, it cannot be loaded, or the server that is to generate does not serve it.
    """
    # Torch is loaded where a model is, and not by the driver or the command line.
    from ...workers.builtin.builtin_engine import BuiltinEngine

    if settings.engine.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "the worker's machine has a GPU, but its torch cannot use it.",
                code="no_gpu",
                field="placement.device",
                hint="Install a CUDA build of torch there, or use placement.device: cpu.",
            )
    require_memory(settings.needed_bytes, 1, settings.engine.device)
    engine = settings.engine
    if settings.model is not None and not engine.directory.is_dir():
        engine = replace(engine, directory=find_model(settings.model, lambda _: None))
    if not settings.reads_given and settings.generation is None:
        return BuiltinEngine(engine)
    conversations = load_renderer(engine.directory)
    user_spans = conversations.user_spans() if engine.capture.needs_user_spans else None
    if settings.generation is None:
        return GivenResponder(BuiltinEngine(engine), conversations, user_spans)
    # Only where there is a server to ask is its client loaded.
    from ...workers.responders.endpoint import EndpointResponder, check_endpoint

    # A model may take minutes to load: first whether it will be of use.
    check_endpoint(settings.generation, settings.served_model, conversations.renderer)
    return EndpointResponder(
        BuiltinEngine(engine),
        conversations,
        settings.generation,
        settings.served_model,
        engine.sampling,
        user_spans=user_spans,
    )


def require_same_store(location: Location, sentinel: str) -> None:
    """Make sure that this machine sees what the driver wrote, before a model is loaded for nothing.

    Args:
        location: The run's store, as seen from here.
        sentinel: Path of an object that the driver has written; empty: nothing is looked for.

    Raises:
        InputError: It is not there: a directory that the machines do not share, or another endpoint.
        TransientError: The store failed.
    """
    for pause_s in (*_SENTINEL_PAUSES_S, None):
        if not sentinel or with_retries(lambda: location.size(sentinel)) is not None:
            return
        if pause_s is not None:
            # A shared file system may show a new file a little late.
            time.sleep(pause_s)
    raise InputError(
        f"{socket.gethostname()} does not see the run at {location.url}: {sentinel}, which the driver wrote, is not "
        "there.",
        code="other_store",
        field="store.url",
        hint="Use s3://, or a directory that every machine shares under the same path.",
    )


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What a worker has to say since it was asked last.

    Attributes:
        results: A manifest or a failure for each unit that has ended, in the order of their ends.
        hungry: That it could do with more, if it could.
    """

    results: tuple[Manifest | Failure, ...]
    requesting: WorkRequest | None = None


class UnitTask:
    """A worker without its process: loads the model when first needed, then works units.

    Args:
        settings: What to load and where to write.
        name: Who it is, for people.
        load: Makes the engine.
    """

    def __init__(
        self, settings: WorkerSettings, name: str, load: Callable[[WorkerSettings], Responder] = load_engine
    ) -> None:
        self._settings = settings
        self._name = name
        self._load = load
        self._engine: Responder | None = None
        self._location = open_location(settings.store_url, settings.endpoint_url)
        self._loading = threading.Lock()
        self._slots = threading.BoundedSemaphore(_BLOCKS_WAITING)
        self._news: SimpleQueue[Manifest | Failure | WorkRequest] = SimpleQueue()
        # All below belongs to this lock.
        self._lock = threading.Lock()
        self._inbox: deque[UnitAttempt] = deque()
        self._is_generating = False
        self._num_handed = 0
        self._has_requested = False

    def prepare(self) -> None:
        """Load the model now.

        Raises:
            InputError: It cannot be loaded, or this machine looks at another store than the driver.
            TransientError: The store failed.
        """
        with self._loading:
            if self._engine is None:
                require_same_store(self._location, self._settings.sentinel)
                self._engine = self._load(self._settings)

    def take(self, attempts: Sequence[UnitAttempt]) -> None:
        """Begin to work units; returns at once. What comes of each is among the answers, some time.

        May be called while others are worked: one thread has the model, and takes up what waits.

        Raises:
            InputError: The model cannot be loaded, as of :meth:`prepare`; nothing was taken then.
        """
        self.prepare()
        with self._lock:
            if not self._is_generating:
                # Before anything waits: a thread that cannot be started leaves the next caller to try.
                threading.Thread(target=self._generate, name="model", daemon=True).start()
                self._is_generating = True
            self._inbox.extend(attempts)
            self._num_handed += len(attempts)
            self._has_requested = False

    def said(self) -> WorkerReport:
        """Wait until there is something to say, and give all there is; each answer is given once.

        One caller at a time.
        """
        news = [self._news.get()]
        while not self._news.empty():
            news.append(self._news.get())
        requesting = [one for one in news if isinstance(one, WorkRequest)]
        return WorkerReport(
            tuple(one for one in news if not isinstance(one, WorkRequest)), requesting[-1] if requesting else None
        )

    def _generate(self) -> None:
        """Work until the inbox is empty; the thread that has the model."""
        assert self._engine is not None
        # By row block, which is an attempt's own.
        under_way: dict[int, UnitAttempt] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
            while True:
                try:
                    for result in run_units(self._engine, partial(self._next_attempt, under_way)):
                        self._settle(result, under_way, writer)
                except Exception as error:  # noqa: BLE001 - who waits for an answer must have one
                    for attempt in under_way.values():
                        self._news.put(failure_of(attempt, error))
                    under_way.clear()
                with self._lock:
                    if not self._inbox:
                        self._is_generating = False
                        return

    def _settle(
        self, result: UnitResult | Failure, under_way: dict[int, UnitAttempt], writer: ThreadPoolExecutor
    ) -> None:
        if isinstance(result, Failure):
            mine = (row_block for row_block, attempt in under_way.items() if _is_of(attempt, result))
            del under_way[next(mine)]
            self._news.put(result)
            return
        self._slots.acquire()
        try:
            writer.submit(self._write, result)
        except BaseException:
            self._slots.release()
            raise
        del under_way[result.attempt.row_block]

    def _next_attempt(self, under_way: dict[int, UnitAttempt]) -> UnitAttempt | None:
        assert self._engine is not None
        with self._lock:
            if not self._inbox:
                self._request_work()
                return None
            attempt = self._inbox.popleft()
            if len(self._inbox) < self._engine.prefetch:
                self._request_work()
        under_way[attempt.row_block] = attempt
        return attempt

    def _request_work(self) -> None:
        """Tell it once; holds the lock."""
        if not self._has_requested:
            self._news.put(WorkRequest(self._num_handed))
            self._has_requested = True

    def _write(self, block: UnitResult) -> None:
        try:
            # Written again, not made again: the block is worth more than the wait.
            self._news.put(with_retries(partial(self._write_once, block)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this unit's failure and no other's
            self._news.put(failure_of(block.attempt, error))
        finally:
            self._slots.release()

    def _write_once(self, block: UnitResult) -> Manifest:
        return write_unit_result(
            self._location,
            block,
            rows_per_block=self._settings.rows_per_block,
            tokens_per_block=self._settings.tokens_per_block,
            mantissa_bits=self._settings.mantissa_bits,
            worker=self._name,
        )


def _is_of(attempt: UnitAttempt, failure: Failure) -> bool:
    return (attempt.unit.unit_id, attempt.number) == (failure.unit_id, failure.attempt)
