"""The run loop: hand out, wait, commit, until nothing is left. Knows executors and commits only by their protocols."""

from __future__ import annotations

from collections.abc import Callable

from ..jobs.errors import UnitError
from ..jobs.ledger import Failure, Ledger
from ..storage.records import Manifest
from .executor import Executor
from .patience import patiently
from .progress import Progress

_WAIT_S = 0.5


def drive(ledger: Ledger, executor: Executor, commit: Callable[[Manifest], object], progress: Progress) -> None:
    """Work a ledger off.

    Args:
        ledger: Who does what; holds the result when this returns.
        executor: Started workers.
        commit: Makes an attempt count, unless another of the unit does already.
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
                    _commit(result, commit, ledger, progress)


def _commit(manifest: Manifest, commit: Callable[[Manifest], object], ledger: Ledger, progress: Progress) -> None:
    try:
        patiently(lambda: commit(manifest), progress.say)
    except UnitError as error:
        failure = Failure(manifest.unit_id, manifest.attempt, error.message)
        progress.failed(failure, again=ledger.fail(failure))
    else:
        ledger.commit(manifest.unit_id)
        progress.units(ledger, manifest)
