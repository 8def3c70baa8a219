"""The sections of the page, as HTML: what the script draws into, and a sentence where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ...jobs.wording import count_of
from ...storage.derived.reductions import Reduction
from .notes import massive_layers
from .numbers import Numbers
from .origin import Origin
from .payload import WORDS, default_count, role_counts, trait_counts, trait_unit

_DASH = "\N{EN DASH}"


def head(numbers: Numbers, origin: Origin, notes: Sequence[str], at: int) -> str:
    """Write the title, the key figures and what a reader must know first."""
    needed = numbers.spaces["roles"].needed_SL[0, at] if "roles" in numbers.spaces else 0
    tiles = [
        ("default Assistant's distance from the roles, in standard deviations", "tile-strength", "", ""),
        ("cosine between the axes of two halves of the questions", "tile-half", "tile-half-range", "other roles:"),
        ("cosine of PC1 with the axis", "tile-pc1", "tile-pc1-range", "95 %:"),
        ("components for 70 % of the roles' variance", "tile-needed", "", ""),
    ]
    shown = "".join(
        f"<div><dt>{escape(label)}</dt><dd><span id='{name}'>{needed or _DASH if name == 'tile-needed' else _DASH}</span>"
        + (f" <small id='{more}' title='{prefix}'></small>" if more else "")
        + "</dd></div>"
        for label, name, more, prefix in tiles
    )
    counted = f"{count_of(len(numbers.roles), 'role')}, {count_of(len(numbers.traits), 'trait')}"
    return (
        f"<h1>Personas of {escape(origin.model)}</h1><p class='quiet'>{escape(origin.lead)} {counted}.</p>"
        f"<dl class='tiles'>{shown}</dl>"
        f"<ul class='notes' aria-label='What to know first'>{''.join(f'<li class=note>{escape(n)}</li>' for n in notes)}</ul>"
        f"<ul class='notes' id='layer-notes' aria-live='polite' aria-label='At this layer'></ul>"
    )


def persona_map(reduction: Reduction, numbers: Numbers, layer: int) -> str:
    """Write the map with the panel of the chosen persona."""
    undefined = reduction.undefined("pca")
    drawn = {name for name, space in numbers.spaces.items() if np.isfinite(space.share_LC).any()}
    aside = "<aside id='chosen' aria-live='polite'><p class='quiet'>Choose a persona on the map.</p></aside>"
    find = "<label>Persona <select id='find'></select></label>"
    if not drawn:
        why = f" At layer {layer}: {undefined[layer]}." if layer in undefined else ""
        text = f"There are no principal components of roles: they need at least three role vectors that differ.{why}"
        tools = f"<div class='tools'>{find}</div>" if numbers.roles or numbers.traits else ""
        return _section("No map of personas", _absent(text) + tools + (aside if tools else ""))
    first = "roles" if "roles" in drawn else next(name for name in WORDS if name in drawn)
    names = {"roles": "Roles", "zscored": "Roles, z-scored", "traits": "Trait vectors"}
    spaces = _buttons("space", [(key, names[key]) for key in WORDS if key in drawn], first)
    dims = _buttons("dims", [("2", "2D"), ("3", "3D")], "2") if _has_third(numbers) else ""
    beside = any(space.traits_LTC is not None for name, space in numbers.spaces.items() if name != "traits")
    traits = "<label><input type='checkbox' id='with-traits'> traits beside the roles (mean of the responses that show them)</label>"
    massive = (
        f"<p class='quiet'>Massive activations at {count_of(len(massive_layers(reduction)), 'layer')}: look at the "
        "z-scored map too.</p>"
        if massive_layers(reduction) and "zscored" in drawn
        else ""
    )
    missing = "" if "traits" in drawn or not numbers.traits else _absent(_no_trait_map(numbers))
    legend = (
        "<ul class='legend'><li><span>far from the Assistant</span><span class='ramp' aria-hidden='true'></span>"
        "<span>near (z-score of the projection; of trait vectors: cosine)</span></li><li>&#9679; role</li>"
        "<li>&#9670; trait</li><li>&#9733; the default Assistant</li></ul>"
    )
    chart = (
        "<figure><div class='chart' id='map-chart' tabindex='0' aria-describedby='map-keys'></div>"
        f"{legend}<figcaption id='map-keys'>Hover for numbers; click or tap for responses. With the keyboard: arrow keys "
        "choose the next persona in 2D and turn the map in 3D. In 3D, drag to turn.</figcaption></figure>"
    )
    tools = f"<div class='tools'>{spaces}{dims}{find}{traits if beside else ''}</div>"
    body = f"<p id='map-words'>{WORDS[first]}</p>{massive}{tools}<div class='with-aside'>{chart}{aside}</div>{missing}"
    return _section("The persona map", body)


def _no_trait_map(numbers: Numbers) -> str:
    if len(numbers.traits) < 3:
        return "Trait vectors have no map of their own: components need at least three."
    return "Trait vectors have no map of their own: the reduction holds no principal components of them."


def _has_third(numbers: Numbers) -> bool:
    return any(space.share_LC.shape[1] > 2 for space in numbers.spaces.values())


def axis_by_layer(numbers: Numbers) -> str:
    """Write the three charts over layers, each with a sentence on what is missing."""
    charts = [
        (
            "Strength of the axis",
            "strength-chart",
            numbers.strength_L,
            "Distance between the default Assistant and the mean role (the axis's length), in standard deviations of "
            "the roles along the axis.",
            "There is no axis, or only one role.",
        ),
        (
            "Reliability",
            "half-chart",
            numbers.split_half_L if numbers.split_half_L is not None else _first(numbers.axis_interval_2L),
            "Cosine between the axes of two halves of the questions (line), and between the axis and that of bootstrap "
            "samples of the roles (95 % band). Dashed: 0.8, below which this report calls the axis unreliable.",
            "The reduction holds neither a split-half cosine nor a bootstrap interval of the axis.",
        ),
        (
            "PC1 and the axis",
            "pc1-chart",
            numbers.pc1_L,
            "Cosine of the first principal component with the axis, with its 95 % interval. Dashed: 0.6, which the "
            "models of the paper exceed at every layer.",
            "There is no axis, or there are no principal components.",
        ),
    ]
    shown = "".join(
        f"<div><h3>{title}</h3>"
        + (
            f"<figure><div class='chart' id='{name}'></div><figcaption>{text}</figcaption></figure>"
            if values is not None and np.isfinite(values).any()
            else _absent(absent)
        )
        + "</div>"
        for title, name, values, text, absent in charts
    )
    lead = (
        "<p>The axis is the mean activation of the default Assistant minus the mean of the role vectors. A click on a "
        "chart goes to that layer.</p>"
    )
    return _section("The Assistant Axis by layer", f"{lead}<div class='trio'>{shown}</div>")


def roles_spectrum(numbers: Numbers) -> str:
    """Write the roles ranked by their projection on the axis."""
    body = _absent("There is no axis, so roles have no place on it.")
    if numbers.projection_LP is not None and np.isfinite(numbers.projection_LP).any():
        has_intervals = numbers.interval_2LP is not None and np.isfinite(numbers.interval_2LP).any()
        bars = "Bars are 95 % intervals by a bootstrap over questions." if has_intervals else "There are no intervals."
        body = f"<p class='quiet'>{bars} Right is toward the Assistant; zero has no meaning. n counts rollouts.</p>"
        body += _ranked("roles")
    return _section("Roles along the axis", body)


_TRAIT_KINDS = {
    "pos_neg": "Mean of the trait shown minus mean of its opposite.",
    "pos_neg_50": "Mean difference over pairs whose scores differ by more than 50.",
    "pos_default": "Mean of the trait shown minus the default.",
    "pos_70": "Mean over responses scored 70 or more.",
}


def traits_spectrum(numbers: Numbers, reduction: Reduction) -> str:
    """Write the traits ranked by the cosine of their vectors with the axis."""
    body = _absent("There are no trait vectors, or there is no axis.")
    if numbers.trait_cosine_LT is not None and np.isfinite(numbers.trait_cosine_LT).any():
        kind = _TRAIT_KINDS.get(str(reduction.facts.get("trait_kind", "pos_neg")), "")
        body = (
            f"<p class='quiet'>{kind} Right: showing the trait leads toward the Assistant. n counts "
            f"{trait_unit(reduction)}.</p>" + _ranked("traits")
        )
    return _section("Traits along the axis", body)


def spectra(numbers: Numbers, reduction: Reduction) -> str:
    """Write the spectra side by side, with the variance below the traits where these are few."""
    roles, traits, shares = roles_spectrum(numbers), traits_spectrum(numbers, reduction), variance(numbers)
    rows = [min(len(names), _MOST_ROWS) for names in (numbers.roles, numbers.traits)]
    if rows[0] >= rows[1] + _ROWS_OF_VARIANCE:
        return f"<div class='pair'>{roles}<div>{traits}{shares}</div></div>"
    return f"<div class='pair'>{roles}{traits}</div>{shares}"


_MOST_ROWS = 40
"""Rows of a spectrum until its middle is asked for."""

_ROWS_OF_VARIANCE = 20
"""Height of the section on variance, in rows of a spectrum."""


def _ranked(which: str) -> str:
    return (
        f"<figure><div class='chart' id='{which}-chart'></div></figure>"
        f"<button type='button' id='{which}-all' hidden></button>"
    )


def rollouts(reduction: Reduction, has_histograms: bool, capping: str) -> str:
    """Write the histograms of single rollouts and the thresholds in both signs."""
    chart = _absent("The reduction holds no projections of single rollouts.")
    if has_histograms:
        chart = (
            "<p>Projections of single rollouts, not filtered by score. They are not centred: zero has no meaning. Dotted "
            "lines are floors on +axis. A label is the percentile on &minus;axis, so a quarter of all rollouts lies above "
            "p0.25.</p><figure><div class='chart' id='histogram-chart'></div><ul class='legend'>"
            f"{_stroke('default', '', 'the default Assistant')}{_stroke('role', '7 3', 'roles')}{_stroke('trait', '2 3', 'traits')}"
            "</ul></figure>"
        )
    table = _absent("There are no thresholds: they need an axis and projections.")
    if reduction.floor_on_axis is not None:
        lines = "".join(
            f"<tr><td>{escape(label)}</td><td class='number'>{_DASH}</td><td class='number'>{_DASH}</td></tr>"
            for label in reduction.threshold_labels
        )
        table = (
            "<div class='scroll'><table id='thresholds'><thead><tr><th>label</th><th class='number'>floor on +axis</th>"
            f"<th class='number'>cap on &minus;axis</th></tr></thead><tbody>{lines}</tbody></table></div>"
            "<p class='quiet'>Both say the same: holding the projection on +axis at the floor or above is holding that on "
            "&minus;axis at the cap or below.</p>"
        )
    right = f"<h3>Thresholds at layer <span class='layer-name'></span></h3>{table}{capping}"
    return _section(
        "Single rollouts on the axis", f"<div class='with-aside'><div>{chart}</div><div>{right}</div></div>"
    )


def variance(numbers: Numbers) -> str:
    """Write the cumulative variance over components."""
    if not any(np.isfinite(space.cumulative_LM).any() for space in numbers.spaces.values()):
        return _section("Variance by component", _absent("There are no principal components."))
    return _section(
        "Variance by component",
        "<p id='needed'></p><figure><div class='chart' id='variance-chart'></div><ul class='legend'>"
        f"{''.join(_stroke(*_LINES[name]) for name in WORDS if name in numbers.spaces)}</ul></figure>"
        "<p class='quiet' id='beyond'></p>",
    )


def table(reduction: Reduction, numbers: Numbers, origin: Origin, at: int) -> str:
    """Write every persona with its numbers at the opening layer; the script updates them."""
    lines: list[str] = []
    if numbers.default_L is not None:
        count = default_count(reduction, origin)
        lines.append(_line("default", 0, "the default Assistant", count, numbers.default_L[at], None))
    for kind, names, counts, projection_LN, cosine_LN in (
        ("role", numbers.roles, role_counts(reduction, origin), numbers.projection_LP, numbers.cosine_LP),
        (
            "trait",
            numbers.traits,
            trait_counts(reduction, numbers, origin),
            numbers.trait_projection_LT,
            numbers.trait_cosine_LT,
        ),
    ):
        for i, (name, count) in enumerate(zip(names, counts, strict=True)):
            values = (None if array is None else float(array[at, i]) for array in (projection_LN, cosine_LN))
            lines.append(_line(kind, i, name, count, *values))
    if not lines:
        return _section("Every persona in numbers", _absent("The reduction has no personas."))
    heads = "".join(
        f"<th{' class=number' if i > 1 else ''}>{name}</th>"
        for i, name in enumerate(
            ("persona", "kind", "projection on +axis", "95 % interval", "z among roles", "cosine", "n")
        )
    )
    about = (
        "<p class='quiet'>At layer <span class='layer-name'></span>. Cosine: of a role vector, centred on the roles' mean, "
        "with the axis; of a trait its vector's. Projection of a trait: of the mean of the responses that show it. n: "
        f"rollouts; of traits {trait_unit(reduction)}.</p>"
    )
    return _section(
        "Every persona in numbers",
        f"<details><summary>Table of {count_of(len(lines), 'persona')}</summary>{about}<div class='scroll'><table id='numbers'>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table></div></details>",
    )


def _line(kind: str, i: int, name: str, count: int | None, projection: Any, cosine: Any) -> str:
    cells = [_number(projection), _DASH, _DASH, _number(cosine), _DASH if count is None else f"{count:,}"]
    shown = "".join(f"<td class='number'>{cell}</td>" for cell in cells)
    return f"<tr data-kind='{kind}' data-i='{i}'><td>{escape(name.replace('_', ' '))}</td><td>{kind}</td>{shown}</tr>"


def _number(value: Any) -> str:
    return f"{value:.2f}" if value is not None and np.isfinite(value) else _DASH


def provenance(origin: Origin) -> str:
    """Write where the numbers come from."""
    lines = "".join(f"<tr><th scope='row'>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in origin.lines.items())
    return _section("Provenance", f"<div class='scroll'><table class='provenance'>{lines}</table></div>")


_LINES = {
    "roles": ("role", "", "roles"),
    "zscored": ("default", "6 4", "roles, z-scored"),
    "traits": ("trait", "2 4", "trait vectors"),
}


def _stroke(colour: str, dash: str, text: str) -> str:
    """Write an entry of a legend with the line that it explains."""
    return (
        "<li><svg width='28' height='8' aria-hidden='true'><line x1='0' x2='28' y1='4' y2='4' stroke-width='2.5' "
        f"stroke='var(--{colour})' stroke-dasharray='{dash}'/></svg>{escape(text)}</li>"
    )


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _absent(text: str) -> str:
    return f"<p class='absent'>{escape(text)}</p>"


def _buttons(group: str, options: Sequence[tuple[str, str]], pressed: str) -> str:
    shown = "".join(
        f"<button type='button' data-group='{group}' data-value='{value}' aria-pressed='{str(value == pressed).lower()}'>"
        f"{escape(name)}</button>"
        for value, name in options
    )
    return f"<span role='group' aria-label='{group}'>{shown}</span>"


def _first(values: Any) -> Any:
    return None if values is None else values[0]
