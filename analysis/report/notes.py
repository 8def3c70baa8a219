"""What a reader must know before believing a number: thin data, no filter, an axis that is not reproduced. Pure."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.wording import count_of
from ...storage.derived.reductions import Reduction
from ..components.massive import NOTABLE_SHARE
from ..reliability import trust
from ..summary import filter_note, notes_of
from .numbers import Numbers
from .origin import Origin

ALIGNED = 0.6
"""Absolute cosine of PC1 with the axis that the paper finds at every layer, or more."""


def general_notes(reduction: Reduction, origin: Origin) -> list[str]:
    """List what holds at every layer, the most important first.

    Args:
        reduction: The reduction.
        origin: Where it comes from.
    """
    facts = reduction.facts
    found: list[str] = []
    done, planned = facts.get("units"), facts.get("units_planned")
    if done is not None and planned is not None and done != planned:
        found.append(f"The run is not complete: these are {done:,} of {planned:,} units.")
    found.append(filter_note(facts))
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


def layer_notes(numbers: Numbers, reduction: Reduction, origin: Origin, least: int | None) -> list[list[str]]:
    """List, for every layer, what limits the trust in its numbers.

    Args:
        numbers: The numbers.
        reduction: The reduction.
        origin: Where it comes from.
        least: Number of rollouts behind the role vector that has the fewest; None where it is not known.
    """
    undefined = {what: reduction.undefined(what) for what in ("axis", "pca")}
    massive = massive_layers(reduction)
    found: list[list[str]] = []
    for at, layer in enumerate(numbers.layers):
        if layer in undefined["axis"]:
            here = [f"There is no axis at layer {layer}: {undefined['axis'][layer]}."]
        else:
            here = _trust(numbers, origin, least, at) if numbers.projection_LP is not None else []
        if layer in undefined["pca"]:
            here.append(f"There are no principal components at layer {layer}: {undefined['pca'][layer]}.")
        here += _not_aligned(numbers, at, layer)
        if layer in massive and "zscored" in numbers.spaces:
            here.append(
                f"Massive activations at layer {layer}, in {count_of(massive[layer], 'coordinate')}, hold more than "
                f"{NOTABLE_SHARE * 100:.0f} % of the variance of the role vectors. See the z-scored map too."
            )
        found.append(here)
    return found


_NO_LIMIT = 10**9
"""A number that is not known is not complained of."""


def _trust(numbers: Numbers, origin: Origin, least: int | None, at: int) -> list[str]:
    interval = numbers.axis_interval_2L
    low, high = (None, None) if interval is None else (_at(interval[0], at), _at(interval[1], at))
    # That there are no halves at all is said once, for every layer.
    half = 1.0 if numbers.split_half_L is None else float(numbers.split_half_L[at])
    return trust(
        numbers.layers[at],
        num_roles=len(numbers.roles),
        num_questions=_NO_LIMIT if origin.num_questions is None else origin.num_questions,
        least_rollouts=_NO_LIMIT if least is None else least,
        split_half=half,
        axis_interval=None if low is None or high is None else (low, high),
    )


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
    """Return the layers at which massive activations can rule the components, with the number of their coordinates.

    Those are the layers at which the coordinates hold more than ``NOTABLE_SHARE`` of the variance of the role vectors,
    or all with massive activations where the reduction holds no standard deviations.
    """
    found: Any = reduction.facts.get("massive") or {}
    by_layer = found.items() if isinstance(found, dict) else zip(reduction.layers, found, strict=False)
    at = {layer: position for position, layer in enumerate(reduction.layers)}
    listed = {int(layer): list(coordinates) for layer, coordinates in by_layer if coordinates and int(layer) in at}
    scale_LD = reduction.pca_z_scale
    if scale_LD is None:
        return {layer: len(coordinates) for layer, coordinates in listed.items()}
    ruling: dict[int, int] = {}
    for layer, coordinates in listed.items():
        variance_D = np.square(np.asarray(scale_LD[at[layer]], np.float64))
        # A layer without standard deviations is named too: nothing shows that its coordinates hold little.
        if not variance_D[coordinates].sum() <= NOTABLE_SHARE * variance_D.sum():
            ruling[layer] = len(coordinates)
    return ruling
