"""Where personas lie in principal components: of the roles, of the z-scored roles, and of the trait vectors.

A trait vector is a difference of means and has no place among the roles, so it has a map of its own. What has a place
there is the mean of the responses that show the trait, which is a mean of responses as a role vector is.
Axes: P roles, T traits, L layers, C the components that are drawn (at most 3), M all components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...storage.derived.reductions import Reduction
from ..components.pca import components_for
from ..layerwise import has_array, layer_groups, read_layers

Float64 = npt.NDArray[np.float64]

DRAWN = 3
"""Number of components that a map can show."""

SHARES = (0.7, 0.8, 0.9)
"""Shares of the variance for which components are counted."""

_ARRAYS = {
    "roles": ("pca_mean", None, "pca_components", "pca_variance_ratio"),
    "zscored": ("pca_mean", "pca_z_scale", "pca_z_components", "pca_z_variance_ratio"),
    "traits": ("trait_pca_mean", None, "trait_pca_components", "trait_pca_variance_ratio"),
}


@dataclass(frozen=True, eq=False)
class Space:
    """Coordinates in one set of principal components, NaN at layers that have none.

    Attributes:
        roles_LPC: Coordinates of the roles; None on the map of trait vectors.
        traits_LTC: Of the traits: their means among the roles, or their vectors on a map of their own; None if absent.
        default_LC: Of the default Assistant; None on the map of trait vectors or without a default.
        share_LC: Fraction of the variance of each drawn component, 0 to 1.
        cumulative_LM: Cumulative fraction of the variance over components, 0 to 1.
        needed_SL: Number of components for each of ``SHARES``; 0 where there are none.
    """

    roles_LPC: Float64 | None
    traits_LTC: Float64 | None
    default_LC: Float64 | None
    share_LC: Float64
    cumulative_LM: Float64
    needed_SL: npt.NDArray[np.int64]


def spaces_of(reduction: Reduction, traits: tuple[str, ...]) -> dict[str, Space]:
    """Compute coordinates in every set of components that a reduction has with two components or more.

    Args:
        reduction: The reduction.
        traits: Names of the traits, in the order of the T axis.

    Returns:
        By name of the set: ``roles``, ``zscored`` or ``traits``.
    """
    found: dict[str, Space] = {}
    for name, arrays in _ARRAYS.items():
        directions_LKD = read_layers(reduction, arrays[2], slice(0, 1))
        is_there = all(has_array(reduction, array) for array in arrays if array)
        if is_there and directions_LKD is not None and directions_LKD.shape[1] >= 2:
            found[name] = _space(reduction, name, traits)
    return found


def _space(reduction: Reduction, name: str, traits: tuple[str, ...]) -> Space:
    mean, scale, components, ratio = _ARRAYS[name]
    parts: dict[str, list[Float64]] = {"roles": [], "traits": [], "default": []}
    of_traits = _positions(reduction, traits)
    for at in layer_groups(reduction):
        origin_LD, directions_LKD = read_layers(reduction, mean, at), read_layers(reduction, components, at)
        assert origin_LD is not None
        assert directions_LKD is not None
        directions_LKD = directions_LKD[:, :DRAWN]
        scale_LD = read_layers(reduction, scale, at) if scale else None
        for kind, vectors_NLD in _vectors(reduction, name, at, of_traits).items():
            centred_NLD = vectors_NLD - origin_LD
            if scale_LD is not None:
                # A coordinate in which all roles agree has no scale, and no part in the components.
                centred_NLD = np.divide(centred_NLD, scale_LD, out=np.zeros_like(centred_NLD), where=scale_LD > 0)
            parts[kind].append(np.einsum("nld,lcd->lnc", centred_NLD, directions_LKD))
    roles_LPC, traits_LTC, default_L1C = (np.concatenate(part) if part else None for part in parts.values())
    share_LM = np.asarray(getattr(reduction, ratio), dtype=np.float64)
    needed = [[_needed(share_M, share) for share_M in share_LM] for share in SHARES]
    return Space(
        roles_LPC,
        traits_LTC,
        None if default_L1C is None else default_L1C[:, 0],
        share_LM[:, :DRAWN],
        np.cumsum(share_LM, axis=1),
        np.array(needed, dtype=np.int64).reshape(len(SHARES), -1),
    )


def _needed(share_M: Float64, share: float) -> int:
    return components_for(share_M, share) if np.isfinite(share_M).all() else 0


def _positions(reduction: Reduction, traits: tuple[str, ...]) -> list[int] | None:
    """Find the means of the responses that show each trait; None unless all of them are kept."""
    place = {name: at for at, (kind, name, polarity) in enumerate(reduction.personas) if (kind, polarity) == _SHOWN}
    if not traits or not place.keys() >= set(traits) or not has_array(reduction, "mean"):
        return None
    return [place[name] for name in traits]


_SHOWN = ("trait", "pos")


def _vectors(reduction: Reduction, name: str, at: slice, of_traits: list[int] | None) -> dict[str, Float64]:
    if name == "traits":
        vectors = read_layers(reduction, "trait_vectors", at)
        return {} if vectors is None else {"traits": vectors}
    found: dict[str, Float64] = {}
    roles, default = read_layers(reduction, "role_vectors", at), read_layers(reduction, "default_vector", at)
    if roles is not None:
        found["roles"] = roles
    if default is not None:
        found["default"] = default[None]
    if of_traits is not None:
        means = read_layers(reduction, "mean", at)
        assert means is not None
        found["traits"] = means[of_traits]
    return found
