"""``persona-atlas harm``: does a reply far from the Assistant precede compliance with a harmful request?"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from ....analysis.harm.correlation import Correlation, Estimate
from ....analysis.harm.picture import DriftPicture, draw_drift
from ....analysis.harm.rates import BINS, HarmRate
from ....analysis.sweeping.picture import percent
from ....jobs.judging.rubrics import load_rubric
from ....jobs.personas import DEFAULT_PERSONA
from ....jobs.specs.spec import load_spec
from ....jobs.wording import count_of
from ...labelling.judge import judge_to_show, record_to_keep
from ...run.backend import open_ray_backend
from ...run.prepare import prepare_job
from ...studies.harm import HarmPlan, HarmResults, HarmStudy, harm_plan, require_harm
from ...studies.study_axis import open_study_axis
from .. import output
from ..jobs import plan
from ..options import (
    axis_option,
    join_option,
    json_option,
    layer_option,
    reduction_option,
    set_option,
    spec_argument,
    transfer_option,
)
from ..result_files import picture_to_write
from ..scores.judge_options import JudgeOptions, judge_options, print_judging


@click.command()
@spec_argument
@set_option
@join_option
@axis_option(required=True)
@layer_option
@reduction_option
@transfer_option
@click.option(
    "--rubric",
    default="harm",
    metavar="NAME|FILE",
    show_default=True,
    help="Rubric to judge second replies by; one of your own says in harm which of its labels count.",
)
@judge_options(model_required=False)
@click.option(
    "--bins",
    type=click.IntRange(1, 1000),
    default=BINS,
    show_default=True,
    help="Bins of the projection, by quantiles.",
)
@click.option("--dry-run", is_flag=True, help="Only plan and price it; nothing is made, judged or written.")
@click.option("--png", default=None, type=click.Path(dir_okay=False), help="File for the picture.")
@json_option
def harm(
    spec_file: str,
    overrides: tuple[str, ...],
    address: str | None,
    axis: str,
    layer: int | None,
    reduction: str | None,
    transfer: bool,
    rubric: str,
    judged_by: JudgeOptions,
    bins: int,
    dry_run: bool,
    png: str | None,
    as_json: bool,
) -> int:
    """Ask the roles of SPEC a neutral question and then a request, and set harm against the first reply's projection.

    The section harm of SPEC says which roles and which file of requests. With --model a judge labels the second
    replies. A study that was stopped goes on with the same command: nothing is made or judged twice.
    """
    picture = picture_to_write(png)
    spec = load_spec(spec_file, overrides)
    chosen = load_rubric(rubric)
    asked = require_harm(spec, chosen)
    judge = judged_by.settings() if judged_by.names_a_judge else None
    progress = output.progress()
    job = prepare_job(spec, progress)
    opened, at_layer = open_study_axis(axis, job.plan, layer, reduction=reduction, transfer=transfer)
    if judge is not None:
        record_to_keep(job.location, chosen, judge)
        shown = judge.name
    else:
        shown = judge_to_show(job.location, chosen, judged_by.judge, "run")
    study = HarmStudy(job, opened, at_layer, transfer, chosen, judge, shown, bins, spec.seed)
    if dry_run:
        _show_plan(study, harm_plan(job, asked, chosen), as_json=as_json)
        return 0
    results = study.run(progress, partial(open_ray_backend, address=address))
    if picture is not None:
        _draw(study, results, picture)
    if as_json:
        output.document(_as_dict(study, results, picture))
    else:
        _print(study, results, picture)
    return 0 if results.outcome.is_complete and (results.judging is None or not results.judging.left) else 1


def _show_plan(study: HarmStudy, planned: HarmPlan, *, as_json: bool) -> None:
    job, judge = study.job, study.judge
    cost = None if judge is None else judge.estimate(planned.judge_tokens, planned.conversations)
    if as_json:
        output.document(
            {
                "dry_run": True,
                "store": job.location.url,
                "axis": study.axis.name,
                "layer": study.layer,
                "units_planned": len(job.plan.units),
                "units_missing": job.num_missing,
                **asdict(planned),
                "judging": None if cost is None else asdict(cost),
            }
        )
        return
    for what, figure in plan.lines(job.plan, job.estimate):
        output.text(f"  {what + ':':18}{figure}")
    uses = str(planned.least_uses)
    if planned.most_uses != planned.least_uses:
        uses += f" or {planned.most_uses}"
    output.text(
        f"{count_of(planned.conversations, 'conversation')}; each of {count_of(planned.requests, 'request')} is asked "
        f"{uses} times. {count_of(job.num_missing, 'unit')} missing."
    )
    output.text(f"Projected at layer {study.layer} on the axis of {study.axis.name}.")
    if cost is not None:
        money = "" if cost.usd is None else f", {cost.usd:.2f} USD"
        output.text(f"Judging: about {cost.prompt_tokens:,} tokens in and {cost.reply_tokens:,} out{money}.")


def _draw(study: HarmStudy, results: HarmResults, path: Path) -> None:
    shown = results.shown
    model = study.job.plan.spec.model.display_name
    judged = f", harm as judged by {results.judge}" if results.judge else ", not judged"
    notes = [
        f"{count_of(shown.labelled, 'conversation')} with a label. Bars: Wilson intervals of 95 %, as if replies of a "
        "role were "
        "independent.",
        _relation(shown.rollouts, "rollouts"),
        _relation(shown.roles, "roles"),
    ]
    draw_drift(
        DriftPicture(
            shown.by_bin,
            shown.by_role,
            DEFAULT_PERSONA,
            shown.layer,
            f"{model}{judged}",
            [note for note in notes if note],
        ),
        path,
    )


def _relation(found: Correlation | None, over: str) -> str:
    if found is None:
        return ""
    return f"Over {found.points} {over}: Pearson {_estimate(found.pearson)}, Spearman {_estimate(found.spearman)}."


def _estimate(found: Estimate) -> str:
    ends = "no interval" if found.low is None or found.high is None else f"{found.low:+.2f} to {found.high:+.2f}"
    return f"{found.value:+.2f} ({ends})"


def _as_dict(study: HarmStudy, results: HarmResults, picture: Path | None) -> dict[str, Any]:
    outcome = results.outcome
    return {
        "state": "SUCCEEDED" if outcome.is_complete else "FAILED",
        "store": study.job.location.url,
        "units_planned": outcome.planned,
        "units_done": outcome.done,
        "units_worked": outcome.worked,
        "failures": [
            {"unit_id": failure.unit_id, "attempts": failure.attempt, "error": failure.message}
            for failure in outcome.failures
        ],
        "judging": None if results.judging is None else results.judging.as_dict(),
        "rubric": study.rubric.name,
        "harm_labels": list(study.rubric.harm),
        "judge": results.judge,
        "axis": study.axis.name,
        **results.shown.as_dict(),
        "png": None if picture is None else str(picture),
    }


def _print(study: HarmStudy, results: HarmResults, picture: Path | None) -> None:
    shown = results.shown
    if results.judge is None:
        output.text("Not judged: name a judge with --model.")
    else:
        _print_numbers(study, results)
    for note in shown.notes:
        output.text(note)
    if results.judging is not None and results.judge is not None:
        print_judging(results.judge, results.judging, "label")
    for failure in results.outcome.failures:
        output.text(f"Failed: {failure.unit_id}, {failure.message}")
    output.text(f"Units: {results.outcome.done} of {results.outcome.planned} committed")
    if picture is not None:
        output.text(f"Picture: {picture}")


def _print_numbers(study: HarmStudy, results: HarmResults) -> None:
    shown = results.shown
    relations = [
        [over, str(found.points), _estimate(found.pearson), _estimate(found.spearman)]
        for over, found in (("rollouts", shown.rollouts), ("means of roles", shown.roles))
        if found is not None
    ]
    if relations:
        output.table(
            "Correlation of the first reply's projection with harm in the second",
            ["over", "n", "Pearson", "Spearman"],
            relations,
        )
    output.table("Harm by the projection of the first reply", _HEADING, [_line(one) for one in shown.by_bin])
    output.table("Harm by category of the request", _HEADING, [_line(one) for one in shown.by_category])
    rate = "-" if shown.rate is None else f"{percent(shown.rate)} ({shown.rate_low:.0%}-{shown.rate_high:.0%})"
    output.text(
        f"Harm ({', '.join(study.rubric.harm)}) in {shown.harmful} of {shown.labelled} second replies with a label: "
        f"{rate}. Without: {shown.unlabelled} whose verdict cannot be read, {shown.waiting} not judged, {shown.empty} "
        "empty."
    )
    output.text(
        f"Projections at layer {shown.layer} on the axis of {study.axis.name}, in axis sign: higher is nearer the"
    )
    output.text("Assistant. Correlations: bootstrap over roles; rates: Wilson over replies. Intervals of 95 %.")


_HEADING = ["", "projection", "from", "to", "n", "harm"]


def _line(one: HarmRate) -> list[str]:
    return [
        one.name,
        f"{one.projection:+.1f}",
        f"{one.least:+.1f}",
        f"{one.greatest:+.1f}",
        str(one.replies),
        f"{percent(one.rate)} ({one.low:.0%}-{one.high:.0%})",
    ]
