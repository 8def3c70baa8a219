"""Scores and the reduction of a run that reads the responses of another: as those of that one."""

from __future__ import annotations

from typing import Any

from ...analysis.reduction.settings import asked_of
from ...jobs.specs.spec import JobSpec
from ...jobs.wording import count_of
from ...storage.derived.reductions import read_current_reduction
from ...storage.derived.score_copies import copy_scores
from ...storage.query.run import Run
from .open_source import replayed_run
from .progress import Progress

_ASKED = ("judge", "min_score", "min_count", "percentiles")


def take_scores(spec: JobSpec, store: Run, progress: Progress) -> dict[str, Any]:
    """Copy the scores of the responses that a job has read again, and find out how their run was reduced.

    Args:
        spec: The job.
        store: Its run, opened since its last unit was committed.
        progress: Prints how many scores were copied.

    Returns:
        What the first reduction of the job's run is to be asked for, as keywords of ``reduce_run``: what the current
        reduction of the other run was asked for. Empty where it has none, or where the job reads no run again.

    Raises:
        InputError: The run whose responses were read is not there any more.
        StoreError: Its scores or its reduction are damaged.
    """
    read = replayed_run(spec)
    if read is None:
        return {}
    for copied in copy_scores(read.location, read.index, store.location, store.index):
        if copied.is_other:
            progress.say(f"Warning: another judge {copied.judge!r} has scored this run; its scores are kept.")
        else:
            progress.say(f"{count_of(copied.num_copied, 'score')} of the judge {copied.judge!r} taken from {read.url}.")
    reduction = read_current_reduction(read.location)
    if reduction is None:
        return {}
    asked = {name: value for name, value in asked_of(reduction.facts).items() if name in _ASKED}
    # Another judge may have come since; the one whose scores it was made by is meant.
    return asked | {"judge": reduction.facts.get("judge") or "none"}
