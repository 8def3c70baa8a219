"""Resolve the section ``interventions`` of a job spec: open each axis, check its model, and take its numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...jobs.errors import InputError
from ...jobs.files.store_url import is_s3
from ...jobs.interventions import Intervention
from ...jobs.model_facts import ModelFacts
from ...jobs.specs.interventions_spec import InterventionSpec
from ...jobs.specs.store_spec import S3Access, StoreSpec
from ...jobs.work.run_edits import ResolvedEntry, RunEdits
from ..axis_source import AxisSource, open_axis
from ..exchange.capping_file import read_experiment
from .resolve import resolve, resolve_released


@dataclass(frozen=True)
class EditedModel:
    """The model that is edited.

    Attributes:
        source: As the spec names it.
        n_layers: Decoder layers.
        d_model: Width of the residual stream.
        fingerprint: Fingerprint of its files; empty where they were not read.
    """

    source: str
    n_layers: int
    d_model: int
    fingerprint: str = ""

    @classmethod
    def of(cls, source: str, facts: ModelFacts) -> EditedModel:
        """Take it from a model's facts."""
        return cls(source, facts.n_layers, facts.d_model, facts.fingerprint)


def resolve_section(
    entries: Sequence[InterventionSpec],
    model: EditedModel,
    store: StoreSpec,
    say: Callable[[str], None] = lambda _: None,
) -> RunEdits:
    """Resolve the entries of ``interventions`` to the edits of a run.

    Args:
        entries: At least one.
        model: The model that is edited.
        store: The job's store: an axis on S3 is read from the same server, with the same access, if that is on S3 too.
        say: Called with a sentence about an axis of another model.

    Raises:
        InputError: An axis cannot be opened, is of another model, or lacks what an entry asks for; names the field.
        StoreError: The store of an axis is damaged.
    """
    opened: dict[tuple[str, str | None], AxisSource] = {}
    resolved: list[ResolvedEntry] = []
    for number, entry in enumerate(entries):
        prefix = f"interventions.{number}."
        endpoint_url, access = (store.endpoint_url, store.access) if is_s3(store.url) else (None, None)
        if entry.experiment is not None:
            resolved.append(_of_experiment(entry, model, endpoint_url, prefix))
            continue
        key = (entry.axis, entry.reduction)
        if key not in opened:
            opened[key] = _open(entry, endpoint_url, access, prefix)
        axis = opened[key]
        note = _require_model(axis, entry, model, prefix)
        if note:
            say(note)
        found = resolve(entry, axis, model.n_layers, model.d_model, prefix=prefix)
        resolved.append(_entry(entry, axis.name, found, axis.model.source, axis.reduction.reduction_id, note))
    return RunEdits(tuple(resolved))


def _entry(
    entry: InterventionSpec,
    source: str,
    found: Intervention,
    model: str | None = None,
    reduction: str | None = None,
    note: str = "",
) -> ResolvedEntry:
    return ResolvedEntry(entry.asked, source, found.edits, model, reduction, note)


def _open(entry: InterventionSpec, endpoint_url: str | None, access: S3Access | None, prefix: str) -> AxisSource:
    try:
        return open_axis(
            entry.axis,
            reduction=entry.reduction,
            endpoint_url=endpoint_url if is_s3(entry.axis) else None,
            access=access if is_s3(entry.axis) else None,
        )
    except InputError as error:
        hint = error.hint
        if entry.axis.endswith(".pt"):
            hint = "A released capping file has its settings by name: add experiment, such as layers_46:54-p0.25."
        name = "reduction" if error.code == "no_such_reduction" else "axis"
        where = "" if error.file is None else f" ({error.file})"
        raise InputError(
            f"{error.message.rstrip('.')}{where}.", code=error.code, field=f"{prefix}{name}", hint=hint
        ) from None


def _require_model(axis: AxisSource, entry: InterventionSpec, model: EditedModel, prefix: str) -> str:
    try:
        note = axis.require_model(
            n_layers=model.n_layers,
            d_model=model.d_model,
            source=model.source,
            fingerprint=model.fingerprint,
            transfer=entry.transfer,
            field=f"{prefix}axis",
        )
    except InputError as error:
        if error.code != "other_model":
            raise
        raise InputError(
            error.message,
            code=error.code,
            field=error.field,
            hint="Add transfer: true to the entry where that is meant, as for a fine-tune of the axis's model.",
        ) from None
    return "" if note is None else f"The axis is that of {axis.model.source}, not of {model.source}."


def _of_experiment(entry: InterventionSpec, model: EditedModel, endpoint_url: str | None, prefix: str) -> ResolvedEntry:
    assert entry.experiment is not None
    try:
        caps = read_experiment(entry.axis, entry.experiment, endpoint_url=endpoint_url if is_s3(entry.axis) else None)
    except InputError as error:
        name = "experiment" if error.code == "no_such_experiment" else "axis"
        where = "" if error.file is None else f" ({error.file})"
        raise InputError(
            f"{error.message.rstrip('.')}{where}.", code=error.code, field=f"{prefix}{name}", hint=error.hint
        ) from None
    found = resolve_released(
        caps, model.n_layers, model.d_model, source=entry.axis, positions=entry.positions, prefix=prefix
    )
    return _entry(entry, entry.axis, found)
