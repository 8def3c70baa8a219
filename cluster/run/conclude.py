"""What follows when the units are done: reduce what is committed and write the report. Knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from ...analysis.reduce import reduce_run
from ...analysis.report import write_report
from ...analysis.summary import Summary, summarise
from ...storage.query.run import Run, open_run
from .job import Job
from .progress import Progress
from .status_reporter import StatusReporter


@dataclass(frozen=True)
class Conclusion:
    """What a run came to.

    Attributes:
        store: The run, open.
        summary: What was found; None when nothing is committed, or it is of nothing that can be compared.
        report_place: Where the report lies; None likewise.
    """

    store: Run
    summary: Summary | None
    report_place: str | None


def conclude(job: Job, progress: Progress, reporter: StatusReporter) -> Conclusion:
    """Reduce what a job has committed and write its report, where that says something.

    Raises:
        StoreError: A committed number is missing or damaged.
        TransientError: The store failed.
    """
    reporter.raise_if_stopped()
    store = open_run(job.location.url, job.plan.spec.store.endpoint_url)
    if not store.committed:
        return Conclusion(store, None, None)
    if not _says_something(store):
        reporter.reduces_nothing()
        return Conclusion(store, None, None)
    progress.say("Reducing.")
    reporter.doing("reducing")
    reduction = reduce_run(store)
    summary = summarise(store, reduction)
    place = write_report(store, reduction)
    reporter.reduced()
    return Conclusion(store, summary, place)


def _says_something(store: Run) -> bool:
    """Whether there is anything to reduce: given conversations are, when they are those of roles and the default.

    Where every token is kept and nothing is pooled there is no vector a rollout to take means of.
    """
    if not store.record.spec.capture.pooled:
        return False
    if not store.record.of_conversations:
        return True
    return {"role", "default"} <= set(store.index["kind"].unique().to_pylist())
