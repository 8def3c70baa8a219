"""PCA of persona vectors, layer by layer: centred on their mean, and with or without a common scale of the coordinates.

The components of P vectors in D dimensions follow from the P x P matrix of their products, which is far smaller than
they are. ``standardised`` divides every coordinate by its standard deviation over the vectors first, so that a few
coordinates with massive activations do not decide everything.

Axes: P vectors, L layers, K components that are kept, M all components, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..axis import is_distinct

Float64 = npt.NDArray[np.float64]

MAX_KEPT = 32
"""Number of components that are kept; the variance of the others is known, and their directions are not."""

_NO_VARIANCE = 1e-12
"""Share of the first component's variance below which another's is rounding."""


@dataclass(frozen=True, eq=False)
class Pca:
    """Principal components of a set of vectors.

    Attributes:
        mean_LD: Mean of the vectors, which is subtracted before projecting.
        components_LKD: Components of unit length, sorted by decreasing variance; K is the smallest of P - 1, D and what
            was to be kept. A component without variance, as when two of the vectors are the same, is NaN. Standardised:
            in coordinates divided by ``scale_LD``.
        variance_ratio_LM: Share of each component in the total variance, 0 to 1, of all components: M is the smaller of
            P - 1 and D. Zero for a component without variance.
        defined_L: Whether there are components at each layer; where the vectors are all the same, or one is NaN,
            components and shares are NaN.
        scale_LD: Standardised: what each coordinate is divided by, its standard deviation (n - 1) over the vectors, and
            1 where it does not vary. None: nothing is divided.
    """

    mean_LD: Float64
    components_LKD: Float64
    variance_ratio_LM: Float64
    defined_L: npt.NDArray[np.bool_]
    scale_LD: Float64 | None = None

    def scores(self, vectors_PLD: npt.NDArray[np.floating]) -> Float64:
        """Project vectors onto the components; the scores of the vectors that PCA was fitted to are their loadings.

        Args:
            vectors_PLD: Vectors, not centred.

        Returns:
            Coordinates, ``(P, L, K)``.
        """
        return scores(vectors_PLD, self.mean_LD, self.components_LKD, self.scale_LD)


def scores(
    vectors_PLD: npt.NDArray[np.floating], mean_LD: Float64, components_LKD: Float64, scale_LD: Float64 | None = None
) -> Float64:
    """Project vectors onto components.

    Args:
        vectors_PLD: Vectors, not centred.
        mean_LD: What is subtracted from them.
        components_LKD: The components.
        scale_LD: What the differences are divided by; None: nothing.

    Returns:
        Coordinates, ``(P, L, K)``.
    """
    centred_PLD = vectors_PLD - mean_LD
    if scale_LD is not None:
        centred_PLD /= scale_LD
    # One matrix product per layer: einsum would not use BLAS for this.
    return np.matmul(centred_PLD.transpose(1, 0, 2), components_LKD.transpose(0, 2, 1)).transpose(1, 0, 2)


def fit_pca(
    vectors_PLD: npt.NDArray[np.floating],
    axis_LD: Float64 | None,
    *,
    standardised: bool = False,
    max_kept: int = MAX_KEPT,
) -> Pca:
    """Fit PCA at every layer.

    The sign of a component is arbitrary. The first is oriented along the axis, every other one, and the first if there
    is no axis, so that its largest coordinate is positive.

    Args:
        vectors_PLD: One vector per persona; P must be at least 3, because two points always lie on one component.
        axis_LD: The Assistant Axis, NaN at layers where it is undefined; None if the run has none.
        standardised: Whether to divide each coordinate by its standard deviation over the vectors.
        max_kept: Number of components whose directions are kept.

    Returns:
        The components; undefined at layers where the vectors are all the same or one of them is NaN.

    Raises:
        ValueError: There are fewer than three vectors.

    Example:
        >>> vectors_PLD = np.array([[[0.0, 5.0]], [[3.0, 5.0]], [[6.0, 5.0]]])
        >>> pca = fit_pca(vectors_PLD, np.array([[-1.0, 0.0]]))
        >>> pca.components_LKD[0, 0].tolist(), pca.scores(vectors_PLD)[:, 0, 0].tolist()
        ([-1.0, -0.0], [3.0, 0.0, -3.0])
    """
    num_vectors, num_layers, d_model = vectors_PLD.shape
    if num_vectors < 3:
        raise ValueError(f"PCA needs at least 3 vectors, not {num_vectors}")
    num_components = min(num_vectors - 1, d_model)
    mean_LD, scale_LD = np.empty((num_layers, d_model)), np.ones((num_layers, d_model))
    components = np.full((num_layers, min(num_components, max_kept), d_model), np.nan)
    ratio = np.full((num_layers, num_components), np.nan)
    defined_L = np.zeros(num_layers, dtype=bool)
    for position in range(num_layers):
        vectors_PD = np.asarray(vectors_PLD[:, position], np.float64)
        mean_LD[position] = vectors_PD.mean(axis=0)
        centred_PD = vectors_PD - mean_LD[position]
        defined_L[position] = np.isfinite(vectors_PD).all() and is_distinct(centred_PD, mean_LD[position]).any()
        if not defined_L[position]:
            continue
        if standardised:
            scale_LD[position] = _scale(centred_PD, mean_LD[position])
            # A coordinate that varies by rounding alone stays out: its scale is 1.
            centred_PD /= scale_LD[position]
        components[position], variance_M = _decompose(centred_PD, num_components, max_kept)
        ratio[position] = variance_M / variance_M.sum()
    signs = _signs(components, None if axis_LD is None else axis_LD / scale_LD)
    return Pca(mean_LD, components * signs, ratio, defined_L, scale_LD if standardised else None)


def _decompose(centred_PD: Float64, num_components: int, max_kept: int) -> tuple[Float64, Float64]:
    """Return the first components ``(K, D)`` and the variance of all ``(M,)`` of centred vectors."""
    num_vectors, d_model = centred_PD.shape
    if num_vectors < d_model:
        # The nonzero eigenvalues of C C' are those of C' C, and an eigenvector u of the one gives C' u of the other.
        values, vectors = np.linalg.eigh(centred_PD @ centred_PD.T)
        values_M = values[::-1][:num_components]
        directions_KD = (centred_PD.T @ vectors[:, ::-1][:, : min(num_components, max_kept)]).T
    else:
        values, vectors = np.linalg.eigh(centred_PD.T @ centred_PD)
        values_M = values[::-1][:num_components]
        directions_KD = vectors[:, ::-1][:, : min(num_components, max_kept)].T
    has_variance_M = values_M > _NO_VARIANCE * values_M[0]
    kept_K = has_variance_M[: len(directions_KD)]
    components_KD = np.full(directions_KD.shape, np.nan)
    components_KD[kept_K] = directions_KD[kept_K] / np.linalg.norm(directions_KD[kept_K], axis=1, keepdims=True)
    return components_KD, np.where(has_variance_M, values_M, 0.0) / (num_vectors - 1)


def _scale(centred_PD: Float64, mean_D: Float64) -> Float64:
    """Standard deviation of each coordinate, 1 where it is rounding of the mean."""
    deviation_D = np.sqrt(np.einsum("pd,pd->d", centred_PD, centred_PD) / (len(centred_PD) - 1))
    return np.where(deviation_D > 1e-9 * np.abs(mean_D), deviation_D, 1.0)


def _signs(components_LKD: Float64, axis_LD: Float64 | None) -> Float64:
    """Signs ``(L, K, 1)`` that orient the components."""
    # Of an undefined component every coordinate is NaN, and the sign changes nothing.
    largest = np.take_along_axis(components_LKD, np.abs(components_LKD).argmax(axis=-1, keepdims=True), axis=-1)
    signs = np.where(largest < 0, -1.0, 1.0)
    if axis_LD is not None:
        agreement_L = np.einsum("ld,ld->l", components_LKD[:, 0], axis_LD)
        oriented_L = np.isfinite(agreement_L)
        signs[oriented_L, 0, 0] = np.where(agreement_L[oriented_L] < 0, -1.0, 1.0)
    return signs


def components_for(variance_ratio_M: npt.NDArray[np.floating], share: float) -> int:
    """Count the components that together reach a share of the variance.

    Args:
        variance_ratio_M: Shares of all components, in decreasing order.
        share: The share to reach, 0 to 1.

    Raises:
        ValueError: The shares are NaN: there are no components at this layer.

    Example:
        >>> components_for(np.array([0.5, 0.25, 0.25]), 0.7)
        2
    """
    reached = np.cumsum(variance_ratio_M, dtype=np.float64)
    if not np.isfinite(reached).all():
        raise ValueError("there are no components to count")
    # Shares that add up to one may add up to a little less in floating point, and those in float32 to less still.
    return min(int(np.searchsorted(reached, share - 1e-6) + 1), len(reached))


def default_distance(pca: Pca, vectors_PLD: npt.NDArray[np.floating], default_LD: npt.NDArray[np.floating]) -> Float64:
    """Compute how far the default Assistant lies outside of the roles along each component.

    Args:
        pca: Components of the role vectors.
        vectors_PLD: The role vectors.
        default_LD: The default vector.

    Returns:
        ``(L, K)``: distance of the default's score from the nearer of the least and the greatest score of a role, as a
        fraction of the range between them. 0 at an end, positive outside, negative inside (-0.5 in the middle).

    Example:
        >>> vectors_PLD = np.array([[[0.0, 5.0]], [[3.0, 5.0]], [[6.0, 5.0]]])
        >>> default_distance(fit_pca(vectors_PLD, None), vectors_PLD, np.array([[7.5, 5.0]])).round(3)
        array([[0.25,  nan]])
    """
    scores_PLK, default_LK = pca.scores(vectors_PLD), pca.scores(np.asarray(default_LD)[None])[0]
    lowest, highest = scores_PLK.min(axis=0), scores_PLK.max(axis=0)
    outside = np.maximum(lowest - default_LK, default_LK - highest)
    width = highest - lowest
    return np.divide(outside, width, out=np.full(width.shape, np.nan), where=np.asarray(width > 0))


def rollout_variance_share(component_variance_LK: Float64, total_variance_L: Float64) -> Float64:
    """Compute how much of the variance of single rollouts lies along each component of the role vectors.

    Role vectors are means, so their components may explain most of the variance between roles and little of what single
    rollouts do.

    Args:
        component_variance_LK: Variance of the rollouts' scores along each component.
        total_variance_L: Their total variance: the trace of their covariance, of the same rollouts.

    Returns:
        ``(L, K)``, 0 to 1; NaN where the total is zero or NaN.

    Example:
        >>> rollout_variance_share(np.array([[3.0, 1.0]]), np.array([8.0]))
        array([[0.375, 0.125]])
    """
    total_L1 = np.asarray(total_variance_L, np.float64)[:, None]
    has_total = np.broadcast_to(total_L1 > 0, component_variance_LK.shape)
    return np.divide(component_variance_LK, total_L1, out=np.full(component_variance_LK.shape, np.nan), where=has_total)
