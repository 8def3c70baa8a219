"""PCA of role vectors, layer by layer: centred on their mean, not scaled.

Axes: P roles, L layers, K components, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .axis import is_distinct, unit

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pca:
    """Principal components of a set of vectors.

    Attributes:
        mean_LD: Mean of the vectors, which is subtracted before projecting.
        components_LKD: Components of unit length, sorted by decreasing variance; K is the smaller of P - 1 and D.
        variance_ratio_LK: Share of each component in the total variance, 0 to 1.
        defined_L: Whether there are components at each layer; where the vectors are all the same, components and
            shares are NaN.
    """

    mean_LD: Float64
    components_LKD: Float64
    variance_ratio_LK: Float64
    defined_L: npt.NDArray[np.bool_]

    def scores(self, vectors_PLD: Float64) -> Float64:
        """Project vectors onto the components.

        Args:
            vectors_PLD: Vectors, not centred.

        Returns:
            Coordinates, ``(P, L, K)``.
        """
        return np.einsum("pld,lkd->plk", vectors_PLD - self.mean_LD, self.components_LKD)


def fit_pca(vectors_PLD: Float64, axis_LD: Float64 | None) -> Pca:
    """Fit PCA at every layer.

    The sign of a component is arbitrary. The first is oriented along the axis, every other one, and the first if there
    is no axis, so that its largest coordinate is positive.

    Args:
        vectors_PLD: One vector per role; P must be at least 3, because two points always lie on one component.
        axis_LD: The Assistant Axis, NaN at layers where it is undefined; None if the run has none.

    Returns:
        The components; undefined at layers where the vectors are all the same.

    Raises:
        ValueError: There are fewer than three vectors.
    """
    num_vectors, num_layers, d_model = vectors_PLD.shape
    if num_vectors < 3:
        raise ValueError(f"PCA needs at least 3 vectors, not {num_vectors}")
    mean_LD = vectors_PLD.mean(axis=0)
    num_components = min(num_vectors - 1, d_model)
    components = np.full((num_layers, num_components, d_model), np.nan)
    ratio = np.full((num_layers, num_components), np.nan)
    defined_L = np.asarray(is_distinct(vectors_PLD - mean_LD, mean_LD).any(axis=0))
    for position in np.flatnonzero(defined_L):
        _, singular, right = np.linalg.svd(vectors_PLD[:, position] - mean_LD[position], full_matrices=False)
        variance = singular[:num_components] ** 2
        components[position] = right[:num_components]
        ratio[position] = variance / (singular**2).sum()
    # Of an undefined layer every coordinate is NaN, and the sign changes nothing.
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=-1, keepdims=True), axis=-1)
    signs = np.where(largest < 0, -1.0, 1.0)
    if axis_LD is not None:
        oriented_L = defined_L & np.isfinite(axis_LD).all(axis=1)
        agreement = np.einsum("ld,ld->l", components[oriented_L, 0], unit(axis_LD[oriented_L]))
        signs[oriented_L, 0, 0] = np.where(agreement < 0, -1.0, 1.0)
    return Pca(mean_LD, components * signs, ratio, np.asarray(defined_L))


def components_for(variance_ratio_K: npt.NDArray[np.floating], share: float) -> int:
    """Count the components that together reach a share of the variance.

    Args:
        variance_ratio_K: Shares of the components, in decreasing order.
        share: The share to reach, 0 to 1.

    Example:
        >>> components_for(np.array([0.5, 0.25, 0.25]), 0.7)
        2
    """
    reached = np.cumsum(variance_ratio_K, dtype=np.float64)
    # Shares that add up to one may add up to a little less in floating point.
    return int(np.searchsorted(reached, share - 1e-9) + 1)
