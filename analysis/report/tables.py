"""The sections with tables: thresholds and capping, every persona in numbers, provenance."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from ...jobs.wording import count_of
from ...storage.derived.reductions import Reduction
from ..capping import RECOMMENDED_LABEL, recommended_window
from .markup import DASH, absent, section, stroke
from .numbers import Float64, Numbers
from .origin import Origin
from .payload import num_default, role_counts, trait_counts, trait_unit


def rollouts(reduction: Reduction, origin: Origin, has_histograms: bool) -> str:
    """Write the histograms of single rollouts, and thresholds and capping settings in both signs."""
    chart = absent("The reduction holds no projections of single rollouts.")
    if has_histograms:
        lines = [("default", "", "the default Assistant"), ("role", "7 3", "roles"), ("trait", "2 3", "traits")]
        chart = (
            "<p>Projections of single rollouts, not filtered by score. They are not centred: zero has no meaning. "
            "Dotted lines are floors on +axis. A label is the percentile on &minus;axis, so a quarter of all rollouts "
            "lies above p0.25.</p><figure><div class='chart' id='histogram-chart'></div><ul class='legend'>"
            f"{''.join(stroke(*line) for line in lines)}</ul></figure>"
        )
    body = absent("There are no thresholds: they need an axis and projections.")
    if reduction.floor_on_axis is not None and reduction.threshold_labels:
        body = (
            "<h3>Thresholds at layer <span class='layer-name'></span></h3>"
            f"{_signed_table('thresholds', 'label', [(label, None) for label in reduction.threshold_labels])}"
            "<p class='quiet'>Both say the same: holding the projection on +axis at the floor or above is holding that "
            f"on &minus;axis at the cap or below.</p>{_capping(reduction, origin)}"
        )
    return section("Single rollouts on the axis", f"<div class='with-aside'><div>{chart}</div><div>{body}</div></div>")


def _capping(reduction: Reduction, origin: Origin) -> str:
    """Recommend layers and a percentile to cap at by depth, where they were captured."""
    if origin.n_layers is None:
        return ""
    window = recommended_window(origin.n_layers)
    name = f"layers_{window.start}:{window.stop}-{RECOMMENDED_LABEL}"
    at = {layer: position for position, layer in enumerate(reduction.layers)}
    floors_QL = reduction.floor_on_axis
    assert floors_QL is not None
    if RECOMMENDED_LABEL not in reduction.threshold_labels or not all(layer in at for layer in window):
        text = f"The setting recommended by depth, {name}, needs layers or a percentile that are not here."
        return f"<h3>Activation capping</h3>{absent(text)}"
    floors_L = floors_QL[reduction.threshold_labels.index(RECOMMENDED_LABEL)]
    rows = [(f"layer {layer}", float(floors_L[at[layer]])) for layer in window]
    return (
        f"<h3>Activation capping: {name}</h3><p class='note'>No evaluation has been run. This setting is recommended "
        f"by depth alone: layers {window.start} to {window.stop - 1} of {origin.n_layers} are as deep as those found "
        "best for Qwen 3 32B (46 to 53 of 64) and Llama 3.3 70B (56 to 71 of 80), both at p0.25.</p>"
        f"{_signed_table('capping', 'layer', rows)}"
    )


def _signed_table(name: str, what: str, rows: Sequence[tuple[str, float | None]]) -> str:
    """Write a table of thresholds in both signs; None is filled in by the script."""

    def cell(value: float | None) -> str:
        return f"<td class='number'>{_number(value)}</td>"

    lines = "".join(
        f"<tr><td>{escape(label)}</td>{cell(floor)}{cell(None if floor is None else -floor)}</tr>"
        for label, floor in rows
    )
    return (
        f"<div class='scroll'><table id='{name}'><thead><tr><th>{what}</th><th class='number'>floor on +axis</th>"
        f"<th class='number'>cap on &minus;axis</th></tr></thead><tbody>{lines}</tbody></table></div>"
    )


def every_persona(reduction: Reduction, numbers: Numbers, origin: Origin, at: int) -> str:
    """Write every persona with its numbers at the opening layer; the script updates them.

    Args:
        reduction: The reduction.
        numbers: Its numbers.
        origin: Where it comes from.
        at: Position of the opening layer along the L axis.
    """
    lines = _default_line(reduction, numbers, origin, at)
    lines += _lines("role", numbers.roles, role_counts(reduction, origin), at, numbers.projection_LP, numbers.cosine_LP)
    counts = trait_counts(reduction, numbers, origin)
    lines += _lines("trait", numbers.traits, counts, at, numbers.trait_projection_LT, numbers.trait_cosine_LT)
    if not lines:
        return section("Every persona in numbers", absent("The reduction has no personas."))
    names = ("persona", "kind", "projection on +axis", "95 % interval", "z among roles", "cosine", "n")
    heads = "".join(f"<th{' class=number' if i > 1 else ''}>{name}</th>" for i, name in enumerate(names))
    about = (
        "<p class='quiet'>At layer <span class='layer-name'></span>. Cosine: of a role vector, centred on the roles' "
        "mean, with the axis; of a trait its vector's. Projection of a trait: of the mean of the responses that show "
        f"it. n: rollouts; of traits {trait_unit(reduction)}.</p>"
    )
    return section(
        "Every persona in numbers",
        f"<details><summary>Table of {count_of(len(lines), 'persona')}</summary>{about}<div class='scroll'>"
        f"<table id='numbers'><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></details>",
    )


def _default_line(reduction: Reduction, numbers: Numbers, origin: Origin, at: int) -> list[str]:
    if numbers.default_L is None:
        return []
    return [_line("default", 0, "the default Assistant", num_default(reduction, origin), numbers.default_L[at], None)]


def _lines(
    kind: str,
    names: Sequence[str],
    counts: Sequence[int | None],
    at: int,
    projection_LN: Float64 | None,
    cosine_LN: Float64 | None,
) -> list[str]:
    return [
        _line(
            kind, i, name, count, *(None if values is None else values[at, i] for values in (projection_LN, cosine_LN))
        )
        for i, (name, count) in enumerate(zip(names, counts, strict=True))
    ]


def _line(
    kind: str, i: int, name: str, count: int | None, projection: np.floating | None, cosine: np.floating | None
) -> str:
    cells = [_number(projection), DASH, DASH, _number(cosine), DASH if count is None else f"{count:,}"]
    shown = "".join(f"<td class='number'>{cell}</td>" for cell in cells)
    return f"<tr data-kind='{kind}' data-i='{i}'><td>{escape(name.replace('_', ' '))}</td><td>{kind}</td>{shown}</tr>"


def _number(value: float | np.floating | None) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}") if value is not None and np.isfinite(value) else DASH


def provenance(origin: Origin) -> str:
    """Write where the numbers come from."""
    lines = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in origin.lines.items())
    return section("Provenance", f"<div class='scroll'><table class='provenance'>{lines}</table></div>")
