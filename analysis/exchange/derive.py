"""What follows from vectors alone, without rollouts: projections of role vectors, cosines, PCA.

Axes: P roles, T traits, L layers, D d_model.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..axis import cosine_or_nan, project, role_axis_cosines, trait_axis_cosines
from ..components.pca import default_distance, fit_pca

Float32 = npt.NDArray[np.float32]

_MIN_ROLES = 3
"""Least number of roles for PCA: two points always lie on one component."""


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
    default_1D = default_D[None].astype(np.float64)
    found = {
        "role_projection": project(roles_P1D, axis_1D)[:, 0],
        "default_projection": project(default_1D[None], axis_1D)[0, 0],
        "role_axis_cosine": role_axis_cosines(roles_P1D, axis_1D)[:, 0],
    }
    if traits_TD is not None:
        found["trait_axis_cosine"] = trait_axis_cosines(traits_TD[:, None], axis_1D)[:, 0]
    if len(roles_PD) >= _MIN_ROLES:
        pca = fit_pca(roles_P1D, axis_1D)
        found |= {
            "pca_mean": pca.mean_LD[0],
            "pca_components": pca.components_LKD[0],
            "pca_variance_ratio": pca.variance_ratio_LM[0],
            "pca_default_distance": default_distance(pca, roles_P1D, default_1D)[0],
            "pc1_axis_cosine": cosine_or_nan(pca.components_LKD[0, 0], axis_D),
        }
    return {name: np.asarray(values) for name, values in found.items()}
