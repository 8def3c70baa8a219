"""Write the driver's status file every few seconds, and pass stop requests from other threads to the run loop.

Reads an executor through its protocol, and reads the clock itself. When the store fails, a status is skipped: readers
see an older one, and nothing that is committed depends on it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from types import TracebackType

from ...jobs.errors import AtlasError, JobError
from ...jobs.scheduling.job_state import JobState
from ...jobs.scheduling.ledger import Failure, Ledger
from ...storage.format.records import Manifest
from ...storage.locations.location import Location
from ...storage.run.status import RunStatus, Stage, UnitFailure, WaitStatus, WorkerStatus, write_status
from ..pool.executor import Executor, Wait

_WRITE_EVERY_S = 3.0
_UPDATE_EVERY_S = 1.0
"""The run loop turns many times a second, and a pool of a thousand workers takes a while to list."""

_RATE_WINDOW_S = 300.0
"""Rates are means over the last so many seconds, or since the work began when that is less."""

_PLACING_S = 10.0
"""A cluster takes some seconds to place a worker on a node that has room."""

_MAX_FAILURES = 100
_MAX_DETAIL_CHARS = 20_000


class JobStoppedError(JobError):
    """The job was cancelled."""

    def __init__(self) -> None:
        super().__init__(
            "cancelled.", code="cancelled", hint="Committed units are kept; persona-atlas resume does the rest."
        )


def is_stop(error: BaseException) -> bool:
    """Whether an error is a request to stop: a cancelled job, Ctrl-C or SIGTERM."""
    return isinstance(error, (JobStoppedError, KeyboardInterrupt))


class StatusReporter:
    """The status of one driver. A context manager: leaving it writes how the job ended.

    Args:
        job_id: Id of the job on a cluster; empty for a driver that was started by hand.
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
        self._next_update = 0.0
        self._own_wait: Wait | None = None
        self._working_since = time.monotonic()
        self._commits: deque[tuple[float, int, int]] = deque()
        self._thread = threading.Thread(target=self._write_regularly, name="status-reporter", daemon=True)

    def stop(self) -> None:
        """Ask the job to end; the run loop raises ``JobStoppedError`` in its next turn. Callable from any thread."""
        self._stop.set()

    @property
    def is_stopped(self) -> bool:
        """Whether the job was asked to end."""
        return self._stop.is_set()

    @property
    def stop_event(self) -> threading.Event:
        """The event that is set once the job was asked to end, for waits that it must cut short."""
        return self._stop

    def raise_if_stopped(self) -> None:
        """Do nothing unless the job was asked to end.

        Raises:
            JobStoppedError: It was.
        """
        if self._stop.is_set():
            raise JobStoppedError

    def attach(self, location: Location, generation: int) -> None:
        """Start writing to a run's store.

        Args:
            location: The store.
            generation: Number of the driver's lease; the status file carries it in its name.
        """
        self._target = location, generation
        self.write()

    def set_phase(self, phase: str) -> None:
        """Set what the driver is doing, and write it at once.

        Args:
            phase: ``loading``, ``working`` or ``reducing``; rates count from the last ``working``.
        """
        self._change(doing=phase)
        if phase == "working":
            self._working_since = time.monotonic()
        self.write()

    def count_commit(self, manifest: Manifest) -> None:
        """Count a committed unit into the rates. Callable from any thread."""
        self._commits.append((time.monotonic(), manifest.num_rows, manifest.num_response_tokens))

    def update(self, ledger: Ledger, executor: Executor) -> None:
        """Take counts, rates, failures and workers into the status; called by the run loop in every turn.

        Raises:
            JobStoppedError: The job was asked to end.
        """
        self.raise_if_stopped()
        now = time.monotonic()
        if now < self._next_update and not ledger.is_over:
            return
        self._next_update = now + _UPDATE_EVERY_S
        self._note_waits(executor)
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
            rollouts_finished=ledger.rollouts_done + sum(view.num_rows for view in executor.views),
            rollouts_planned=ledger.plan.num_rollouts,
            # While something holds the job up, the pace of the last minutes says nothing about the time left.
            seconds_left=left / rollouts_per_second if rollouts_per_second and not self.waits else None,
            failures=_failures(ledger),
            **_pool(executor),
        )

    def update_workers(self, executor: Executor) -> None:
        """Take the workers into the status while they start: which are loading, and which wait for resources.

        Raises:
            JobStoppedError: The job was asked to end.
        """
        self.raise_if_stopped()
        self._note_waits(executor)
        self._change(**_pool(executor))

    def finish_reduction(self) -> None:
        """Mark the reduction as stored."""
        self._change(
            stages=tuple(
                stage.model_copy(update={"done": 1}) if stage.name == "reduction" else stage
                for stage in self._status.stages
            )
        )

    def skip_reduction(self) -> None:
        """Remove the reduction from the stages: this run has no groups to compare."""
        self._change(stages=tuple(stage for stage in self._status.stages if stage.name != "reduction"))

    def end(self, state: JobState, error: str = "") -> None:
        """Set how the job ended. Only the first call counts.

        Args:
            state: A final state.
            error: The whole message of the error that ended the job; empty when none did.
        """
        if not self._status.state.is_final:
            self._change(
                state=state, doing="ended", error=error, workers=(), waits=(), units_in_flight=0, seconds_left=None
            )

    def end_by(self, error: BaseException) -> None:
        """Set how the job ended: by an error, or stopped when the error is a request to stop."""
        if is_stop(error):
            self.end(JobState.CANCELLED, "cancelled.")
        else:
            self.end(JobState.FAILED, str(error))

    def write(self) -> None:
        """Write the status now, if a store is attached."""
        if self._target is not None:
            self._change(updated_at=time.time())
            # The next write, some seconds later, makes up for one that the store refused.
            try:
                write_status(*self._target, self._status)
            except AtlasError as error:
                self._own_wait = Wait(error.message, self._own_wait.since if self._own_wait else time.time())
            else:
                self._own_wait = None

    def require_store(self) -> None:
        """Write the status now, to see whether the store can be written from here.

        Raises:
            AtlasError: It cannot.
        """
        if self._target is not None:
            write_status(*self._target, self._status)

    @property
    def waits(self) -> tuple[WaitStatus, ...]:
        """What holds the job up, as of the last update."""
        return self._status.waits

    @property
    def rollouts_finished(self) -> int:
        """Rollouts that are finished, in units that are not committed too, as of the last update."""
        return self._status.rollouts_finished or 0

    def _note_waits(self, executor: Executor) -> None:
        views = executor.views
        found = [(view.name, view.wait) for view in views if view.wait is not None]
        if self._own_wait is not None:
            found.append(("the driver", self._own_wait))
        if views and all(view.doing == "waiting" and view.wait is None for view in views):
            since = min(view.since for view in views)
            if time.time() - since > _PLACING_S:
                excluded = [f"Node {node[:8]} is excluded: {why}" for node, why in executor.nodes_left_out.items()]
                found.append(("the job", Wait(" ".join(["no node has room for a worker.", *excluded[-1:]]), since)))
        self._change(waits=tuple(WaitStatus(who=who, reason=wait.reason, since=wait.since) for who, wait in found))

    def __enter__(self) -> StatusReporter:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        if error is not None:
            self.end_by(error)
        self.write()

    def _change(self, **changes: object) -> None:
        with self._lock:
            self._status = self._status.model_copy(update=changes)

    def _write_regularly(self) -> None:
        while not self._done.wait(_WRITE_EVERY_S):
            self.write()

    def _rates(self, now: float) -> tuple[float | None, float | None]:
        while self._commits and self._commits[0][0] < now - _RATE_WINDOW_S:
            self._commits.popleft()
        # A copy, because committing threads append concurrently.
        commits = list(self._commits)
        seconds = min(now - self._working_since, _RATE_WINDOW_S)
        if not commits or seconds < 1:
            return None, None
        return sum(rows for _, rows, _ in commits) / seconds, sum(tokens for _, _, tokens in commits) / seconds


