"""How alike two sets of role vectors lie: directions where both have the same coordinates, similarities in any case.

Directions of two models can be compared only where one was trained from the other, or both from one. Which roles are
like which can be compared between any two: that is representational similarity analysis (Kriegeskorte, Mur and
Bandettini, 2008). Axes: P common roles, K components, D d_model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..axis import cosine_or_nan

Float64 = npt.NDArray[np.float64]


def similarity_correlation(a_PD: Float64, b_PD: Float64) -> float:
    """Correlate the cosines of all pairs of roles in one model with those in another.

    The mean role is taken off each side first, since vectors of one model have most of their length in common.

    Args:
        a_PD: Role vectors of the first, at one layer.
        b_PD: Those of the second, of the same roles in the same order; they may be of another width.

    Returns:
        Pearson's correlation over the P (P - 1) / 2 pairs, -1 to 1; NaN where the cosines of one side are all the same,
        as of three roles.

    Example:
        >>> vectors_PD = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [-1.0, -1.0]])
        >>> round(similarity_correlation(vectors_PD, vectors_PD @ np.array([[0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])), 6)
        1.0
    """
    pairs = np.triu_indices(len(a_PD), k=1)
    a, b = (_cosines(centred(side_PD))[pairs] for side_PD in (a_PD, b_PD))
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    return float(cosine_or_nan(a - a.mean(), b - b.mean())) if len(a) else float("nan")


def role_cosines(a_PD: Float64, b_PD: Float64) -> Float64:
    """Compute the cosine of each role's vector in one model with its vector in the other, each less its mean role.

    Args:
        a_PD: Role vectors of the first.
        b_PD: Those of the second, in the same coordinates.

    Returns:
        ``(P,)``; NaN for a role that lies at the mean.
    """
    return cosine_or_nan(centred(a_PD), centred(b_PD))


def principal_cosines(a_KD: Float64, b_KD: Float64) -> Float64:
    """Compute the cosines of the principal angles between the spans of two sets of components.

    As by Björck and Golub (1973): the singular values of the products of two orthonormal bases.

    Args:
        a_KD: Components of the first: orthogonal, of length one.
        b_KD: Those of the second, in the same coordinates, as many.

    Returns:
        ``(K,)``, in decreasing order, 0 to 1. Their mean square is the share of the one span that lies in the other; it
        is K / D for spans of random directions.

    Example:
        >>> principal_cosines(np.eye(4)[:2], np.eye(4)[[1, 2]]).tolist()
        [1.0, 0.0]
    """
    return np.linalg.svd(a_KD @ b_KD.T, compute_uv=False).clip(0, 1)


def centred(vectors_PD: Float64) -> Float64:
    """Subtract the mean of the vectors."""
    return vectors_PD - vectors_PD.mean(axis=0)


def _cosines(vectors_PD: Float64) -> Float64:
    """Compute the cosines of all pairs, ``(P, P)``; NaN for pairs with a vector of length zero."""
    lengths_P1 = np.linalg.norm(vectors_PD, axis=1, keepdims=True)
    units_PD = np.divide(vectors_PD, lengths_P1, out=np.full(vectors_PD.shape, np.nan), where=lengths_P1 > 0)
    # A product of matrices: all pairs of several hundred wide vectors side by side would take gigabytes.
    return units_PD @ units_PD.T
