"""The sections of the page, as HTML: what the script draws into, and a sentence where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ...jobs.wording import count_of
from ...storage.derived.reductions import Reduction
from .markup import DASH, absent, buttons, section, stroke
from .notes import massive_layers
from .numbers import Numbers
from .origin import Origin
from .payload import WORDS, trait_unit


def head(numbers: Numbers, origin: Origin, notes: Sequence[str]) -> str:
    """Write the title, the key figures and what a reader must know first."""
    tiles = [
        ("default Assistant's distance from the roles, in standard deviations", "tile-strength", ""),
        ("cosine between the axes of two halves of the questions", "tile-half", ""),
        ("cosine of PC1 with the axis", "tile-pc1", "tile-pc1-range"),
        ("components for 70 % of the roles' variance", "tile-needed", ""),
    ]
    shown = "".join(
        f"<div><dt>{escape(label)}</dt><dd><span id='{name}'>{DASH}</span>"
        f"{f' <small id={more}></small>' if more else ''}</dd></div>"
        for label, name, more in tiles
    )
    counted = f"{count_of(len(numbers.roles), 'role')}, {count_of(len(numbers.traits), 'trait')}"
    known = "".join(f"<li class='note'>{escape(note)}</li>" for note in notes)
    return (
        f"<h1>Personas of {escape(origin.model)}</h1><p class='quiet'>{escape(origin.lead)} {counted}.</p>"
        f"<dl class='tiles'>{shown}</dl>"
        f"<ul class='notes' id='notes' aria-live='polite' aria-label='What to know first'>{known}</ul>"
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
        return section("No map of personas", absent(text) + tools + (aside if tools else ""))
    first = "roles" if "roles" in drawn else next(name for name in WORDS if name in drawn)
    names = {"roles": "Roles", "zscored": "Roles, z-scored", "traits": "Trait vectors"}
    spaces = buttons("space", [(key, names[key]) for key in WORDS if key in drawn], first)
    dims = buttons("dims", [("2", "2D"), ("3", "3D")], "2") if _has_third(numbers) else ""
    beside = any(space.traits_LTC is not None for name, space in numbers.spaces.items() if name != "traits")
    traits = (
        "<label><input type='checkbox' id='with-traits'> traits beside the roles (mean of the responses that show "
        "them)</label>"
    )
    massive = (
        f"<p class='quiet'>Massive activations at {count_of(len(massive_layers(reduction)), 'layer')}: look at the "
        "z-scored map too.</p>"
        if massive_layers(reduction) and "zscored" in drawn
        else ""
    )
    missing = "" if "traits" in drawn or not numbers.traits else absent(_no_trait_map(numbers))
    legend = (
        "<ul class='legend'><li><span>far from the Assistant</span><span class='ramp' aria-hidden='true'></span>"
        "<span>near (z-score of the projection; of trait vectors: cosine)</span></li><li>&#9679; role</li>"
        "<li>&#9670; trait</li><li>&#9733; the default Assistant</li></ul>"
    )
    chart = (
        "<figure><div class='chart' id='map-chart' tabindex='0' aria-describedby='map-keys'></div>"
        f"{legend}<figcaption id='map-keys'>Hover for numbers; click or tap for responses. With the keyboard: arrow "
        "keys choose the next persona in 2D and turn the map in 3D. In 3D, drag to turn.</figcaption></figure>"
    )
    tools = f"<div class='tools'>{spaces}{dims}{find}{traits if beside else ''}</div>"
    body = f"<p id='map-words'>{WORDS[first]}</p>{massive}{tools}<div class='with-aside'>{chart}{aside}</div>{missing}"
    return section("The persona map", body)


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
            "samples of the roles (95 % band). Dashed across: 0.9; a note at the top names what is below.",
            "The reduction holds neither a split-half cosine nor a bootstrap interval of the axis.",
        ),
        (
            "PC1 and the axis",
            "pc1-chart",
            numbers.pc1_L,
            "Cosine of the first principal component with the axis (line), its 95 % interval over bootstrap samples of "
            "the roles (band), and that of the z-scored roles (dashed line). Dashed across: 0.6, which the models of "
            "the paper exceed at every layer.",
            "There is no axis, or there are no principal components.",
        ),
    ]
    shown = "".join(
        f"<div><h3>{title}</h3>"
        + (
            f"<figure><div class='chart' id='{name}'></div><figcaption>{text}</figcaption></figure>"
            if values is not None and np.isfinite(values).any()
            else absent(missing)
        )
        + "</div>"
        for title, name, values, text, missing in charts
    )
    lead = (
        "<p>The axis is the mean activation of the default Assistant minus the mean of the role vectors. A click on a "
        "chart goes to that layer.</p>"
    )
    return section("The Assistant Axis by layer", f"{lead}<div class='trio'>{shown}</div>")


def roles_spectrum(numbers: Numbers) -> str:
    """Write the roles ranked by their projection on the axis."""
    body = absent("There is no axis, so roles have no place on it.")
    if numbers.projection_LP is not None and np.isfinite(numbers.projection_LP).any():
        has_intervals = numbers.interval_2LP is not None and np.isfinite(numbers.interval_2LP).any()
        bars = "Bars are 95 % intervals by a bootstrap over questions." if has_intervals else "There are no intervals."
        body = f"<p class='quiet'>{bars} Right is toward the Assistant; zero has no meaning. n counts rollouts.</p>"
        body += _ranked("roles")
    return section("Roles along the axis", body)


_TRAIT_KINDS = {
    "pos_neg": "Mean of the trait shown minus mean of its opposite.",
    "pos_neg_50": "Mean difference over pairs whose scores differ by more than 50.",
    "pos_default": "Mean of the trait shown minus the default.",
    "pos_70": "Mean over responses scored 70 or more.",
}


def _no_trait_cosine(numbers: Numbers, reduction: Reduction) -> str:
    if reduction.axis is None:
        return "There is no axis."
    if numbers.traits and reduction.facts.get("judge"):
        return (
            "No trait has a vector of this kind: too few pairs have scores that differ by more than 50. "
            "persona-atlas judge scores more responses, and reduce --judge none takes all."
        )
    return "There are no trait vectors."


def traits_spectrum(numbers: Numbers, reduction: Reduction) -> str:
    """Write the traits ranked by the cosine of their vectors with the axis."""
    body = absent(_no_trait_cosine(numbers, reduction))
    if numbers.trait_cosine_LT is not None and np.isfinite(numbers.trait_cosine_LT).any():
        kind = _TRAIT_KINDS.get(str(reduction.facts.get("trait_kind", "pos_neg")), "")
        body = (
            f"<p class='quiet'>{kind} Right: showing the trait leads toward the Assistant. n counts "
            f"{trait_unit(reduction)}.</p>" + _ranked("traits")
        )
    return section("Traits along the axis", body)


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


def variance(numbers: Numbers) -> str:
    """Write the cumulative variance over components."""
    if not any(np.isfinite(space.cumulative_LM).any() for space in numbers.spaces.values()):
        return section("Variance by component", absent("There are no principal components."))
    return section(
        "Variance by component",
        "<p id='needed'></p><figure><div class='chart' id='variance-chart'></div><ul class='legend'>"
        f"{''.join(stroke(*_LINES[name]) for name in WORDS if name in numbers.spaces)}</ul></figure>"
        "<p class='quiet' id='beyond'></p>",
    )


_LINES = {
    "roles": ("role", "", "roles"),
    "zscored": ("default", "6 4", "roles, z-scored"),
    "traits": ("trait", "2 4", "trait vectors"),
}


def _first(values: Any) -> Any:
    return None if values is None else values[0]
