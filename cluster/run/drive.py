"""The run loop: assign, wait, commit, until nothing is left. Knows executors and commits only by their protocols."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

from ...jobs.errors import UnitError
from ...jobs.scheduling.assignment import assign_work
from ...jobs.scheduling.ledger import Failure, Ledger
from ...storage.format.records import Manifest
from ..pool.executor import Executor
from ..retry import with_retries
from .progress import Progress

_WAIT_S = 0.5
_COMMITTING_WAIT_S = 0.02
"""Shorter timeout while commits are in progress, because finished commits are handled between waits for answers.
Workers never wait for a commit."""

_COMMITTERS = 64
"""Concurrent commits. A commit is three small sequential requests, about 0.1 s on S3, and a thousand workers may finish
three hundred units per second."""


def drive(
    ledger: Ledger,
    executor: Executor,
    commit: Callable[[Manifest], object],
    progress: Progress,
    on_turn: Callable[[Ledger, Executor], None] = lambda *_: None,
    require_store: Callable[[], None] = lambda: None,
) -> None:
    """Run all units of a ledger that are not done.

    Args:
        ledger: The units; has their final states when this returns. Only this thread changes it.
        executor: The executor, with its workers started.
        commit: Commits an attempt, unless another attempt of its unit is committed already; called from several
            threads.
        progress: Prints what happens.
        on_turn: Called in every turn of the loop, several times per second; an exception that it raises ends the loop.
        require_store: Called when a worker could not write a unit that it has made; an exception that it raises ends
            the loop. The unit is made again only if the store can be written from here.

    Raises:
        StoreError: The lease was lost.
        TransientError: A commit failed, after retries, or a unit could not be written, and not from here either.
        JobError: No worker is left, or ``on_turn`` raised it because the job is to stop.
    """
    progress.units(ledger, None)
    committing: dict[Future[object], Manifest] = {}
    stop = threading.Event()
    pool = ThreadPoolExecutor(_COMMITTERS, thread_name_prefix="commit")
    try:
        while not ledger.is_over:
            on_turn(ledger, executor)
            for assignment in assign_work(ledger, executor):
                executor.assign(assignment.worker, assignment.attempts)
            answers = executor.wait(_COMMITTING_WAIT_S if committing else _WAIT_S)
            for manifest in (manifest for answer in answers for manifest in answer.manifests):
                committing[pool.submit(_commit, commit, manifest, progress, stop)] = manifest
            failures = [failure for answer in answers for failure in answer.failures]
            if failures:
                # Nothing is said to be tried again, nor is it, once the job was asked to stop.
                on_turn(ledger, executor)
            if any(failure.is_store_fault for failure in failures):
                require_store()
            for answer in answers:
                _fail(answer.failures, answer.worker, ledger, progress)
            for future in [future for future in committing if future.done()]:
                _settle(future, committing.pop(future), ledger, progress)
        on_turn(ledger, executor)
    finally:
        # Commits in progress are finished but not retried; those that have not started are dropped.
        stop.set()
        pool.shutdown(cancel_futures=True)


def _fail(failures: Sequence[Failure], worker: str, ledger: Ledger, progress: Progress) -> None:
    lost: list[Failure] = []
    for each in failures:
        # The store can be written from here: the worker or its node is at fault, and not the unit.
        failure = replace(each, is_worker_fault=True) if each.is_store_fault else each
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
