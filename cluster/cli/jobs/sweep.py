"""``persona-atlas sweep``: the same questions under several settings, judged by a rubric, as a table and a picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from ....analysis.sweeping.picture import SweepPicture, degenerate_words, percent, write_picture
from ....analysis.sweeping.points import Point
from ....jobs.errors import InputError
from ....jobs.judging.rubrics import Rubric, load_rubric, rubric_names
from ....jobs.specs.sweep_spec import SweepSpec, load_sweep
from ....storage.derived.verdicts import sweep_judges
from ...judging.judge_run import JudgeSettings, Judging
from ...pool.session import ray_session
from ...run.backend import open_ray_backend
from ...sweeping.judge import find_replies, judge_sweep, record_to_keep
from ...sweeping.prepare import PreparedSweep, prepare_sweep
from ...sweeping.results import GroupBy, SweepResults, open_ruler, results_of
from ...sweeping.run import SweepOutcome, run_sweep
from .. import output
from ..options import join_option, json_option, set_option, spec_argument
from ..result_files import picture_to_write
from ..scores.judge_options import JudgeOptions, judge_options, print_judging

_DEFAULT_RUBRIC = "role_adoption"


@click.command()
@spec_argument
@set_option
@join_option
@click.option(
    "--rubric",
    default=None,
    metavar="NAME|FILE",
    help=f"Rubric to judge by: {', '.join(rubric_names())}, or a YAML file; else the spec's, or {_DEFAULT_RUBRIC}.",
)
@judge_options(model_required=False)
@click.option(
    "--by",
    type=click.Choice(["setting", "persona", "prompt"]),
    default="setting",
    show_default=True,
    help="Also count the replies of each persona, or of each system prompt.",
)
@click.option("--layer", type=int, default=None, help="Layer of the projections; by default the axis's middle layer.")
@click.option(
    "--dry-run", is_flag=True, help="Only resolve and plan every setting; nothing is made, judged or written."
)
@click.option("--png", default=None, type=click.Path(dir_okay=False), help="File for the picture.")
@json_option
def sweep(
    spec_file: str,
    overrides: tuple[str, ...],
    address: str | None,
    rubric: str | None,
    judged_by: JudgeOptions,
    by: str,
    layer: int | None,
    dry_run: bool,
    png: str | None,
    as_json: bool,
) -> int:
    """Ask the questions of SPEC under every setting of its section sweep, and count what the replies are.

    Each setting is a run of its own in the folder settings of the store. With --model a judge sorts the replies by the
    labels of a rubric. A sweep that was stopped goes on with the same command: nothing is made or judged twice.
    """
    picture = picture_to_write(png)
    spec = load_sweep(spec_file, overrides)
    chosen = load_rubric(rubric or spec.section.rubric or _DEFAULT_RUBRIC, "--rubric" if rubric else "sweep.rubric")
    judge = judged_by.settings() if _names_a_judge(judged_by) else None
    progress = output.progress()
    prepared = prepare_sweep(spec, progress)
    progress.say(
        f"{len(prepared.settings)} settings, {prepared.num_units} units, {prepared.num_missing} of them missing."
    )
    if judge is not None:
        _refuse_other_judge(prepared, chosen, judge)
    shown = _judge_to_show(prepared, chosen, judge, judged_by)
    ruler = open_ruler(prepared, layer)
    if dry_run:
        _show_plan(prepared, as_json=as_json)
        return 0
    outcome = run_sweep(prepared, progress, partial(open_ray_backend, address=address), partial(ray_session, address))
    judging = None
    if judge is not None:
        judging = judge_sweep(find_replies(prepared, chosen, judge.name), judge, progress)
    results = results_of(prepared, ruler, chosen, shown, by=cast("GroupBy", by))
    if picture is not None:
        write_picture(_picture(spec, results), picture)
    if as_json:
        output.document(_as_dict(prepared, outcome, judging, results, picture))
    else:
        _print(results, outcome, judging, judge, picture)
    return 0 if outcome.is_complete and (judging is None or not judging.left) else 1


def _show_plan(prepared: PreparedSweep, *, as_json: bool) -> None:
    planned: list[dict[str, Any]] = [
        {
            "name": one.setting.name,
            "store": one.job.location.url,
            "edits": [] if one.job.plan.edits is None else one.job.plan.edits.lines,
            "replies": one.job.plan.num_rollouts,
            "units_planned": len(one.job.plan.units),
            "units_missing": one.job.num_missing,
        }
        for one in prepared.settings
    ]
    if as_json:
        output.document({"dry_run": True, "store": prepared.location.url, "settings": planned})
        return
    lines = [
        [one["name"], "; ".join(one["edits"]) or "none", str(one["replies"]), str(one["units_missing"])]
        for one in planned
    ]
    output.table("Settings", ["setting", "edits", "replies", "units missing"], lines)


def _names_a_judge(judged_by: JudgeOptions) -> bool:
    return judged_by.model is not None or judged_by.engine or judged_by.endpoint is not None


def _refuse_other_judge(prepared: PreparedSweep, rubric: Rubric, judge: JudgeSettings) -> None:
    """Refuse a judge whose name is taken before replies are made for it."""
    begun = all(one.job.record is not None for one in prepared.settings)
    if begun:
        record_to_keep(find_replies(prepared, rubric, judge.name), judge)


def _judge_to_show(
    prepared: PreparedSweep, rubric: Rubric, judge: JudgeSettings | None, judged_by: JudgeOptions
) -> str | None:
    """Return the judge whose labels are counted: this call's, the one that is named, or the only one."""
    if judge is not None:
        return judge.name
    known = sweep_judges(prepared.location, rubric.name)
    if judged_by.judge is not None and judged_by.judge not in known:
        raise InputError(
            f"no judge {judged_by.judge!r} has judged this sweep by {rubric.name}.",
            code="no_such_judge",
            field="--judge",
            hint=f"There are {', '.join(known)}." if known else "Name a model that judges: --model.",
        )
    if judged_by.judge is None and len(known) > 1:
        raise InputError(
            "several judges have judged the sweep.",
            code="which_judge",
            field="--judge",
            hint=f"Name {', '.join(known)}.",
        )
    return judged_by.judge or next(iter(known), None)


