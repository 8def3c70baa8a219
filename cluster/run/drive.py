"""The run loop: hand out, wait, commit, until nothing is left. Knows executors and commits only by their protocols."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ...jobs.errors import UnitError
from ...jobs.scheduling.ledger import Failure, Ledger
from ...storage.format.records import Manifest
from ..pool.executor import Executor
from ..retry import with_retries
from .progress import Progress

_WAIT_S = 0.5
_COMMITTING_WAIT_S = 0.02
"""Commits are looked at between answers; a worker never waits for one."""

_PLENTY = 4
"""Assignments for each worker, two batches: while so many are left, who asks for more is dealt a whole one."""

_COMMITTERS = 64
"""Commits at a time: each is three small requests one after the other, a tenth of a second on S3, and a thousand
workers finish three hundred units in one."""


def drive(
    ledger: Ledger,
    executor: Executor,
    commit: Callable[[Manifest], object],
    progress: Progress,
    look: Callable[[Ledger, Executor], None] = lambda *_: None,
) -> None:
    """Work a ledger off.

    Args:
        ledger: Who does what; holds the result when this returns. Changed by this thread alone.
        executor: Started workers.
        commit: Makes an attempt count, unless another of the unit does already; called from several threads.
        progress: Told of each step.
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
            _assign(ledger, executor)
            for answer in executor.wait(_COMMITTING_WAIT_S if committing else _WAIT_S):
                for manifest in answer.manifests:
                    committing[pool.submit(_commit, commit, manifest, progress, stop)] = manifest
                _fail(answer.failures, answer.worker, ledger, progress)
            for future in [future for future in committing if future.done()]:
                _settle(future, committing.pop(future), ledger, progress)
        look(ledger, executor)
    finally:
        # What is being tried is tried to its end, and not again.
        stop.set()
        pool.shutdown(cancel_futures=True)


def _assign(ledger: Ledger, executor: Executor) -> None:
    # Towards the end little at a time, so that all end together: in a small job that is soon, for those who still load.
    ready, num_workers = executor.ready, executor.num_workers
    for worker in executor.idle:
        is_small = ledger.assignments_left < num_workers
        if attempts := ledger.next_assignment(worker, ready, is_small=is_small):
            executor.assign(worker, attempts)
    for worker in executor.requesting:
        is_small = ledger.assignments_left < _PLENTY * num_workers
        if attempts := ledger.next_assignment(worker, ready, suspects=False, is_small=is_small):
            executor.assign(worker, attempts)


def _fail(failures: Sequence[Failure], worker: str, ledger: Ledger, progress: Progress) -> None:
    lost: list[Failure] = []
    for failure in failures:
        again = ledger.fail(failure, worker)
        if again and failure.is_innocent:
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
