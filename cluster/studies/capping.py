"""The capping file of one setting of a Pareto study, in the released form."""

from __future__ import annotations

import numpy as np

from ...analysis.axis_source import open_axis
from ...analysis.exchange.capping_file import experiment_of
from ...analysis.exchange.released_files import released_settings, settings_bytes
from ...analysis.exchange.torch_file import CAPPING_SETTINGS, load_plain
from ...analysis.intervening.resolve import resolve_released
from ...jobs.errors import InputError
from ...jobs.files.store_url import is_s3
from ...jobs.interventions import Cap, Edit
from ...jobs.specs.pareto_spec import ParetoSpec
from ..sweeping.prepare import PreparedSetting

_OPTION = "--write-capping"
_FILE = "the capping file"


def refuse_other_positions(spec: ParetoSpec) -> None:
    """Refuse a capping file of a study that caps responses only: the released form caps every token.

    Args:
        spec: The study.

    Raises:
        InputError: It caps responses only.
    """
    if spec.section.positions != "all":
        raise InputError(
            "is in the released form, which caps every token, and this study caps those of the response only.",
            code="no_such_form",
            field=_OPTION,
            hint="Leave pareto.positions out, or leave the file out.",
        )


def capping_content(spec: ParetoSpec, one: PreparedSetting) -> bytes:
    """Make the capping file of a setting, and check that it does what the setting did.

    Args:
        spec: The study.
        one: The setting, a cap.

    Raises:
        InputError: The axis cannot be read any more, or by now has other numbers than the run of the setting.
    """
    section, store = spec.section, spec.sweep.job.store
    cap = spec.cap_of(one.setting)
    edits = one.job.plan.edits
    assert cap is not None
    assert edits is not None
    is_there = is_s3(section.axis) and is_s3(store.url)
    axis = open_axis(
        section.axis,
        reduction=section.reduction,
        endpoint_url=store.endpoint_url if is_there else None,
        access=store.access if is_there else None,
    )
    facts = one.job.plan.facts
    made = released_settings(axis.reduction, facts.n_layers, [range(*cap.layers)])
    setting = next((found for found in made if found.label == cap.percentile), None)
    content = None if setting is None else settings_bytes(axis.reduction, [setting])
    if content is not None:
        caps = experiment_of(load_plain(content, _FILE, CAPPING_SETTINGS), cap.name, _FILE)
        again = resolve_released(caps, facts.n_layers, facts.d_model, source=_FILE)
        pairs = zip(again.edits, edits.intervention.edits, strict=True)
        if all(_is_same(ours, theirs) for ours, theirs in pairs):
            return content
    raise InputError(
        f"the axis in {section.axis} has other thresholds by now than {cap.name} was run with.",
        code="other_axis",
        field=_OPTION,
        hint="Name the reduction that the study was begun with: pareto.reduction.",
    )


def _is_same(one: Edit, other: Edit) -> bool:
    """Whether two caps do the same up to the rounding of the file, whose numbers are float32."""
    return (
        isinstance(one, Cap)
        and isinstance(other, Cap)
        and one.layer == other.layer
        and bool(np.isclose(one.floor, other.floor, rtol=1e-5, atol=1e-6))
        and bool(np.allclose(one.vector.unit, other.vector.unit, atol=1e-6))
    )