def _picture(spec: SweepSpec, results: SweepResults) -> SweepPicture:
    model = spec.job.model.source.rsplit("/", 1)[-1]
    judged = f", {results.rubric} as judged by {results.judge}" if results.judge else ""
    replies = sum(point.replies for point in results.points if point.group == "all")
    notes = [f"{replies} replies; bars: Wilson intervals of 95 % over replies.", degenerate_words(results.points)]
    return SweepPicture(results.points, results.labels, f"{model}{judged}", [note for note in notes if note])


def _as_dict(
    prepared: PreparedSweep,
    outcome: SweepOutcome,
    judging: Judging | None,
    results: SweepResults,
    picture: Path | None,
) -> dict[str, Any]:
    settings = [
        {
            "name": one.setting.name,
            "store": one.job.location.url,
            "units_planned": outcome.outcomes[one.setting.name].planned,
            "units_done": outcome.outcomes[one.setting.name].done,
            "failures": [
                {"unit_id": failure.unit_id, "attempts": failure.attempt, "error": failure.message}
                for failure in outcome.outcomes[one.setting.name].failures
            ],
        }
        for one in prepared.settings
    ]
    return {
        "state": "SUCCEEDED" if outcome.is_complete else "FAILED",
        "store": prepared.location.url,
        "units_planned": outcome.planned,
        "units_done": outcome.done,
        "units_worked": outcome.worked,
        "settings": settings,
        "judging": None if judging is None else judging.as_dict(),
        **results.as_dict(),
        "png": None if picture is None else str(picture),
    }


def _print(
    results: SweepResults,
    outcome: SweepOutcome,
    judging: Judging | None,
    judge: JudgeSettings | None,
    picture: Path | None,
) -> None:
    has_groups = any(point.group != "all" for point in results.points)
    heading = ["setting", *(["replies of"] if has_groups else []), "n", *results.labels]
    judged = ["no label"] if results.labels else []
    output.table(
        f"Labels of {results.rubric}, judge {results.judge}" if results.labels else "Replies",
        [*heading, *judged, "repeated", "degenerate", "projection"],
        [_line(point, results, has_groups=has_groups) for point in results.points],
    )
    if results.labels:
        output.text("Shares of the replies with a label, and Wilson intervals of 95 %.")
    if results.axis is not None:
        output.text(f"Projection: mean at layer {results.layer} on the axis of {results.axis}, in axis sign.")
    for note in (*results.notes, degenerate_words(results.points)):
        if note:
            output.text(note)
    if judging is not None and judge is not None:
        print_judging(judge.name, judging, "label")
    for name, one in outcome.outcomes.items():
        for failure in one.failures:
            output.text(f"Failed under {name}: {failure.unit_id}, {failure.message}")
    output.text(f"Units: {outcome.done} of {outcome.planned} committed")
    if picture is not None:
        output.text(f"Picture: {picture}")


def _line(point: Point, results: SweepResults, *, has_groups: bool) -> list[str]:
    rates = [f"{percent(rate.rate)} ({rate.low:.0%}-{rate.high:.0%})" for rate in point.rates]
    missing = [str(point.unlabelled + point.waiting)] if results.labels else []
    projection = "-" if point.projection != point.projection else f"{point.projection:+.1f}"
    group = [point.group] if has_groups else []
    return [
        point.setting,
        *group,
        str(point.replies),
        *rates,
        *missing,
        percent(point.repetition),
        percent(point.degenerate),
        projection,
    ]
