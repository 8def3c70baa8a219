"""Loadings of personas on the principal components of a reduction, from its stored vectors and components.

Axes: P vectors, L layers, K components, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..jobs.errors import InputError
from ..storage.derived.reductions import Reduction
from .layerwise import has_array, layer_groups, read_layers

Float64 = npt.NDArray[np.float64]
Kind = Literal["role", "trait", "category"]

_PREFIX: dict[Kind, str] = {"role": "", "trait": "trait_", "category": "category_"}


@dataclass(frozen=True, eq=False)
class Loadings:
    """Where vectors lie along principal components.

    Attributes:
        names: Name of each vector, ``(P,)``; of kind ``category`` with its category, as ``pirate:fully``.
        values_PLK: Loadings, in units of the residual stream or, standardised, in z-scores; NaN for a component that is
            undefined.
    """

    names: tuple[str, ...]
    values_PLK: Float64


def loadings(reduction: Reduction, kind: Kind = "role", *, standardised: bool = False) -> Loadings:
    """Compute (vector - mean) · component for the vectors that a PCA was fitted to.

    Args:
        reduction: The reduction.
        kind: ``role``: the role vectors; ``trait``: the trait vectors; ``category``: those of fully and of somewhat
            played roles together, which takes a judge.
        standardised: Whether to take the z-scored PCA, whose vectors are divided by their scale first.

    Returns:
        Names and loadings at every layer of the reduction, of the components that are stored (at most 32).

    Raises:
        InputError: The reduction has no such PCA: fewer than three vectors, or no judge.

    Example:
        >>> from persona_atlas import reduce
        >>> found = loadings(reduce("runs/demo", progress=False))
        >>> found.names, found.values_PLK.shape
        (('pirate', 'poet', 'teacher'), (3, 30, 2))
    """
    prefix = _PREFIX[kind]
    components = f"{prefix}pca_{'z_' * standardised}components"
    if not has_array(reduction, components):
        raise InputError(
            f"the reduction has no {'z-scored ' * standardised}PCA of {kind} vectors.",
            code="no_pca",
            field="kind",
            hint="It takes three vectors or more" + (", and a judge." if kind == "category" else "."),
        )
    names, parts = _vectors(reduction, kind)
    found: list[Float64] = []
    for at in layer_groups(reduction):
        mean_LD, components_LKD = (
            read_layers(reduction, f"{prefix}pca_mean", at),
            read_layers(reduction, components, at),
        )
        assert mean_LD is not None
        assert components_LKD is not None
        vectors_PLD = np.concatenate([_rows(reduction, array, at, places) for array, places in parts])
        centred_PLD = vectors_PLD - mean_LD
        if standardised:
            scale_LD = read_layers(reduction, f"{prefix}pca_z_scale", at)
            assert scale_LD is not None
            centred_PLD /= scale_LD
        # One matrix product per layer: einsum would not use BLAS for this.
        by_layer_LPK = np.matmul(centred_PLD.transpose(1, 0, 2), components_LKD.transpose(0, 2, 1))
        found.append(by_layer_LPK.transpose(1, 0, 2))
    return Loadings(names, np.concatenate(found, axis=1))


def _vectors(reduction: Reduction, kind: Kind) -> tuple[tuple[str, ...], list[tuple[str, Sequence[int]]]]:
    """Return the names of the vectors, and the arrays that hold them, each with places in it."""
    if kind == "role":
        return reduction.role_names, [("role_vectors", range(len(reduction.role_names)))]
    if kind == "trait":
        return reduction.trait_names, [("trait_vectors", range(len(reduction.trait_names)))]
    by_category: dict[str, list[str]] = reduction.facts["category_roles"]
    place = {name: at for at, (kind, name, _) in enumerate(reduction.personas) if kind == "role"}
    names = tuple(f"{role}:{category}" for category, roles in by_category.items() for role in roles)
    return names, [(f"mean_{category}", [place[role] for role in roles]) for category, roles in by_category.items()]


def _rows(reduction: Reduction, array: str, at: slice, places: Sequence[int]) -> Float64:
    vectors = read_layers(reduction, array, at)
    assert vectors is not None
    return vectors[list(places)]
