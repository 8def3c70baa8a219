"""``persona-atlas pareto``: windows of layers and percentiles, harm change against capability change, and the front."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import click

from ....jobs.errors import InputError
from ....jobs.judging.rubrics import Rubric, load_rubric
from ....jobs.machine_faults import refuse_machine_fault
from ....jobs.specs.pareto_spec import load_pareto
from ....jobs.wording import count_of
from ...judging.judge_run import JudgeSettings
from ...labelling.judge import judge_to_show, label_replies, record_to_keep
from ...pool.session import ray_session
from ...run.backend import open_ray_backend
from ...studies.capping import capping_content, refuse_other_positions
from ...studies.pareto import (
    ParetoResults,
    PreparedPareto,
    evaluate_missing,
    harm_labels,
    harm_rates,
    missing_tasks,
    pareto_results,
    prepare_pareto,
    task_results,
)
from ...sweeping.judge import replies_of_sweep
from ...sweeping.run import run_sweep
from .. import output
from ..options import join_option, json_option, set_option, spec_argument
from ..result_files import file_to_write, picture_to_write
from ..scores.judge_options import JudgeOptions, judge_options
from .pareto_output import ParetoEnding, draw_pareto, pareto_as_dict, print_pareto


@click.command()
@spec_argument
@set_option
@join_option
@judge_options(model_required=False)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Only resolve and plan every setting and find the tasks; nothing is made or written.",
)
@click.option("--png", default=None, type=click.Path(dir_okay=False), help="File for the picture.")
@click.option(
    "--write-capping",
    default=None,
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write the chosen setting as a capping file in the released form.",
)
@json_option
def pareto(
    spec_file: str,
    overrides: tuple[str, ...],
    address: str | None,
    judged_by: JudgeOptions,
    dry_run: bool,
    png: str | None,
    write_capping: str | None,
    as_json: bool,
) -> int:
    """Compare the caps of SPEC's section pareto: what each changes in harm, and what it costs in capability.

    Every window of layers with every percentile is a setting of a sweep, beside the model as it is. A judge labels the
    replies, lm-evaluation-harness asks its tasks under each setting, and the settings that no other betters in both
    are named. The same command goes on where it was stopped: nothing is made, judged or evaluated twice.
    """
    picture, capping = picture_to_write(png), file_to_write(write_capping, "--write-capping")
    spec = load_pareto(spec_file, overrides)
    rubric = load_rubric(spec.section.harm.rubric, "pareto.harm.rubric")
    counted = harm_labels(spec, rubric)
    if capping is not None:
        refuse_other_positions(spec)
    judge = judged_by.settings() if judged_by.names_a_judge else None
    progress = output.progress()
    study = prepare_pareto(spec, progress)
    shown = _judge(study, rubric, judge, judged_by.judge, may_lack=dry_run)
    missing = missing_tasks(study)
    progress.say(
        f"{count_of(len(study.sweep.settings), 'setting')}: {study.sweep.num_missing} of {study.sweep.num_units} units "
        "missing, "
        f"{count_of(len(missing), 'task')} to evaluate."
    )
    if dry_run:
        _show_plan(study, as_json=as_json)
        return 0
    assert shown is not None
    outcome = run_sweep(
        study.sweep, progress, partial(open_ray_backend, address=address), partial(ray_session, address)
    )
    judging = None
    if judge is not None:
        judging = label_replies(replies_of_sweep(study.sweep, rubric, judge.name), judge, progress)
    evaluated = evaluate_missing(study, progress)
    harm = harm_rates(study.sweep, rubric, shown, counted)
    results = pareto_results(study, task_results(study), harm)
    if picture is not None:
        draw_pareto(study, results, f"{', '.join(counted)} as judged by {shown}", picture)
    written = None if capping is None else _write_capping(study, results, capping)
    ending = ParetoEnding(outcome, judging, evaluated, shown, counted, picture, written)
    if as_json:
        output.document(pareto_as_dict(study, results, ending))
    else:
        print_pareto(study, results, ending)
    is_whole = outcome.is_complete and (judging is None or not judging.left) and results.capability is not None
    return 0 if is_whole and (capping is None or written is not None) else 1


def _judge(
    study: PreparedPareto, rubric: Rubric, judge: JudgeSettings | None, named: str | None, *, may_lack: bool
) -> str | None:
    """Name the judge whose labels count, and refuse to begin without one, or with one whose name is taken."""
    location = study.sweep.location
    if judge is not None:
        record_to_keep(location, rubric, judge)
        return judge.name
    found = judge_to_show(location, rubric, named, "study")
    if found is None and not may_lack:
        raise InputError(
            "nobody has judged these replies, and harm is a rate of their labels.",
            code="no_judge",
            field="--model",
            hint="Name a judge: --endpoint URL --model NAME, or --engine --model NAME.",
        )
    return found


def _show_plan(study: PreparedPareto, *, as_json: bool) -> None:
    missing = [(one.setting.name, task) for one, task in missing_tasks(study)]
    planned: list[dict[str, Any]] = [
        {
            "name": one.setting.name,
            "store": one.job.location.url,
            "edits": [] if one.job.plan.edits is None else one.job.plan.edits.lines,
            "replies": one.job.plan.num_rollouts,
            "units_planned": len(one.job.plan.units),
            "units_missing": one.job.num_missing,
            "tasks_missing": [task for name, task in missing if name == one.setting.name],
        }
        for one in study.sweep.settings
    ]
    if as_json:
        output.document({"dry_run": True, "store": study.sweep.location.url, "settings": planned})
        return
    lines = [
        [
            one["name"],
            "; ".join(one["edits"]) or "none",
            str(one["replies"]),
            str(one["units_missing"]),
            ", ".join(one["tasks_missing"]) or "none",
        ]
        for one in planned
    ]
    output.table("Settings", ["setting", "edits", "replies", "units missing", "tasks missing"], lines)


def _write_capping(study: PreparedPareto, results: ParetoResults, path: Path) -> Path | None:
    if results.chosen is None:
        return None
    one = next(one for one in study.sweep.settings if one.setting.name == results.chosen.name)
    content = capping_content(study.spec, one)
    try:
        path.write_bytes(content)
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"{path} cannot be written: {error.strerror or error}.",
            code="not_writable",
            field="--write-capping",
            hint="Choose a file in an existing, writable folder.",
        ) from error
    return path
