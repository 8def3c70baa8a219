"""The results of a sweep: its replies with labels, repetition and projections, counted to points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ...analysis.axis_source import AxisSource, open_axis
from ...analysis.harm.changes import HarmChange, harm_changes
from ...analysis.sweeping.points import ALL, Point, Reply, points_of
from ...analysis.sweeping.repetition import repetition_rate
from ...jobs.errors import InputError
from ...jobs.files.store_url import is_s3
from ...jobs.judging.rubrics import Rubric
from ...jobs.poolings import DEFAULT_POOLING
from ...jobs.specs.sweep_spec import SweepSpec
from ...storage.format.layout import RUN_RECORD
from ...storage.query.run import Run
from ..labelling.replies import labels_of
from .judge import run_of
from .prepare import PreparedSetting, PreparedSweep

GroupBy = Literal["setting", "persona", "prompt"]
"""How replies are grouped: not at all, by persona (the category of a file of prompts) and polarity, or by these and the
system prompt."""

_HOOK_POINT = "resid_post"
_ADDRESS = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index", "turn_index")


@dataclass(frozen=True)
class SweepResults:
    """What a sweep shows.

    Attributes:
        points: Of each setting all replies, then those of each group.
        labels: Labels of the rubric; empty without a judge.
        rubric: Name of the rubric; None without a judge.
        judge: Name of the judge; None without one.
        axis: Where the axis of the projections is; None without one.
        layer: Layer of the projections; None without them.
        notes: Sentences about what is missing.
        harm: Labels that count as harm; empty without a judge, or where the rubric names none.
        changes: Change of harm against the setting without edits, prompt by prompt.
    """

    points: tuple[Point, ...]
    labels: tuple[str, ...]
    rubric: str | None
    judge: str | None
    axis: str | None
    layer: int | None
    notes: tuple[str, ...] = ()
    harm: tuple[str, ...] = ()
    changes: tuple[HarmChange, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return {
            "rubric": self.rubric,
            "judge": self.judge,
            "labels": list(self.labels),
            "axis": self.axis,
            "layer": self.layer,
            "notes": list(self.notes),
            "points": [point.as_dict() for point in self.points],
            "harm_labels": list(self.harm),
            "harm_changes": [change.as_dict() for change in self.changes],
        }


@dataclass(frozen=True)
class Ruler:
    """The axis on which replies are projected, at one layer.

    Attributes:
        axis: The axis; None where replies are not projected.
        layer: The layer; None likewise.
        note: Why they are not, in a sentence; empty where they are.
    """

    axis: AxisSource | None
    layer: int | None
    note: str = ""

    def projections(self, run: Run) -> Mapping[int, float]:
        """Return the projection of each reply, by its row; empty without an axis."""
        if self.axis is None or self.layer is None:
            return {}
        found = run.activations(layer=self.layer, hook_point=_HOOK_POINT, pooling=DEFAULT_POOLING)
        values_N = found.values.astype(np.float64) @ self.axis.unit_D(self.layer)
        return dict(zip(found.rollouts["row"].to_pylist(), values_N.tolist(), strict=True))


def results_of(
    sweep: PreparedSweep, ruler: Ruler, rubric: Rubric | None, judge: str | None, *, by: GroupBy = "setting"
) -> SweepResults:
    """Read the replies of a sweep and count them.

    Args:
        sweep: The sweep, complete or not: its committed units are counted.
        ruler: The axis on which replies are projected.
        rubric: The rubric; None without a judge.
        judge: Name of the judge; None without one.
        by: How replies are grouped.

    Raises:
        StoreError: Something stored is damaged.
    """
    judged = None if rubric is None or judge is None else (rubric, judge)
    labels, harm = ((), ()) if judged is None else (judged[0].labels, judged[0].harm)
    points: list[Point] = []
    replies_of: dict[str, list[Reply]] = {}
    for one in sweep.settings:
        replies_of[one.setting.name] = replies = _replies(sweep, one, judged, ruler, by)
        points += points_of(one.setting.name, one.setting.strength, replies, labels, harm)
    notes = [ruler.note] if ruler.note else []
    if judged is None:
        notes.append("Not judged: name a judge with --model.")
    plain = next((one.setting.name for one in sweep.settings if not one.setting.interventions), None)
    if harm and plain is None:
        notes.append("No change of harm is given: no setting leaves the model as it is; add plain.")
    return SweepResults(
        points=tuple(points),
        labels=labels,
        rubric=None if judged is None else judged[0].name,
        judge=None if judged is None else judged[1],
        axis=None if ruler.axis is None else ruler.axis.name,
        layer=ruler.layer,
        notes=tuple(notes),
        harm=harm,
        changes=harm_changes(replies_of, plain, harm) if harm and plain is not None else (),
    )


def _replies(
    sweep: PreparedSweep, one: PreparedSetting, judged: tuple[Rubric, str] | None, ruler: Ruler, by: GroupBy
) -> list[Reply]:
    if one.job.location.size(RUN_RECORD) is None:
        return []
    asked = run_of(one)
    projections = ruler.projections(asked.run)
    labels = {} if judged is None else labels_of(sweep.location, *judged, asked)
    return [
        Reply(
            group=_group(line, by),
            repetition=repetition_rate(line["response_token_ids"][: line["num_content_tokens"]]),
            projection=projections.get(line["row"], float("nan")),
            is_cut=line["finish_reason"] == "length",
            is_empty=not line["has_vector"],
            is_judged=line["row"] in labels,
            label=labels.get(line["row"]),
            address=tuple(line.get(name) for name in _ADDRESS),
        )
        for line in _lines(asked.run)
    ]


def _lines(run: Run) -> Sequence[Mapping[str, Any]]:
    table: pa.Table = run.rollouts()
    address = [name for name in _ADDRESS if name in table.column_names]
    columns = ["row", "finish_reason", "has_vector", "num_content_tokens", "response_token_ids"]
    return table.select([*address, *columns]).to_pylist()


def _group(line: Mapping[str, Any], by: GroupBy) -> str:
    if by == "setting":
        return ""
    opposite = " (opposite)" if line["polarity"] == "neg" else ""
    stands_alone = line["kind"] in ("default", "conversation") and line["persona"] != ALL
    name = line["persona"] if stands_alone else f"{line['kind']} {line['persona']}"
    prompt = f", prompt {line['prompt_index']}" if by == "prompt" else ""
    return f"{name}{opposite}{prompt}"


def open_ruler(sweep: PreparedSweep, layer: int | None = None) -> Ruler:
    """Open the axis of a sweep at a layer that was captured.

    Args:
        sweep: The sweep.
        layer: The layer; None: the middle layer of the axis, or no projections where that is not possible.

    Raises:
        InputError: The layer that was asked for was not captured or has no axis.
    """
    named = _axis_of(sweep.spec)
    capture = sweep.spec.job.capture
    if named is None or _HOOK_POINT not in capture.hook_points or DEFAULT_POOLING not in capture.poolings:
        if layer is not None:
            raise InputError(
                f"needs an axis and the means of {_HOOK_POINT}, and the sweep lacks one of them.",
                code="no_axis",
                field="--layer",
                hint=f"Name sweep.axis, and capture {_HOOK_POINT} with {DEFAULT_POOLING}.",
            )
        missing = "no setting names an axis" if named is None else f"no means of {_HOOK_POINT} were captured"
        return Ruler(None, None, f"No projections: {missing}.")
    axis_url, reduction = named
    store = sweep.spec.job.store
    try:
        axis = open_axis(
            axis_url,
            reduction=reduction,
            endpoint_url=store.endpoint_url if is_s3(axis_url) and is_s3(store.url) else None,
            access=store.access if is_s3(axis_url) and is_s3(store.url) else None,
        )
        chosen = axis.middle if layer is None else layer
        axis.position(chosen)
    except InputError as error:
        if layer is not None:
            raise InputError(
                error.message, code=error.code, field="--layer", file=error.file, hint=error.hint
            ) from None
        # The runs keep their edits when the axis is gone.
        return Ruler(None, None, f"No projections: {error.message}")
    captured = sweep.settings[0].job.plan.layers
    if chosen in captured:
        return Ruler(axis, chosen)
    if layer is not None:
        raise InputError(
            f"layer {layer} was not captured.",
            code="no_such_layer",
            field="--layer",
            hint=f"The runs have {', '.join(map(str, captured))}.",
        )
    return Ruler(None, None, f"No projections: layer {chosen} was not captured.")


def _axis_of(spec: SweepSpec) -> tuple[str, str | None] | None:
    section = spec.section
    if section.axis is not None:
        return section.axis, section.reduction
    entries = (entry for setting in spec.settings for entry in setting.interventions if entry.experiment is None)
    first = next(entries, None)
    return None if first is None else (first.axis, first.reduction)
