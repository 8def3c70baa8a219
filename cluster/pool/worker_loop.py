"""The loop of a worker: run units, write each result to the store, report manifests. Knows no Ray.

Every Ray actor has a ``WorkerLoop``, and so has each executor that runs in this process. Assignments may arrive while
others are in flight; their units join the running batch as slots are freed. Three threads: one runs the model, one
encodes and writes finished units, and the caller's waits for reports.

An engine may end by itself, as vLLM's does when a process of it dies. Then the loop is over: it closes the engine,
reports what was finished, and last that the engine has ended.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from queue import Empty, SimpleQueue

from ...jobs.errors import AtlasError, EngineDied, TransientError
from ...jobs.scheduling.ledger import Failure
from ...jobs.scheduling.worker_load import WorkRequest
from ...jobs.work.edited_requests import under
from ...jobs.work.unit_result import UnitResult
from ...jobs.work.units import UnitAttempt
from ...storage.arrays.unit_writer import write_unit_result
from ...storage.format.records import Manifest
from ...storage.locations.location import open_location
from ...workers.canary import CanaryChecks
from ...workers.engine import Responder
from ...workers.run_units import failure_of, run_units
from ..retry import with_retries
from .assemble import engine_label, load_engine, require_same_store
from .row_count import RowCount
from .worker_settings import WorkerSettings

_BLOCKS_WAITING = 2
"""Finished units that may wait to be written. When there are more, generation pauses, so that a slow store does not
fill the memory."""


@dataclass(frozen=True, slots=True)
class WorkerReport:
    """What has happened in a worker since its last report.

    Attributes:
        results: A manifest or a failure for each unit that has ended, in the order in which they ended.
        work_request: The worker's request for work; None if it made none.
        held_up_by: What the worker waits for while it tries again; empty: nothing any more; None: as before.
        ended: Why the engine has ended, so that the worker answers nothing any more; None while it runs.
        num_rows: Rollouts that are finished of the units that it holds; None: as before.
    """

    results: tuple[Manifest | Failure, ...]
    work_request: WorkRequest | None = None
    held_up_by: str | None = None
    ended: EngineDied | None = None
    num_rows: int | None = None


@dataclass(frozen=True, slots=True)
class _Rows:
    """So many rollouts are finished of the units that the worker holds."""

    count: int


@dataclass(frozen=True, slots=True)
class _HeldUp:
    """The worker waits, or, with an empty reason, does so no longer."""

    reason: str


Load = Callable[[WorkerSettings, Callable[[str], None]], Responder]
"""Loads an engine, which may report what it waits for; see ``load_engine``."""


class WorkerLoop:
    """A worker, independent of the process it runs in: loads the model on first use, then runs units.

    Args:
        settings: Settings of the worker.
        name: Name of the worker, which is recorded in manifests.
        load: Loads the engine; see ``load_engine``.
    """

    def __init__(self, settings: WorkerSettings, name: str, load: Load = load_engine) -> None:
        self._settings = settings
        self._name = name
        self._load = load
        self._engine: Responder | None = None
        self._canaries = CanaryChecks(settings.canary.resolved(settings.engine.dtype))
        self._location = open_location(settings.store_url, settings.endpoint_url, settings.access)
        self._loading = threading.Lock()
        self._released = threading.Event()
        self._write_slots = threading.BoundedSemaphore(_BLOCKS_WAITING)
        self._rows = RowCount()
        self._events: SimpleQueue[Manifest | Failure | WorkRequest | _HeldUp | EngineDied | _Rows] = SimpleQueue()
        # The lock guards everything below.
        self._lock = threading.Lock()
        self._inbox: deque[UnitAttempt] = deque()
        self._is_generating = False
        self._num_assigned = 0
        self._has_requested = False

    def prepare(self) -> None:
        """Load the model, unless it is loaded.

        Raises:
            InputError: It cannot be loaded, or this machine is connected to another store than the driver.
            TransientError: The store failed.
        """
        with self._loading:
            if self._engine is None:
                require_same_store(self._location, self._settings.sentinel)
                self._engine = self._load(self._settings, self._note_wait)

    @property
    def passes(self) -> str:
        """Which texts have a forward pass of their own, and why; ``""`` for none, and before the model is loaded."""
        return "" if self._engine is None else self._engine.reader.passes

    def take(self, attempts: Sequence[UnitAttempt]) -> None:
        """Accept an assignment and return at once; a later report has the result of each unit.

        May be called while other units are in flight: the model's thread pulls them from a queue.

        Args:
            attempts: The assignment.

        Raises:
            InputError: The model cannot be loaded, as for :meth:`prepare`; the assignment was not accepted.
        """
        self.prepare()
        with self._lock:
            if not self._is_generating:
                # Before the units are queued: if no thread can be started, nothing waits for one in vain.
                threading.Thread(target=self._generate, args=(self._engine,), name="model", daemon=True).start()
                self._is_generating = True
            self._inbox.extend(attempts)
            self._num_assigned += len(attempts)
            self._has_requested = False

    def release(self) -> None:
        """Forget the engine: its memory is free once the model thread has ended, whoever still holds this object.

        Nothing may be taken afterwards.
        """
        # What is being written is not tried again: the process could not end before.
        self._released.set()
        with self._loading:
            engine, self._engine = self._engine, None
        with self._lock:
            is_generating = self._is_generating
        if engine is not None and not is_generating:
            # Otherwise the model's thread closes it when it ends.
            engine.reader.close()

    def next_report(self, timeout_s: float | None = None) -> WorkerReport:
        """Wait until there is something to report.

        One caller at a time.

        Args:
            timeout_s: Longest wait in seconds; None: no limit.

        Returns:
            Everything that has happened since the last report; each result is reported once. Without results, if the
            time is over.
        """
        try:
            events = [self._events.get(timeout=timeout_s)]
        except Empty:
            return WorkerReport(())
        while not self._events.empty():
            events.append(self._events.get())
        requests = [event for event in events if isinstance(event, WorkRequest)]
        held_up = [event.reason for event in events if isinstance(event, _HeldUp)]
        ends = [event for event in events if isinstance(event, EngineDied)]
        rows = [event.count for event in events if isinstance(event, _Rows)]
        results = tuple(event for event in events if isinstance(event, Manifest | Failure))
        return WorkerReport(
            results,
            requests[-1] if requests else None,
            held_up[-1] if held_up else None,
            ends[-1] if ends else None,
            rows[-1] if rows else None,
        )

    def _generate(self, engine: Responder) -> None:
        """Run units until the inbox is empty or the engine has ended; the body of the thread that has the model."""
        try:
            self._run_units(engine)
        except EngineDied as error:
            # Its processes and its memory are gone before anybody is told, since a new worker needs their place.
            engine.reader.close()
            self._events.put(error)
        else:
            if self._released.is_set():
                engine.reader.close()

    def _run_units(self, engine: Responder) -> None:
        # By row block, which no two attempts share.
        under_way: dict[int, UnitAttempt] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
            while True:
                try:
                    next_attempt = partial(self._next_attempt, under_way, engine.prefetch)
                    for result in run_units(engine, next_attempt, self._canaries, self._note_rows):
                        self._settle(result, under_way, writer)
                except EngineDied:
                    # What is finished is still written; the rest has no answer, as if the whole worker had died.
                    raise
                except Exception as error:  # noqa: BLE001 - every unit in flight needs an answer, whatever the error
                    self._tell_rows(self._rows.failed())
                    for attempt in under_way.values():
                        self._events.put(failure_of(attempt, error))
                    under_way.clear()
                with self._lock:
                    if not self._inbox:
                        self._is_generating = False
                        return

    def _settle(
        self, result: UnitResult | Failure, under_way: dict[int, UnitAttempt], writer: ThreadPoolExecutor
    ) -> None:
        if isinstance(result, Failure):
            own = (row_block for row_block, attempt in under_way.items() if _is_of(attempt, result))
            del under_way[next(own)]
            self._tell_rows(self._rows.failed())
            self._events.put(result)
            return
        self._rows.to_write(len(result.rollouts))
        self._write_slots.acquire()
        try:
            writer.submit(self._write, result)
        except BaseException:
            self._write_slots.release()
            raise
        del under_way[result.attempt.row_block]

    def _next_attempt(self, under_way: dict[int, UnitAttempt], prefetch: int) -> UnitAttempt | None:
        with self._lock:
            if not self._inbox:
                self._request_work()
                return None
            attempt = self._inbox.popleft()
            if len(self._inbox) < prefetch:
                self._request_work()
        attempt = under(self._settings.intervention, attempt)
        under_way[attempt.row_block] = attempt
        return attempt

    def _request_work(self) -> None:
        """Request work, at most once per assignment; the caller holds the lock."""
        if not self._has_requested:
            self._events.put(WorkRequest(self._num_assigned))
            self._has_requested = True

    def _note_wait(self, reason: str) -> None:
        self._events.put(_HeldUp(reason))

    def _note_rows(self, under_way: int) -> None:
        self._tell_rows(self._rows.in_model(under_way))

    def _tell_rows(self, count: int | None) -> None:
        if count is not None:
            self._events.put(_Rows(count))

    def _write(self, result: UnitResult) -> None:
        waits: list[str] = []
        end: Manifest | Failure

        def note(error: AtlasError) -> None:
            if error.message not in waits[-1:]:
                waits.append(error.message)
                self._note_wait(error.message)

        try:
            # A unit took the model minutes, so writing it is retried as long as any other request to the store.
            end = with_retries(partial(self._write_once, result), stop=self._released, on_failure=note)
        except TransientError as error:
            end = replace(failure_of(result.attempt, error), is_store_fault=True)
        except Exception as error:  # noqa: BLE001 - whatever the error, only this unit fails
            end = failure_of(result.attempt, error)
        self._tell_rows(self._rows.written(len(result.rollouts)))
        self._events.put(end)
        if waits:
            self._note_wait("")
        self._write_slots.release()

    def _write_once(self, result: UnitResult) -> Manifest:
        return write_unit_result(
            self._location,
            result,
            rows_per_block=self._settings.rows_per_block,
            tokens_per_block=self._settings.tokens_per_block,
            mantissa_bits=self._settings.mantissa_bits,
            worker=self._name,
            engine=engine_label(self._settings),
            is_edited=self._settings.intervention is not None,
        )


def _is_of(attempt: UnitAttempt, failure: Failure) -> bool:
    return (attempt.unit.unit_id, attempt.number) == (failure.unit_id, failure.attempt)
