"""The run loop: hand out, wait, commit, until nothing is left. Knows executors and commits only by their protocols."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..jobs.errors import TransientError
from ..jobs.ledger import Failure, Ledger
from ..storage.records import Manifest
from .executor import Executor
from .progress import Progress

_WAIT_S = 0.5
_COMMIT_TRIES = 6


def drive(ledger: Ledger, executor: Executor, commit: Callable[[Manifest], bool], progress: Progress) -> None:
    """Work a ledger off.

    Args:
        ledger: Who does what; holds the result when this returns.
        executor: Started workers.
        commit: Makes an attempt count; False when the unit was committed already.
        progress: Told of each step.

    Raises:
        StoreError: The lease was lost.
        TransientError: A commit could not be written in several tries.
        JobError: No worker is left.
    """
    progress.units(ledger, None)
    while not ledger.is_over:
        while executor.num_idle and (orders := ledger.next_assignment()):
            executor.hand_out(orders)
        for answer in executor.wait(_WAIT_S):
            for result in answer.results:
                if isinstance(result, Failure):
                    again = ledger.fail(result)
                    progress.failed(result, again=again)
                else:
                    _commit_patiently(commit, result, progress)
                    ledger.commit(result.unit_id)
                    progress.units(ledger, result)


def _commit_patiently(commit: Callable[[Manifest], bool], manifest: Manifest, progress: Progress) -> None:
    for attempt in range(_COMMIT_TRIES):
        try:
            commit(manifest)
        except TransientError as error:
            if attempt == _COMMIT_TRIES - 1:
                raise
            progress.say(f"The commit of {manifest.unit_id} failed and is tried again: {error.message}")
            time.sleep(2.0**attempt / 4)
        else:
            return
