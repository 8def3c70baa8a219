"""The roles that two reductions have in common, at one layer of each.

Axes: P common roles, K components, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...storage.derived.reductions import Reduction
from ..axis import cosine_or_nan, project, unit
from ..components.pca import Pca
from .geometry import principal_cosines, role_cosines, similarity_correlation
from .results import ComparedLayer, MatchedComponent

Float64 = npt.NDArray[np.float64]

NUM_COMPONENTS = 5
"""Number of first components that are matched."""

_TOO_FEW = 3
"""Roles of which similarities cannot be correlated."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two reductions that are compared.

    Attributes:
        reduction: The reduction.
        n_layers: Number of layers of its model, of which the reduction may have some.
        model: Source of the model, as its run's record has it.
        store: Path or URL of its store, for errors.
    """

    reduction: Reduction
    n_layers: int
    model: str
    store: str


class RolesAtLayer:
    """The common roles of one side at one layer.

    Args:
        side: The reduction.
        layer: 0-based layer.
        common: Names of the common roles.

    Attributes:
        layer: The layer.
        axis_D: The axis; NaN where it is undefined, None without one.
        mean_D: Mean vector of the common roles.
        default_D: The default vector; None without one.
        z_scores: Projections of the common roles as z-scores among themselves; None without an axis.
        default_z: z-score of the default; None without an axis or a default vector.
        scores_PK: Scores of the common roles on the first components; None without components.
        roles_PD: Vectors of the common roles.
        components_KD: The first components; None without components.
    """

    def __init__(self, side: Side, layer: int, common: Sequence[str]) -> None:
        reduction = side.reduction
        rows = [reduction.role_names.index(name) for name in common]
        self.layer = layer
        roles_P1D = _read(reduction, "role_vectors", layer)
        assert roles_P1D is not None
        roles_P1D = roles_P1D[rows]
        self.roles_PD: Float64 = roles_P1D[:, 0]
        self.mean_D: Float64 = self.roles_PD.mean(axis=0)
        default_1D = _read(reduction, "default_vector", layer)
        self.default_D = None if default_1D is None else default_1D[0]
        axis_1D = _read(reduction, "axis", layer)
        self.axis_D = None if axis_1D is None else axis_1D[0]
        self.z_scores: list[float] | None = None
        self.default_z: float | None = None
        if axis_1D is not None and np.isfinite(axis_1D).all():
            projected_P = project(roles_P1D, axis_1D)[:, 0]
            mean, spread = projected_P.mean(), projected_P.std()
            if spread > 1e-12 * np.abs(projected_P).max():
                self.z_scores = ((projected_P - mean) / spread).tolist()
                if default_1D is not None:
                    self.default_z = float((project(default_1D[None], axis_1D)[0, 0] - mean) / spread)
        mean_1D, self.components_KD = _read(reduction, "pca_mean", layer), _components(reduction, layer)
        self.scores_PK: Float64 | None = None
        if mean_1D is not None and self.components_KD is not None:
            kept_1KD = self.components_KD[None]
            pca = Pca(mean_1D, kept_1KD, np.full(kept_1KD.shape[:2], np.nan), np.array([True]))
            self.scores_PK = pca.scores(roles_P1D)[:, 0]


def _components(reduction: Reduction, layer: int) -> Float64 | None:
    """Return the first components that are defined; None where there are none."""
    components_1KD = _read(reduction, "pca_components", layer)
    if components_1KD is None:
        return None
    kept_KD = components_1KD[0, :NUM_COMPONENTS]
    kept_KD = kept_KD[np.isfinite(kept_KD).all(axis=1)]
    return kept_KD if len(kept_KD) else None


def _read(reduction: Reduction, name: str, layer: int) -> Float64 | None:
    values = reduction.read(name, [layer])
    return None if values is None else values.astype(np.float64)


def compare_layer(a: RolesAtLayer, b: RolesAtLayer) -> ComparedLayer:
    """Compare two layers by their axes and by how axis and first component order the common roles.

    Args:
        a: The common roles at a layer of the first.
        b: The same roles, in the same order, at a layer of the second.
    """
    axis_cosine = projection_correlation = pc1_correlation = None
    if a.axis_D is not None and b.axis_D is not None and a.axis_D.shape == b.axis_D.shape:
        axis_cosine = _number(float(cosine_or_nan(a.axis_D, b.axis_D)))
    if a.z_scores is not None and b.z_scores is not None:
        projection_correlation = float(np.mean(np.multiply(a.z_scores, b.z_scores)).clip(-1, 1))
    if a.scores_PK is not None and b.scores_PK is not None:
        pc1_correlation = _number(abs(float(_correlations(a.scores_PK[:, :1], b.scores_PK[:, :1])[0, 0])))
    return ComparedLayer(
        a.layer,
        b.layer,
        axis_cosine,
        projection_correlation,
        pc1_correlation,
        _on_axis(a.axis_D, a.mean_D, b.mean_D),
        _on_axis(a.axis_D, a.default_D, b.default_D),
        similarity_correlation=_similarities(a, b),
        **_directions(a, b),
    )


def _similarities(a: RolesAtLayer, b: RolesAtLayer) -> float | None:
    # The centred vectors of three roles lie in a plane, and three cosines correlate by chance.
    return _number(similarity_correlation(a.roles_PD, b.roles_PD)) if len(a.roles_PD) > _TOO_FEW else None


def _directions(a: RolesAtLayer, b: RolesAtLayer) -> dict[str, Any]:
    """Compare what has a meaning in common coordinates only, as fields of ``ComparedLayer``; none if widths differ."""
    if a.roles_PD.shape != b.roles_PD.shape:
        return {}
    cosines_P = role_cosines(a.roles_PD, b.roles_PD)
    cosines_P = cosines_P[np.isfinite(cosines_P)]
    found: dict[str, Any] = {}
    if len(cosines_P):
        found |= {"role_cosine": float(cosines_P.mean()), "lowest_role_cosine": float(cosines_P.min())}
    if a.components_KD is None or b.components_KD is None:
        return found
    num_common = min(len(a.components_KD), len(b.components_KD))
    a_KD, b_KD = a.components_KD[:num_common], b.components_KD[:num_common]
    principal_K = principal_cosines(a_KD, b_KD)
    return found | {
        "component_cosines": tuple(np.abs(cosine_or_nan(a_KD, b_KD)).clip(0, 1).tolist()),
        "subspace_overlap": float((principal_K**2).mean()),
        "overlap_by_chance": num_common / a_KD.shape[1],
        "principal_angles": tuple(np.degrees(np.arccos(principal_K)).tolist()),
    }


def _on_axis(axis_D: Float64 | None, a_D: Float64 | None, b_D: Float64 | None) -> tuple[float, float] | None:
    """Project a vector of each side on the axis of the first; None where there is no such projection."""
    if axis_D is None or a_D is None or b_D is None or not axis_D.shape == a_D.shape == b_D.shape:
        return None
    unit_D = unit(axis_D)
    found = float(a_D @ unit_D), float(b_D @ unit_D)
    return found if np.isfinite(found).all() else None


def _number(value: float) -> float | None:
    return None if np.isnan(value) else value


def _correlations(a_PK: Float64, b_PK: Float64) -> Float64:
    """Correlation of every column of the one with every column of the other; NaN where one does not vary."""
    a_PK, b_PK = a_PK - a_PK.mean(axis=0), b_PK - b_PK.mean(axis=0)
    return cosine_or_nan(a_PK.T[:, None], b_PK.T[None])


def match_components(
    a_PK: Float64 | None, b_PK: Float64 | None, a_KD: Float64 | None = None, b_KD: Float64 | None = None
) -> list[MatchedComponent]:
    """Match components one to one, the pair with the largest absolute correlation first.

    Args:
        a_PK: Scores of the common roles on the components of the first; None: it has none.
        b_PK: Scores of the same roles on those of the second.
        a_KD: Components of the first, for the cosines of partners; None: no cosines.
        b_KD: Those of the second; cosines are computed where they are as wide.

    Example:
        >>> a_PK = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
        >>> first = match_components(a_PK, -a_PK[:, ::-1])[0]
        >>> first.component_a, first.component_b, round(first.correlation, 6), first.is_flipped
        (1, 2, 1.0, True)
    """
    if a_PK is None or b_PK is None:
        return []
    left = np.nan_to_num(_correlations(a_PK, b_PK), nan=0.0)
    found: list[MatchedComponent] = []
    for _ in range(min(left.shape)):
        i, j = (int(place) for place in np.unravel_index(np.abs(left).round(9).argmax(), left.shape))
        if not left[i, j]:
            break
        cosine = None
        if a_KD is not None and b_KD is not None and a_KD.shape[1] == b_KD.shape[1]:
            cosine = float(np.sign(left[i, j]) * cosine_or_nan(a_KD[i], b_KD[j]))
        found.append(MatchedComponent(i + 1, j + 1, float(abs(left[i, j])), bool(left[i, j] < 0), cosine))
        left[i], left[:, j] = 0.0, 0.0
    return found
