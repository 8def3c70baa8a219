"""``persona-atlas sweep``: the same questions under several settings, judged by a rubric, as a table and a picture."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

import click

from ....jobs.judging.rubrics import load_rubric, rubric_names
from ....jobs.specs.sweep_spec import load_sweep
from ....jobs.wording import count_of
from ...judging.judge_run import Judging
from ...labelling.judge import judge_to_show, label_replies, record_to_keep
from ...pool.session import ray_session
from ...run.backend import open_ray_backend
from ...sweeping.judge import replies_of_sweep
from ...sweeping.prepare import PreparedSweep, prepare_sweep
from ...sweeping.results import GroupBy, SweepResults, open_ruler, results_of
from ...sweeping.run import SweepOutcome, run_sweep
from .. import output
from ..options import join_option, json_option, layer_option, set_option, spec_argument
from ..result_files import picture_to_write
from ..scores.judge_options import JudgeOptions, judge_options
from .sweep_output import draw_sweep, print_sweep

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
@layer_option
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
    judge = judged_by.settings() if judged_by.names_a_judge else None
    progress = output.progress()
    prepared = prepare_sweep(spec, progress)
    progress.say(
        f"{count_of(len(prepared.settings), 'setting')}, {count_of(prepared.num_units, 'unit')}, "
        f"{prepared.num_missing} of them missing."
    )
    if judge is not None:
        # A judge whose name is taken is refused before replies are made for it.
        record_to_keep(prepared.location, chosen, judge)
        shown = judge.name
    else:
        shown = judge_to_show(prepared.location, chosen, judged_by.judge, "sweep")
    ruler = open_ruler(prepared, layer)
    if dry_run:
        _show_plan(prepared, as_json=as_json)
        return 0
    outcome = run_sweep(prepared, progress, partial(open_ray_backend, address=address), partial(ray_session, address))
    judging = None
    if judge is not None:
        judging = label_replies(replies_of_sweep(prepared, chosen, judge.name), judge, progress)
    results = results_of(prepared, ruler, chosen, shown, by=cast("GroupBy", by))
    if picture is not None:
        draw_sweep(spec, results, picture)
    if as_json:
        output.document(_as_dict(prepared, outcome, judging, results, picture))
    else:
        print_sweep(results, outcome, judging, picture)
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
