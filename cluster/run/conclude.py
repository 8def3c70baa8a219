"""After the last unit: reduce the committed units and write the report. Does not import Ray."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ...analysis.reduce import reduce_again, reduce_run, without_scores_if_too_few
from ...analysis.report import write_report
from ...analysis.summary import Summary, summarise
from ...jobs.errors import InputError
from ...storage.derived.reductions import Reduction, read_current_reduction
from ...storage.query.run import Run, open_run
from ..pool.ray_map import mapper_here
from .prepare import Job
from .progress import Progress
from .replayed_scores import take_scores
from .status_reporter import StatusReporter


@dataclass(frozen=True)
class Conclusion:
    """The results of a run.

    Attributes:
        store: The run, opened for reading.
        summary: Summary of the reduction; None without one: nothing is committed, or the run has no groups to compare.
        report_place: URL or path of the report; None without a reduction.
    """

    store: Run
    summary: Summary | None
    report_place: str | None


def conclude(job: Job, progress: Progress, reporter: StatusReporter, *, reduces: bool = True) -> Conclusion:
    """Reduce the committed units of a job and write the report, if the run has groups to compare.

    Args:
        job: The prepared job.
        progress: Prints a line before the reduction.
        reporter: Status of the driver.
        reduces: Whether it is to be reduced; if not, the run is opened and nothing else.

    Raises:
        StoreError: A committed value is missing or damaged.
        TransientError: The store failed.
        JobStoppedError: The job was asked to end.
    """
    reporter.raise_if_stopped()
    store = open_run(job.location.url, job.location.endpoint_url, job.plan.spec.store.access)
    if not store.committed:
        return Conclusion(store, None, None)
    asked = take_scores(job.plan.spec, store, progress)
    if not reduces or not _can_be_reduced(store):
        reporter.skip_reduction()
        return Conclusion(store, None, None)
    progress.say("Reducing the committed units.")
    reporter.set_phase("reducing")
    reduction = _reduce(store, progress, reporter, asked)
    summary = summarise(store, reduction)
    place = write_report(store, reduction)
    reporter.finish_reduction()
    return Conclusion(store, summary, place)


def _reduce(store: Run, progress: Progress, reporter: StatusReporter, asked: dict[str, Any]) -> Reduction:
    """Reduce by what the last reduction was asked for, or by ``asked``; without scores where they leave no role."""

    def say(line: str) -> None:
        reporter.raise_if_stopped()
        progress.say(line)

    try:
        if asked and read_current_reduction(store.location) is None:
            return reduce_run(store, **asked, say=say, mapper=mapper_here())
        return reduce_again(store, say=say, mapper=mapper_here())
    except InputError as error:
        return without_scores_if_too_few(store, error, say=say, mapper=mapper_here())


def _can_be_reduced(store: Run) -> bool:
    """Whether means and an axis exist: of given conversations, only if they are responses of roles and the default.

    A run that keeps every token and pools nothing has no vector per rollout to average.
    """
    if not store.record.spec.capture.pooled:
        return False
    if not store.record.of_conversations:
        return True
    return {"role", "default"} <= set(store.index["kind"].unique().to_pylist())
