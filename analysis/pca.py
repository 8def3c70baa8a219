"""PCA of role vectors, layer by layer: centred on their mean, no scaling. Axes: P roles, L layers, K components, D."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .axis import unit

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pca:
    """Principal components of a set of vectors.

    Attributes:
        mean_LD: What was subtracted.
        components_LKD: Unit length, by falling variance; K is at most P - 1.
        variance_ratio_LK: Share of the total variance.
    """

    mean_LD: Float64
    components_LKD: Float64
    variance_ratio_LK: Float64

    def scores(self, vectors_PLD: Float64) -> Float64:
        """Give coordinates ``(P, L, K)`` of vectors in the components."""
        return np.einsum("pld,lkd->plk", vectors_PLD - self.mean_LD, self.components_LKD)


def fit_pca(vectors_PLD: Float64, axis_LD: Float64 | None) -> Pca:
    """Fit PCA at every layer.

    A component's sign is arbitrary: the first is oriented to agree with the axis, all others (and the first where
    there is no axis) to have their largest coordinate positive.

    Args:
        vectors_PLD: One vector a role, P of at least 3, so that two components mean something.
        axis_LD: The Assistant Axis, if there is one.

    Raises:
        ValueError: Fewer than three vectors, or no variance among them.
    """
    num_vectors, num_layers, d_model = vectors_PLD.shape
    if num_vectors < 3:
        raise ValueError(f"PCA needs at least 3 vectors, not {num_vectors}")
    mean_LD = vectors_PLD.mean(axis=0)
    num_components = min(num_vectors - 1, d_model)
    components = np.empty((num_layers, num_components, d_model))
    ratio = np.empty((num_layers, num_components))
    for position in range(num_layers):
        _, singular, right = np.linalg.svd(vectors_PLD[:, position] - mean_LD[position], full_matrices=False)
        variance = singular[:num_components] ** 2
        if not variance.sum() > 0:
            raise ValueError("the vectors are all the same")
        components[position] = right[:num_components]
        ratio[position] = variance / (singular**2).sum()
    largest = np.take_along_axis(components, np.abs(components).argmax(axis=-1, keepdims=True), axis=-1)
    signs = np.where(largest < 0, -1.0, 1.0)
    if axis_LD is not None:
        agreement = np.einsum("ld,ld->l", components[:, 0], unit(axis_LD))
        signs[:, 0, 0] = np.where(agreement < 0, -1.0, 1.0)
    return Pca(mean_LD, components * signs, ratio)


def components_for(variance_ratio_K: npt.NDArray[np.floating], share: float) -> int:
    """Count the components that together reach a share of the variance.

    Example:
        >>> components_for(np.array([0.5, 0.25, 0.25]), 0.7)
        2
    """
    reached = np.cumsum(variance_ratio_K, dtype=np.float64)
    # A hair's slack: shares that sum to one may sum to a little less.
    return int(np.searchsorted(reached, share - 1e-9) + 1)