def _pool(executor: Executor) -> dict[str, object]:
    workers = [
        WorkerStatus(name=view.name, node=view.node, doing=view.doing, units=view.units, since=view.since)
        for view in executor.views
    ]
    return {"workers": tuple(workers), "nodes_left_out": executor.nodes_left_out}


def _detail(failure: Failure, first: Failure | None) -> str:
    return (first.detail if first is not None and first.unit_id == failure.unit_id else "") or failure.detail


def _failures(ledger: Ledger) -> tuple[UnitFailure, ...]:
    """List the failed units, those that were given up first, but the unit that failed before all others on top."""
    first = ledger.first_failure
    listed = sorted(ledger.last_failure.values(), key=lambda failure: failure.unit_id not in ledger.failed)
    if first is not None and first.unit_id in ledger.last_failure:
        listed.sort(key=lambda failure: failure.unit_id != first.unit_id)
    return tuple(
        UnitFailure(
            unit_id=failure.unit_id,
            attempts=failure.attempt,
            error=failure.message,
            # One traceback is enough, and the first is the most telling: later failures often follow from it.
            detail=_detail(failure, first)[-_MAX_DETAIL_CHARS:] if number == 0 else "",
            is_given_up=failure.unit_id in ledger.failed,
        )
        for number, failure in enumerate(listed[:_MAX_FAILURES])
    )
