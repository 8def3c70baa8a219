"""Loadings of personas on the principal components of a reduction, from its stored vectors and components.

Axes: P vectors, L layers, K components, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError
from ...storage.derived.reductions import Reduction
from ..layerwise import has_array, layer_groups, read_layers
from .pca import scores

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
        InputError: The reduction has no such PCA: fewer than three vectors, no judge, or it was imported or made by an
            earlier version.

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
            hint=_hint(reduction, kind),
        )
    names, parts = _vectors(reduction, kind)
    found: list[Float64] = []
    for at in layer_groups(reduction):
        mean_LD = read_layers(reduction, f"{prefix}pca_mean", at)
        components_LKD = read_layers(reduction, components, at)
        assert mean_LD is not None
        assert components_LKD is not None
        vectors_PLD = np.concatenate([_rows(reduction, array, at, places) for array, places in parts])
        scale_LD = read_layers(reduction, f"{prefix}pca_z_scale", at) if standardised else None
        found.append(scores(vectors_PLD, mean_LD, components_LKD, scale_LD))
    return Loadings(names, np.concatenate(found, axis=1))


def _hint(reduction: Reduction, kind: Kind) -> str:
    if "imported" in reduction.facts:
        return "The imported files do not have it, and it is not derived from them."
    if kind == "category" and reduction.facts.get("judge") is None:
        return "It takes the scores of a judge: run persona-atlas judge or scores import, then reduce."
    return "It takes three vectors or more; if there are, reduce once more: an earlier version did not compute it."


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
