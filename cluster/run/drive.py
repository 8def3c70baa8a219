"""The run loop: assign, wait, commit, until nothing is left. Knows executors and commits only by their protocols."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ...jobs.errors import UnitError
from ...jobs.scheduling.assignment import assign_work
from ...jobs.scheduling.ledger import Failure, Ledger
from ...storage.format.records import Manifest
from ..pool.executor import Executor
from ..retry import with_retries
from .progress import Progress

_WAIT_S = 0.5
_COMMITTING_WAIT_S = 0.02
"""The loop settles finished commits between waits for answers, so it waits less while there are some under way. No
worker ever waits for a commit."""

_COMMITTERS = 64
"""Commits at a time. Each is three small requests one after the other, a tenth of a second on S3, and a thousand
workers finish three hundred units in one second."""


def drive(
    ledger: Ledger,
    executor: Executor,
    commit: Callable[[Manifest], object],
    progress: Progress,
    look: Callable[[Ledger, Executor], None] = lambda *_: None,
) -> None:
    """Run every unit of a ledger that is left to do.

    Args:
        ledger: The units; holds the outcome when this returns. Changed by this thread alone.
        executor: Started workers.
        commit: Commits an attempt, unless another attempt at its unit is committed already; called from several
            threads.
        progress: Receives every step.
        look: Called in every turn, several times a second; what it raises ends the loop.

    Raises:
        StoreError: The lease was lost.
        TransientError: A commit could not be written in several tries.
        JobError: No worker is left, or ``look`` says that the job is stopped.
    """
    progress.units(ledger, None)
    committing: dict[Future[object], Manifest] = {}
    stop = threading.Event()
    pool = ThreadPoolExecutor(_COMMITTERS, thread_name_prefix="commit")
    try:
        while not ledger.is_over:
            look(ledger, executor)
            for assignment in assign_work(ledger, executor):
                executor.assign(assignment.worker, assignment.attempts)
            for answer in executor.wait(_COMMITTING_WAIT_S if committing else _WAIT_S):
                for manifest in answer.manifests:
                    committing[pool.submit(_commit, commit, manifest, progress, stop)] = manifest
                _fail(answer.failures, answer.worker, ledger, progress)
            for future in [future for future in committing if future.done()]:
                _settle(future, committing.pop(future), ledger, progress)
        look(ledger, executor)
    finally:
        # Commits that have begun are finished, and not retried; those that wait are dropped.
        stop.set()
        pool.shutdown(cancel_futures=True)


def _fail(failures: Sequence[Failure], worker: str, ledger: Ledger, progress: Progress) -> None:
    lost: list[Failure] = []
    for failure in failures:
        again = ledger.fail(failure, worker)
        if again and failure.is_worker_fault:
            lost.append(failure)
        else:
            progress.failed(failure, again=again)
    if lost:
        progress.lost(worker, lost)


def _commit(
    commit: Callable[[Manifest], object], manifest: Manifest, progress: Progress, stop: threading.Event
) -> object:
    return with_retries(lambda: commit(manifest), progress.say, stop)


def _settle(future: Future[object], manifest: Manifest, ledger: Ledger, progress: Progress) -> None:
    try:
        future.result()
    except UnitError as error:
        failure = Failure(manifest.unit_id, manifest.attempt, error.message)
        progress.failed(failure, again=ledger.fail(failure, manifest.worker))
    else:
        ledger.commit(manifest.unit_id)
        progress.units(ledger, manifest)
