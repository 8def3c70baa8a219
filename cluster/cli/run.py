"""``persona-atlas run``: do a job here and now, reduce it, and end with what was found."""

from __future__ import annotations

from typing import Any

import click

from ...jobs.spec import load_spec
from ...jobs.states import JobState
from ...storage.commits import committed_units
from ..board import Board
from ..conclude import Conclusion, conclude
from ..job import Outcome, prepare_job, work_job
from . import output, plan, summary_text
from .options import json_option, set_option, spec_argument


@click.command()
@spec_argument
@set_option
@click.option("--address", default=None, metavar="HOST:PORT", help="Join this Ray cluster; without it, start one here.")
@json_option
def run(spec_file: str, overrides: tuple[str, ...], address: str | None, as_json: bool) -> int:
    """Run the job in SPEC, or what is missing of it, then reduce it and write its report.

    A run that was stopped or killed goes on with the same command: committed units are never done again.
    """
    progress = output.progress()
    spec = load_spec(spec_file, overrides)
    job = prepare_job(spec, progress)
    for what, figure in plan.lines(job.plan, job.estimate):
        progress.say(f"  {what + ':':18}{figure}")
    if job.committed:
        progress.say(f"{len(job.committed)} of {len(job.plan.units)} units are committed already.")
    try:
        with Board() as board:
            outcome = work_job(job, progress, board, address)
            conclusion = conclude(job, progress, board)
            board.end(JobState.SUCCEEDED if outcome.is_complete else JobState.FAILED)
    except KeyboardInterrupt:
        done = len(committed_units(job.location))
        progress.say(f"{done} of {len(job.plan.units)} units are committed and stay; the same command resumes.")
        raise
    if as_json:
        output.document(_as_dict(outcome, conclusion))
    else:
        _print(outcome, conclusion)
    return 0 if outcome.is_complete else 1


def _print(outcome: Outcome, conclusion: Conclusion) -> None:
    if conclusion.summary is not None:
        summary_text.print_summary(conclusion.summary)
    if outcome.failures:
        lines = [[failure.unit_id, str(failure.attempt), failure.message] for failure in outcome.failures]
        output.table("Units that failed", ["unit", "attempts", "last error"], lines)
    output.text(f"Units:   {outcome.done} of {outcome.planned} committed")
    output.text(f"Store:   {conclusion.store.url}")
    if conclusion.report_place is not None:
        output.text(f"Report:  {conclusion.report_place}")


def _as_dict(outcome: Outcome, conclusion: Conclusion) -> dict[str, Any]:
    return {
        "state": "SUCCEEDED" if outcome.is_complete else "FAILED",
        "units_done": outcome.done,
        "units_planned": outcome.planned,
        "units_worked": outcome.worked,
        "failures": [
            {"unit_id": f.unit_id, "attempts": f.attempt, "error": f.message, "detail": f.detail}
            for f in outcome.failures
        ],
        "store": conclusion.store.url,
        "report": conclusion.report_place,
        "summary": conclusion.summary.as_dict() if conclusion.summary is not None else None,
    }
