"""What a reader must know before believing a number: thin data, no filter, an axis that is not reproduced. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ...jobs.wording import count_of
from ...storage.derived.reductions import Reduction
from ..summary import filter_note, notes_of
from .numbers import Numbers
from .origin import Origin

FEW = 10
"""Rollouts below which a role's mean is called thin; the paper keeps a role from this number on."""

RELIABLE = 0.8
"""Cosine below which two estimates of the axis do not agree. A choice of this project, no result of the paper."""

ALIGNED = 0.6
"""Absolute cosine of PC1 with the axis that the paper finds at every layer, or more."""


def general_notes(reduction: Reduction, origin: Origin, counts_P: Sequence[int | None]) -> list[str]:
    """List what holds at every layer, the most important first.

    Args:
        reduction: The reduction.
        origin: Where it comes from.
        counts_P: Number of rollouts behind each role vector; None where it is not known.
    """
    facts = reduction.facts
    found: list[str] = []
    done, planned = facts.get("units"), facts.get("units_planned")
    if done is not None and planned is not None and done != planned:
        found.append(f"The run is not complete: these are {done:,} of {planned:,} units.")
    found.append(filter_note(facts))
    known = [count for count in counts_P if count is not None]
    few = sum(count < FEW for count in known)
    if few:
        found.append(
            f"Thin data: {few} of {count_of(len(known), 'role vector')} {'is' if few == 1 else 'are'} a mean of fewer than {FEW} "
            f"rollouts (the fewest: {min(known)}). Read the intervals before the order of the roles."
        )
    if 0 < len(reduction.role_names) < FEW:
        found.append(f"{count_of(len(reduction.role_names), 'role')}: too few for components or ranks to mean much.")
    missing = _not_there(reduction)
    found += [missing] if missing else []
    return [*found, *notes_of(reduction), *origin.notes]


def _not_there(reduction: Reduction) -> str:
    """Name in one sentence what a thin or an old reduction lacks."""
    if reduction.axis is None:
        return "There is no axis: it needs rollouts of the default Assistant and of a role."
    lacking = [
        name
        for name, values in {
            "split-half reliability": reduction.axis_split_half,
            "intervals of the axis": reduction.axis_interval,
            "intervals of the roles": reduction.role_projection_interval,
        }.items()
        if values is None or not np.isfinite(values).any()
    ]
    if not lacking:
        return ""
    why = reduction.facts.get("halves")
    reason = f" ({why})" if isinstance(why, str) and reduction.axis_split_half is None else ""
    return f"How far to trust the axis is not known: the reduction holds no {', no '.join(lacking)}{reason}."


def layer_notes(numbers: Numbers, reduction: Reduction) -> list[list[str]]:
    """List, for every layer, what holds there only.

    Args:
        numbers: Its numbers.
        reduction: The reduction.
    """
    undefined = {what: reduction.undefined(what) for what in ("axis", "pca")}
    massive = massive_layers(reduction)
    found: list[list[str]] = []
    for at, layer in enumerate(numbers.layers):
        here: list[str] = []
        if layer in undefined["axis"]:
            here.append(f"There is no axis at layer {layer}: {undefined['axis'][layer]}.")
        if layer in undefined["pca"]:
            here.append(f"There are no principal components at layer {layer}: {undefined['pca'][layer]}.")
        here += [*_unreliable(numbers, at, layer), *_not_aligned(numbers, at, layer)]
        if layer in massive:
            here.append(
                f"Massive activations at layer {layer}, in {count_of(massive[layer], 'coordinate')}: they can rule the "
                "centred components. Compare the map with the z-scored one."
            )
        found.append(here)
    return found


def _unreliable(numbers: Numbers, at: int, layer: int) -> list[str]:
    half = _at(numbers.split_half_L, at)
    low = None if numbers.axis_interval_2L is None else _at(numbers.axis_interval_2L[0], at)
    parts = []
    if half is not None and half < RELIABLE:
        parts.append(f"the axes of two halves of the questions have a cosine of {half:.2f}")
    if low is not None and low < RELIABLE:
        parts.append(f"over other samples of roles its cosine goes down to {low:.2f}")
    if not parts:
        return []
    return [f"The axis is not reliable at layer {layer}: {', and '.join(parts)} (below {RELIABLE:g})."]


def _not_aligned(numbers: Numbers, at: int, layer: int) -> list[str]:
    cosine = _at(numbers.pc1_L, at)
    if cosine is None or abs(cosine) >= ALIGNED:
        return []
    return [
        f"PC1 is not the axis at layer {layer}: their cosine is {cosine:+.2f}; in the models of the paper it is over "
        f"{ALIGNED:g} at every layer. Left and right on the map are not the axis; the colour is."
    ]


def _at(values_L: npt.NDArray[np.float64] | None, at: int) -> float | None:
    return float(values_L[at]) if values_L is not None and np.isfinite(values_L[at]) else None


def massive_layers(reduction: Reduction) -> dict[int, int]:
    """Return the layers with massive activations, each with the number of coordinates that have them."""
    found = reduction.facts.get("massive") or {}
    return {int(layer): len(coordinates) for layer, coordinates in dict(found).items() if coordinates}
