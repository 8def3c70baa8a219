"""Shared by ``run``, ``extract`` and studies: plan a spec, run its missing units, reduce, and print the result."""

from __future__ import annotations

from functools import partial
from typing import Any

from ...jobs.sizing.estimate import estimate
from ...jobs.specs.spec import JobSpec
from ...jobs.wording import count_of
from ...storage.format.layout import SKIPPED
from ..run.backend import open_ray_backend
from ..run.conclude import Conclusion
from ..run.job import Outcome
from ..run.prepare import prepare_job
from ..run.whole_job import finish_job
from . import output, summary_text
from .jobs import plan


def work(spec: JobSpec, address: str | None, *, grow: bool, as_json: bool) -> int:
    """Run a job, or the missing units of one, and print how it ended.

    Args:
        spec: The job.
        address: Ray cluster to join, as ``host:port``; None: Ray is started on this machine.
        grow: Whether the job may add to the run in its store.
        as_json: Print one JSON object instead of text.

    Returns:
        The exit status: 0 when every unit is committed, else 1.

    Raises:
        AtlasError: See ``prepare_job``, ``worked_job`` and ``conclude``.
    """
    outcome, conclusion, num_skipped = run_job(spec, address, grow=grow)
    if as_json:
        output.document(outcome_as_dict(outcome, conclusion) | {"skipped": num_skipped})
    else:
        print_outcome(outcome, conclusion)
        if num_skipped:
            output.text(f"Skipped: {num_skipped:,} that cannot be read, listed in {SKIPPED} of the store")
    return 0 if outcome.is_complete else 1


def run_job(spec: JobSpec, address: str | None, *, grow: bool = False) -> tuple[Outcome, Conclusion, int]:
    """Run a job, or the missing units of one, and reduce it; the plan and progress go to stderr.

    Args:
        spec: The job.
        address: Ray cluster to join, as ``host:port``; None: Ray is started on this machine.
        grow: Whether the job may add to the run in its store.

    Returns:
        How it ended, what was made of it, and how many entries of its input were left out.

    Raises:
        AtlasError: See ``prepare_job``, ``worked_job`` and ``conclude``.
    """
    progress = output.progress()
    job = prepare_job(spec, progress, grow=grow)
    shown, figures = job.plan, job.estimate
    if job.growth is not None:
        progress.say(str(job.growth))
        shown, figures = job.growth.added, estimate(job.growth.added, job.estimate.engine, job.estimate.weights)
    for what, figure in plan.lines(shown, figures):
        progress.say(f"  {what + ':':18}{figure}")
    outcome, conclusion = finish_job(job, progress, partial(open_ray_backend, address=address))
    return outcome, conclusion, len(job.plan.source.skipped)


def print_outcome(outcome: Outcome, conclusion: Conclusion) -> None:
    """Print how a job ended.

    Args:
        outcome: How it ended.
        conclusion: What was made of it.
    """
    if conclusion.summary is not None:
        summary_text.print_summary(conclusion.summary)
    if outcome.failures:
        lines = [[failure.unit_id, str(failure.attempt), failure.message] for failure in outcome.failures]
        output.table("Units that failed", ["unit", "attempts", "last error"], lines)
    output.text(f"Units:   {outcome.done} of {outcome.planned} committed")
    if outcome.worst_relative_error is not None:
        output.text(
            f"Checked: {count_of(outcome.canary_rollouts, 'rollout')} compared with a plain forward pass, relative "
            f"error at most {outcome.worst_relative_error:.1e}"
        )
    if outcome.canaries_above:
        output.text(
            f"Warning: {count_of(outcome.canaries_above, 'rollout')} of these above the limit, or as near to another, "
            "and kept (capture.canary.action: warn)"
        )
    output.text(f"Store:   {conclusion.store.url}")
    if conclusion.report_place is not None:
        output.text(f"Report:  {conclusion.report_place}")


def outcome_as_dict(outcome: Outcome, conclusion: Conclusion) -> dict[str, Any]:
    """Build what ``--json`` prints of how a job ended.

    Args:
        outcome: How it ended.
        conclusion: What was made of it.
    """
    return {
        "state": "SUCCEEDED" if outcome.is_complete else "FAILED",
        "units_done": outcome.done,
        "units_planned": outcome.planned,
        "units_worked": outcome.worked,
        "failures": [
            {"unit_id": f.unit_id, "attempts": f.attempt, "error": f.message, "detail": f.detail}
            for f in outcome.failures
        ],
        "canary_rollouts": outcome.canary_rollouts,
        "canaries_above": outcome.canaries_above,
        "worst_relative_error": outcome.worst_relative_error,
        "store": conclusion.store.url,
        "report": conclusion.report_place,
        "summary": conclusion.summary.as_dict() if conclusion.summary is not None else None,
    }
