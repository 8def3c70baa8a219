"""What a driver tells of itself while it works, and where it is told to stop. Writes the run's status, off its way.

Knows executors by their protocol; the clock is asked here. A store that fails costs readers some news and no truth.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from types import TracebackType

from ...jobs.errors import AtlasError, JobError
from ...jobs.scheduling.job_state import JobState
from ...jobs.scheduling.ledger import Failure, Ledger
from ...storage.format.records import Manifest
from ...storage.locations.location import Location
from ...storage.run.status import RunStatus, Stage, UnitFailure, WorkerStatus, write_status
from ..pool.executor import Executor

_EVERY_S = 3.0
_PACE_OVER_S = 300.0
"""Rates are over so long, or since the work began."""

_FAILURES_TOLD = 100
_DETAIL_CHARS = 20_000


class JobStoppedError(JobError):
    """The job was cancelled."""

    def __init__(self) -> None:
        super().__init__("cancelled.", code="cancelled", hint="What was committed stays; resume does the rest.")


class StatusReporter:
    """The news of one driver. Use as a context manager; leaving it says how the job ended.

    Args:
        job_id: Of the job on a cluster; empty for a driver that was started by hand.
    """

    def __init__(self, job_id: str = "") -> None:
        self.job_id = job_id
        self._stop = threading.Event()
        self._done = threading.Event()
        self._lock = threading.Lock()
        self._target: tuple[Location, int] | None = None
        now = time.time()
        self._status = RunStatus(
            job_id=job_id, state=JobState.RUNNING, doing="starting", updated_at=now, started_at=now, stages=()
        )
        self._next_look = 0.0
        self._worked_since = time.monotonic()
        self._paces: deque[tuple[float, int, int]] = deque()
        self._thread = threading.Thread(target=self._keep, name="board", daemon=True)

    def stop(self) -> None:
        """Ask the job to end; whoever works it hears of it in its next turn."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether the job is to end."""
        return self._stop.is_set()

    def wait(self, seconds: float) -> None:
        """Wait, unless the job is to end.

        Raises:
            JobStoppedError: It is.
        """
        self._stop.wait(seconds)
        self.raise_if_stopped()

    def raise_if_stopped(self) -> None:
        """End here if the job is to end.

        Raises:
            JobStoppedError: It is.
        """
        if self._stop.is_set():
            raise JobStoppedError

    def open(self, location: Location, generation: int) -> None:
        """Begin to write, as the driver of a generation."""
        self._target = location, generation
        self.tell()

    def doing(self, what: str) -> None:
        """Say what the driver does now."""
        self._change(doing=what)
        if what == "working":
            self._worked_since = time.monotonic()
        self.tell()

    def count(self, manifest: Manifest) -> None:
        """Take note of a commit, for the rates; from any thread."""
        self._paces.append((time.monotonic(), manifest.num_rows, manifest.num_response_tokens))

    def look(self, ledger: Ledger, executor: Executor) -> None:
        """Take note of how it stands; from the run loop, in every turn.

        Raises:
            JobStoppedError: The job is to end.
        """
        self.raise_if_stopped()
        now = time.monotonic()
        if now < self._next_look and not ledger.is_over:
            return
        self._next_look = now + 1.0
        rollouts_per_second, tokens_per_second = self._rates(now)
        left = ledger.plan.num_rollouts - ledger.rollouts_done
        self._change(
            stages=(
                Stage(name="rollouts", done=ledger.num_done, planned=len(ledger.plan.units)),
                Stage(name="reduction", done=0, planned=1),
            ),
            units_failed=len(ledger.failed),
            units_in_flight=ledger.in_flight,
            rollouts_per_second=rollouts_per_second,
            tokens_per_second=tokens_per_second,
            seconds_left=left / rollouts_per_second if rollouts_per_second else None,
            failures=_failures(ledger),
            **_pool(executor),
        )

    def wait_for_workers(self, executor: Executor) -> None:
        """Take note of the workers while there is no work for them yet: which load, which wait for a place.

        Raises:
            JobStoppedError: The job is to end.
        """
        self.raise_if_stopped()
        self._change(**_pool(executor))

    def reduced(self) -> None:
        """Say that the reduction is stored."""
        self._change(
            stages=tuple(
                stage.model_copy(update={"done": 1}) if stage.name == "reduction" else stage
                for stage in self._status.stages
            )
        )

    def reduces_nothing(self) -> None:
        """Say that there is no reduction: what is kept is of nothing that can be compared."""
        self._change(stages=tuple(stage for stage in self._status.stages if stage.name != "reduction"))

    def end(self, state: JobState, error: str = "") -> None:
        """Say how the job ended; nothing can be added after."""
        if not self._status.state.is_final:
            self._change(state=state, doing="ended", error=error, workers=(), units_in_flight=0, seconds_left=None)

    def tell(self) -> None:
        """Write the news now."""
        if self._target is not None:
            self._change(updated_at=time.time())
            # A store in a bad moment hears of it the next time.
            with suppress(AtlasError):
                write_status(*self._target, self._status)

    def __enter__(self) -> StatusReporter:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if isinstance(error, (JobStoppedError, KeyboardInterrupt)):
            self.end(JobState.CANCELLED, "cancelled.")
        elif error is not None:
            self.end(JobState.FAILED, str(error))
        self.tell()

    def _change(self, **changes: object) -> None:
        with self._lock:
            self._status = self._status.model_copy(update=changes)

    def _keep(self) -> None:
        while not self._done.wait(_EVERY_S):
            self.tell()

    def _rates(self, now: float) -> tuple[float | None, float | None]:
        while self._paces and self._paces[0][0] < now - _PACE_OVER_S:
            self._paces.popleft()
        paces = list(self._paces)
        seconds = min(now - self._worked_since, _PACE_OVER_S)
        if not paces or seconds < 1:
            return None, None
        return sum(rows for _, rows, _ in paces) / seconds, sum(tokens for _, _, tokens in paces) / seconds


def _pool(executor: Executor) -> dict[str, object]:
    workers = [
        WorkerStatus(name=view.name, node=view.node, doing=view.doing, units=view.units, since=view.since)
        for view in executor.views
    ]
    return {"workers": tuple(workers), "nodes_left_out": executor.nodes_left_out}


def _detail(failure: Failure, first: Failure | None) -> str:
    return (first.detail if first is not None and first.unit_id == failure.unit_id else "") or failure.detail


def _failures(ledger: Ledger) -> tuple[UnitFailure, ...]:
    first = ledger.first_failure
    told = sorted(ledger.last_failure.values(), key=lambda failure: failure.unit_id not in ledger.failed)
    if first is not None and first.unit_id in ledger.last_failure:
        told.sort(key=lambda failure: failure.unit_id != first.unit_id)
    return tuple(
        UnitFailure(
            unit_id=failure.unit_id,
            attempts=failure.attempt,
            error=failure.message,
            # In full for one: the first of all, which tells most, or the first that is left.
            detail=_detail(failure, first)[-_DETAIL_CHARS:] if number == 0 else "",
            is_given_up=failure.unit_id in ledger.failed,
        )
        for number, failure in enumerate(told[:_FAILURES_TOLD])
    )
