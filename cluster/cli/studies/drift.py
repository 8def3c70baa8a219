"""``persona-atlas drift``: have the conversations of a drift study, then show where they led the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ....analysis.dialogues.drift import DriftResults, DriftSettings, study_drift
from ....analysis.dialogues.picture import write_picture
from ....jobs.errors import InputError
from ....jobs.sizing.devices import load_devices
from ....jobs.sizing.streaming import estimates_of
from ....jobs.specs.spec import JobSpec, load_spec
from ....jobs.work.units import WorkUnit
from ...run.prepare import sketch_plan
from ...studies.study_axis import open_study_axis
from .. import output
from ..jobs import plan
from ..jobs.streamed_lines import streamed_lines
from ..options import axis_option, join_option, json_option, layer_option, set_option, spec_argument
from ..result_files import picture_to_write
from ..work import outcome_as_dict, print_outcome, run_job
from .turns_output import print_drift


@click.command()
@spec_argument
@set_option
@axis_option(required=False)
@layer_option
@click.option("--png", default=None, type=click.Path(dir_okay=False), help="File for the picture; needs --axis.")
@click.option("--dry-run", is_flag=True, help="Only estimate what the conversations take.")
@join_option
@json_option
def drift(
    spec_file: str,
    overrides: tuple[str, ...],
    axis: str | None,
    layer: int | None,
    png: str | None,
    dry_run: bool,
    address: str | None,
    as_json: bool,
) -> int:
    """Have the conversations of SPEC, or the missing ones, and show how they move along an axis.

    SPEC is a job with a section drift: who plays the user, and about what. A study that was stopped continues with the
    same command; committed conversations are not had again. Without --axis they are only stored, and the command
    trajectories shows them later.
    """
    spec = load_spec(spec_file, overrides)
    _require_study(spec, axis, layer, png)
    if dry_run:
        _show_plan(spec, as_json=as_json)
        return 0
    picture = picture_to_write(png)
    # An axis that cannot be used is refused before any conversation is had.
    opened = None if axis is None else open_study_axis(axis, sketch_plan(spec, output.progress()).plan, layer)[0]
    outcome, conclusion, _ = run_job(spec, address)
    results: DriftResults | None = None
    if opened is not None and outcome.done:
        results = study_drift(conclusion.store, opened, DriftSettings(layer))
        if picture is not None:
            write_picture(results, picture)
    if as_json:
        output.document(
            outcome_as_dict(outcome, conclusion)
            | {"drift": None if results is None else results.as_dict()}
            | {"png": None if picture is None or results is None else str(picture)}
        )
    else:
        print_outcome(outcome, conclusion)
        if results is not None:
            print_drift(results, picture)
        elif outcome.done:
            output.text(f"Next:    persona-atlas trajectories {conclusion.store.url} --axis AXIS")
    return 0 if outcome.is_complete else 1


def _require_study(spec: JobSpec, axis: str | None, layer: int | None, png: str | None) -> None:
    """Refuse a job that is no drift study, and options that would do nothing."""
    if spec.drift is None:
        raise InputError(
            "is required and missing.",
            code="no_drift",
            field="drift",
            hint="Name in it who plays the user (docs/spec.md); persona-atlas run runs other jobs.",
        )
    for name, value in (("--layer", layer), ("--png", png)):
        if value is not None and axis is None:
            raise InputError(
                "has no effect without an axis.", code="no_axis", field=name, hint="Name one with --axis, as a run."
            )


def _show_plan(spec: JobSpec, *, as_json: bool) -> None:
    """Print what the conversations take; nothing is run."""
    sketch = sketch_plan(spec, output.progress())
    table = load_devices().of_kind(spec.placement.device)
    figures = plan.main_figures(estimates_of(sketch.plan, table), table)
    if as_json:
        document: dict[str, Any] = plan.as_dict(sketch.plan, figures, sketch.facts_from)
        output.document(document | {"conversations": _num_conversations(sketch.plan.units)})
        return
    lines = [*plan.lines(sketch.plan, figures), *streamed_lines(sketch.plan, figures, table)]
    output.table("Drift study", ["", ""], [["conversations", f"{_num_conversations(sketch.plan.units):,}"], *lines])


def _num_conversations(units: Sequence[WorkUnit]) -> int:
    return len({index for unit in units for index in unit.conversation_indices or ()})
