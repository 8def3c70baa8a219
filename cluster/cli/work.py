"""What ``run`` and ``extract`` do once there is a spec: plan, work, reduce where that says something, tell the end."""

from __future__ import annotations

from typing import Any

from ...analysis.reduce import reduce_run
from ...analysis.report import write_report
from ...analysis.summary import Summary, summarise
from ...jobs.spec import JobSpec
from ...storage.commits import committed_units
from ...storage.query import Run, open_run
from ..job import Outcome, prepare_job, work_job
from . import output, plan, summary_text


def work(spec: JobSpec, address: str | None, *, as_json: bool) -> int:
    """Do a job, or what is missing of it, and print how it ended.

    Args:
        spec: What to do.
        address: Of a Ray cluster; None starts Ray here.
        as_json: Whether a program reads the end.

    Returns:
        The exit status: 0 when every unit is committed, else 1.

    Raises:
        AtlasError: See ``prepare_job`` and ``work_job``.
    """
    progress = output.progress()
    job = prepare_job(spec, progress)
    for what, figure in plan.lines(job.plan, job.estimate):
        progress.say(f"  {what + ':':18}{figure}")
    if job.committed:
        progress.say(f"{len(job.committed)} of {len(job.plan.units)} units are committed already.")
    try:
        outcome = work_job(job, progress, address)
    except KeyboardInterrupt:
        done = len(committed_units(job.location))
        progress.say(f"{done} of {len(job.plan.units)} units are committed and stay; the same command resumes.")
        raise
    store = open_run(job.location.url, spec.store.endpoint_url)
    found, report_place = None, None
    if store.committed and _says_something(store):
        progress.say("Reducing.")
        reduction = reduce_run(store)
        found = summarise(store, reduction)
        report_place = write_report(store, reduction)
    if as_json:
        output.document(_as_dict(outcome, store, found, report_place))
    else:
        _print(outcome, store, found, report_place)
    return 0 if outcome.is_complete else 1


def _says_something(store: Run) -> bool:
    """Whether there is anything to reduce: given conversations are, when they are those of roles and the default."""
    if not store.record.of_conversations:
        return True
    return {"role", "default"} <= set(store.index["kind"].unique().to_pylist())


def _print(outcome: Outcome, store: Run, found: Summary | None, report_place: str | None) -> None:
    if found is not None:
        summary_text.print_summary(found)
    if outcome.failures:
        lines = [[failure.unit_id, str(failure.attempt), failure.message] for failure in outcome.failures]
        output.table("Units that failed", ["unit", "attempts", "last error"], lines)
    output.text(f"Units:   {outcome.done} of {outcome.planned} committed")
    output.text(f"Store:   {store.url}")
    if report_place is not None:
        output.text(f"Report:  {report_place}")


def _as_dict(outcome: Outcome, store: Run, found: Summary | None, report_place: str | None) -> dict[str, Any]:
    return {
        "state": "SUCCEEDED" if outcome.is_complete else "FAILED",
        "units_done": outcome.done,
        "units_planned": outcome.planned,
        "units_worked": outcome.worked,
        "failures": [
            {"unit_id": f.unit_id, "attempts": f.attempt, "error": f.message, "detail": f.detail}
            for f in outcome.failures
        ],
        "store": store.url,
        "report": report_place,
        "summary": found.as_dict() if found is not None else None,
    }
