"""What follows from vectors alone, without rollouts: projections of role vectors, cosines, PCA.

Axes: P roles, T traits, L layers, D d_model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..axis import project
from ..pca import fit_pca

Float32 = npt.NDArray[np.float32]

_MIN_ROLES = 3
"""Least number of roles for PCA: two points always lie on one component."""

_MAX_COMPONENTS = 32
"""Components that are kept of a layer."""


def derived_arrays(
    axis_LD: Float32, default_LD: Float32, role_vectors_PLD: Float32, trait_vectors_TLD: Float32 | None
) -> dict[str, Any]:
    """Compute the arrays of a ``Reduction`` that need no rollouts.

    Args:
        axis_LD: The axis; not zero at any layer.
        default_LD: The default vector.
        role_vectors_PLD: The role vectors.
        trait_vectors_TLD: The trait vectors; None if there are none.

    Returns:
        Arrays by their name in ``Reduction``, float32. Without three roles there is no PCA; at a layer where the roles
        are all the same, its arrays are NaN.
    """
    layers = [
        _at_layer(axis_LD[at], default_LD[at], role_vectors_PLD[:, at], _at(trait_vectors_TLD, at))
        for at in range(len(axis_LD))
    ]
    found: dict[str, Any] = {}
    for name in layers[0]:
        axis = 1 if name in ("role_projection", "role_axis_cosine", "trait_axis_cosine") else 0
        found[name] = np.stack([layer[name] for layer in layers], axis=axis).astype(np.float32)
        found[name][np.isnan(found[name])] = np.nan
    return found


def _at(vectors_TLD: Float32 | None, at: int) -> Float32 | None:
    return None if vectors_TLD is None else vectors_TLD[:, at]


def _at_layer(
    axis_D: Float32, default_D: Float32, roles_PD: Float32, traits_TD: Float32 | None
) -> dict[str, npt.NDArray[np.float64]]:
    axis_1D, roles_P1D = axis_D[None].astype(np.float64), roles_PD[:, None].astype(np.float64)
    centred_PD = roles_P1D[:, 0] - roles_P1D[:, 0].mean(axis=0)
    found = {
        "role_projection": project(roles_P1D, axis_1D)[:, 0],
        "default_projection": project(default_D[None, None], axis_1D)[0, 0],
        "role_axis_cosine": _cosines(centred_PD, axis_D),
    }
    if traits_TD is not None:
        found["trait_axis_cosine"] = _cosines(traits_TD, axis_D)
    if len(roles_PD) >= _MIN_ROLES:
        pca = fit_pca(roles_P1D, axis_1D)
        found |= {
            "pca_mean": pca.mean_LD[0],
            "pca_components": pca.components_LKD[0, :_MAX_COMPONENTS],
            "pca_variance_ratio": pca.variance_ratio_LK[0],
            "pc1_axis_cosine": _cosines(pca.components_LKD[0, :1], axis_D)[0],
        }
    return {name: np.asarray(values) for name, values in found.items()}


def _cosines(vectors_ND: npt.NDArray[np.floating], axis_D: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Cosine of each vector with the axis; NaN where one of them has length zero."""
    vectors_ND, axis_D = vectors_ND.astype(np.float64), axis_D.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        lengths_N = np.linalg.norm(vectors_ND, axis=1) * np.linalg.norm(axis_D)
        return (vectors_ND @ axis_D) / lengths_N
