"""The object that the page's script draws from: numbers packed by layer, texts as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.personas import DEFAULT_PERSONA
from ...storage.derived.reductions import Reduction
from ..reliability import TRUSTED_COSINE
from ..summary import default_count
from .histograms import Histograms
from .notes import ALIGNED, layer_notes
from .numbers import Numbers
from .origin import Origin
from .packing import packed, plain
from .samples import Key, Sample
from .spaces import Space

WORDS = {
    "roles": "Each circle is a role: the mean activation of its responses, on the first principal components of the "
    "role vectors, centred on their mean. Components follow the variance alone; the colour is the projection on the "
    "axis.",
    "zscored": "The same roles with every coordinate of the residual stream divided by its standard deviation over "
    "roles, so that a few coordinates with massive activations cannot rule the components.",
    "traits": "Each diamond is a trait vector: mean activation of the trait shown minus that of its opposite. A "
    "difference has no place among the roles, so the traits have principal components of their own; the colour is the "
    "cosine with the axis.",
}
"""What each map shows."""

_ROLLOUT_COMPONENTS = 10


def payload(
    reduction: Reduction, numbers: Numbers, origin: Origin, histograms: Histograms | None, start: int
) -> dict[str, Any]:
    """Build the page's data.

    Args:
        reduction: The reduction.
        numbers: Its numbers.
        origin: Where it comes from.
        histograms: Distributions of single rollouts; None where there are no projections.
        start: Position along the L axis of the layer at which the page opens.
    """
    samples, projections_LS = _samples(origin.samples)
    distance_LK, rollouts_LK = reduction.pca_default_distance, reduction.pca_rollout_variance
    return {
        "layers": list(numbers.layers),
        "start": start,
        "roles": _roles(reduction, numbers, origin),
        "traits": _traits(reduction, numbers, origin),
        "default": _default(reduction, numbers, origin),
        "axis": _axis(numbers),
        "spaces": {name: _space(space) for name, space in numbers.spaces.items()},
        "words": WORDS,
        "distance": None if distance_LK is None else plain(distance_LK[:, :3]),
        "rolloutVariance": None if rollouts_LK is None else plain(rollouts_LK[:, :_ROLLOUT_COMPONENTS]),
        "histograms": None if histograms is None else _histograms(histograms),
        "thresholds": {"labels": list(reduction.threshold_labels), "floor": plain(reduction.floor_on_axis, 7) or []},
        "notes": layer_notes(numbers, reduction, origin, _least(reduction, origin)),
        "reliable": TRUSTED_COSINE,
        "aligned": ALIGNED,
        "descriptions": {_key(key): text for key, text in origin.descriptions.items()},
        "samples": samples,
        "sampleProjections": packed(projections_LS),
        "samplesAbsent": "No response is kept with these numbers." if not origin.samples else "No response counts.",
    }


def role_counts(reduction: Reduction, origin: Origin) -> list[int | None]:
    """Return the number of rollouts behind each role vector; None where neither reduction nor run tells it."""
    if reduction.role_counts is not None:
        return reduction.role_counts.tolist()
    return [origin.counts.get(("role", name, "pos")) for name in reduction.role_names]


def _least(reduction: Reduction, origin: Origin) -> int | None:
    return min((count for count in role_counts(reduction, origin) if count is not None), default=None)


def trait_counts(reduction: Reduction, numbers: Numbers, origin: Origin) -> list[int | None]:
    """Return the number of pairs or rollouts behind each trait vector; 0 for a trait without one, None if unknown."""
    if reduction.trait_counts is not None:
        known: list[int | None] = list(reduction.trait_counts.tolist())
    else:
        known = [origin.counts.get(("trait", name, "pos")) for name in reduction.trait_names]
    return [*known, *[0] * (len(numbers.traits) - len(known))]


def trait_unit(reduction: Reduction) -> str:
    """Return what trait vectors are counted in: pairs, or rollouts that show the trait."""
    return "pairs" if reduction.facts.get("trait_kind") == "pos_neg_50" else "rollouts that show it"


def num_default(reduction: Reduction, origin: Origin) -> int | None:
    """Return the number of rollouts behind the default vector; None where it is not known."""
    known = default_count(reduction)
    return origin.counts.get(("default", DEFAULT_PERSONA, "pos")) if known is None else known


def _roles(reduction: Reduction, numbers: Numbers, origin: Origin) -> dict[str, Any]:
    low, high = _ends(numbers.interval_2LP)
    return {
        "names": list(numbers.roles),
        "counts": role_counts(reduction, origin),
        "unit": "rollouts",
        "projection": packed(numbers.projection_LP),
        "low": packed(low),
        "high": packed(high),
        "cosine": packed(numbers.cosine_LP),
    }


def _traits(reduction: Reduction, numbers: Numbers, origin: Origin) -> dict[str, Any]:
    return {
        "names": list(numbers.traits),
        "counts": trait_counts(reduction, numbers, origin),
        "unit": trait_unit(reduction),
        "projection": packed(numbers.trait_projection_LT),
        "cosine": packed(numbers.trait_cosine_LT),
    }


def _default(reduction: Reduction, numbers: Numbers, origin: Origin) -> dict[str, Any]:
    low, high = _ends(numbers.default_interval_2L)
    return {
        "key": f"default/{DEFAULT_PERSONA}",
        "count": num_default(reduction, origin),
        "projection": packed(_column(numbers.default_L)),
        "low": packed(_column(low)),
        "high": packed(_column(high)),
    }


def _axis(numbers: Numbers) -> dict[str, Any]:
    low, high = _ends(numbers.axis_interval_2L)
    pc1_low, pc1_high = _ends(numbers.pc1_interval_2L)
    return {
        "strength": plain(numbers.strength_L),
        "half": plain(numbers.split_half_L),
        "low": plain(low),
        "high": plain(high),
        "pc1": plain(numbers.pc1_L),
        "pc1Low": plain(pc1_low),
        "pc1High": plain(pc1_high),
        "pc1z": plain(numbers.pc1_z_L),
    }


def _space(space: Space) -> dict[str, Any]:
    return {
        "roles": packed(space.roles_LPC),
        "traits": packed(space.traits_LTC),
        "default": packed(space.default_LC),
        "drawn": space.share_LC.shape[1],
        "share": plain(space.share_LC, 3),
        "cumulative": packed(space.cumulative_LM),
        "needed": space.needed_SL.tolist(),
    }


def _histograms(histograms: Histograms) -> dict[str, Any]:
    totals_K1 = np.maximum(np.array(histograms.totals), 1)[:, None]
    return {
        "kinds": list(histograms.kinds),
        "totals": list(histograms.totals),
        "range": plain(histograms.range_L2, 7),
        "shares": packed(100 * histograms.counts_LKB / totals_K1),
    }


def _samples(
    samples: Mapping[Key, Sequence[Sample]],
) -> tuple[dict[str, list[dict[str, Any]]], npt.NDArray[np.float64] | None]:
    """Return the texts by persona, and the projections that their ``at`` counts along the second axis of."""
    texts: dict[str, list[dict[str, Any]]] = {}
    projections: list[npt.NDArray[np.float64]] = []
    for key, found in samples.items():
        for sample in found:
            place = None
            if sample.projection_L is not None:
                place = len(projections)
                projections.append(sample.projection_L)
            line = {"system": sample.system_prompt, "question": sample.question, "response": sample.response}
            texts.setdefault(_key(key), []).append({**line, "score": sample.score, "at": place})
    return texts, np.stack(projections, axis=1) if projections else None


def _key(key: Key) -> str:
    return f"{key[0]}/{key[1]}"


def _ends(
    interval_2: npt.NDArray[np.float64] | None,
) -> tuple[npt.NDArray[np.float64] | None, npt.NDArray[np.float64] | None]:
    return (None, None) if interval_2 is None else (interval_2[0], interval_2[1])


def _column(values_L: npt.NDArray[np.float64] | None) -> npt.NDArray[np.float64] | None:
    return None if values_L is None else values_L[:, None]
