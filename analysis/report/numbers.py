"""The numbers of a report at every layer: projections, cosines, intervals, and how strong the axis is.

What the reduction has is taken as it is; what an earlier version did not store is computed from its vectors.
Axes: P roles, T traits, L layers, Q thresholds; a first axis of 2 is lower and upper end of an interval.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...storage.derived.reductions import Reduction
from ..layerwise import has_array, layer_groups, read_layers
from ..summary import standardise
from .spaces import Space, spaces_of

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Numbers:
    """What a report draws of a reduction. Arrays are NaN where a value is undefined, None where a reduction has none.

    Attributes:
        layers: Layers along the L axis, 0-based.
        roles: Names of the roles, in the order of the P axis.
        traits: Names of the traits, in the order of the T axis: those with a vector, then those with a mean only.
        projection_LP: Projection of each role vector on the axis; higher is nearer the Assistant.
        interval_2LP: 95 % interval of it.
        z_LP: z-score of each role's projection among the roles.
        cosine_LP: Cosine of each role vector, centred on the roles' mean, with the axis.
        trait_cosine_LT: Cosine of each trait vector with the axis.
        trait_projection_LT: Projection of the mean of the responses that show each trait.
        default_L: Projection of the default Assistant.
        default_interval_2L: 95 % interval of it.
        strength_L: z-score of the default among the roles: the axis's length in standard deviations of the roles.
        split_half_L: Cosine between the axes of two halves of the questions.
        axis_interval_2L: Interval of the cosine between the axis and that of a bootstrap sample of the roles.
        pc1_L: Cosine of the first component with the axis.
        pc1_interval_2L: 95 % interval of its absolute value.
        pc1_z_L: The same cosine for z-scored components.
        spaces: Coordinates by set of components.
    """

    layers: tuple[int, ...]
    roles: tuple[str, ...]
    traits: tuple[str, ...]
    projection_LP: Float64 | None
    interval_2LP: Float64 | None
    z_LP: Float64 | None
    cosine_LP: Float64 | None
    trait_cosine_LT: Float64 | None
    trait_projection_LT: Float64 | None
    default_L: Float64 | None
    default_interval_2L: Float64 | None
    strength_L: Float64 | None
    split_half_L: Float64 | None
    axis_interval_2L: Float64 | None
    pc1_L: Float64 | None
    pc1_interval_2L: Float64 | None
    pc1_z_L: Float64 | None
    spaces: dict[str, Space]


def numbers_of(reduction: Reduction) -> Numbers:
    """Collect the numbers of a reduction, and compute from its vectors what it does not hold.

    Args:
        reduction: Any reduction; every array of it may be None.
    """
    traits = _traits(reduction)
    found = _along_axis(reduction, traits)
    projection_LP, default_L = found.get("roles"), found.get("default")
    z_LP = strength_L = None
    if projection_LP is not None:
        z_LP = np.array([_z(values_P, values_P) for values_P in projection_LP]).reshape(projection_LP.shape)
        if default_L is not None and len(reduction.role_names) > 1:
            pairs = zip(default_L, projection_LP, strict=True)
            strength_L = np.array([_z(np.array([default]), values_P)[0] for default, values_P in pairs])
    return Numbers(
        layers=reduction.layers,
        roles=reduction.role_names,
        traits=traits,
        projection_LP=projection_LP,
        interval_2LP=_by_layer(reduction.role_projection_interval, 2),
        z_LP=z_LP,
        cosine_LP=found.get("role_cosine"),
        trait_cosine_LT=found.get("trait_cosine"),
        trait_projection_LT=found.get("traits"),
        default_L=default_L,
        default_interval_2L=_float(reduction.default_projection_interval),
        strength_L=strength_L,
        split_half_L=_float(reduction.axis_split_half),
        axis_interval_2L=_float(reduction.axis_interval),
        pc1_L=_float(reduction.pc1_axis_cosine),
        pc1_interval_2L=_float(reduction.pc1_axis_cosine_interval),
        pc1_z_L=_float(reduction.pc1_z_axis_cosine),
        spaces=spaces_of(reduction, traits),
    )


def _traits(reduction: Reduction) -> tuple[str, ...]:
    others = [name for kind, name, polarity in reduction.personas if (kind, polarity) == ("trait", "pos")]
    return (*reduction.trait_names, *(name for name in others if name not in set(reduction.trait_names)))


def _along_axis(reduction: Reduction, traits: tuple[str, ...]) -> dict[str, Float64]:
    """Take or compute what is measured along the axis, each with the layer axis first."""
    stored = {
        "roles": _by_layer(reduction.role_projection, 1),
        "default": _float(reduction.default_projection),
        "role_cosine": _by_layer(reduction.role_axis_cosine, 1),
        "trait_cosine": _by_layer(reduction.trait_axis_cosine, 1),
    }
    found = {name: values for name, values in stored.items() if values is not None}
    if has_array(reduction, "axis"):
        parts: dict[str, list[Float64]] = {}
        for at in layer_groups(reduction):
            for name, values in _computed(reduction, at, frozenset(found)).items():
                parts.setdefault(name, []).append(values)
        found |= {name: np.concatenate(part) for name, part in parts.items()}
    if "trait_cosine" in found:
        # Traits that have a mean but no vector follow those with one.
        missing = len(traits) - found["trait_cosine"].shape[1]
        found["trait_cosine"] = np.pad(found["trait_cosine"], ((0, 0), (0, missing)), constant_values=np.nan)
    if "traits" in found:
        place = {name: at for at, (kind, name, pol) in enumerate(reduction.personas) if (kind, pol) == ("trait", "pos")}
        padded_LG = np.pad(found["traits"], ((0, 0), (0, 1)), constant_values=np.nan)
        found["traits"] = padded_LG[:, [place.get(name, -1) for name in traits]]
    return found


def _computed(reduction: Reduction, at: slice, known: frozenset[str]) -> dict[str, Float64]:
    axis_LD = read_layers(reduction, "axis", at)
    assert axis_LD is not None
    length_L1 = np.linalg.norm(axis_LD, axis=1, keepdims=True)
    unit_LD = np.divide(axis_LD, length_L1, out=np.full_like(axis_LD, np.nan), where=length_L1 > 0)
    found: dict[str, Float64] = {}
    roles_PLD = None if {"roles", "role_cosine"} <= known else read_layers(reduction, "role_vectors", at)
    if roles_PLD is not None and roles_PLD.shape[0]:
        if "roles" not in known:
            found["roles"] = np.einsum("pld,ld->lp", roles_PLD, unit_LD)
        if "role_cosine" not in known:
            found["role_cosine"] = _cosines(roles_PLD - roles_PLD.mean(axis=0), unit_LD)
    default_LD = read_layers(reduction, "default_vector", at) if "default" not in known else None
    if default_LD is not None:
        found["default"] = np.einsum("ld,ld->l", default_LD, unit_LD)
    traits_TLD = read_layers(reduction, "trait_vectors", at) if "trait_cosine" not in known else None
    if traits_TLD is not None:
        found["trait_cosine"] = _cosines(traits_TLD, unit_LD)
    means_GLD = (
        read_layers(reduction, "mean", at) if any(kind == "trait" for kind, _, _ in reduction.personas) else None
    )
    if means_GLD is not None:
        found["traits"] = np.einsum("gld,ld->lg", means_GLD, unit_LD)
    return found


def _cosines(vectors_NLD: Float64, unit_LD: Float64) -> Float64:
    dot_LN = np.einsum("nld,ld->ln", vectors_NLD, unit_LD)
    length_LN = np.linalg.norm(vectors_NLD, axis=-1).T
    return np.divide(dot_LN, length_LN, out=np.full_like(dot_LN, np.nan), where=length_LN > 0)


def _z(values: Float64, reference_P: Float64) -> Float64:
    return standardise(values, reference_P) if np.isfinite(reference_P).all() else np.full_like(values, np.nan)


def _float(values: npt.NDArray[np.floating] | None) -> Float64 | None:
    return None if values is None else np.asarray(values, dtype=np.float64)


def _by_layer(values: npt.NDArray[np.floating] | None, layer_axis: int) -> Float64 | None:
    """Move the layer axis before that of the personas."""
    return None if values is None else np.swapaxes(np.asarray(values, dtype=np.float64), layer_axis - 1, layer_axis)
