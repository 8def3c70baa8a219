"""How far the axis and the first principal component depend on which roles there are: a bootstrap over roles.

Roles are drawn with replacement, and axis and PCA are computed of each sample (Efron and Tibshirani, "An Introduction
to the Bootstrap", chapter 13: percentile intervals). No sample's vectors are formed: all that is asked for follows from
the products of the centred role vectors with each other and with the axis, a P x P matrix per layer, so that a thousand
samples of a model with d_model 8192 cost less than the means.

Axes: P roles, B samples, L layers, D d_model, K leading components.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .axis import is_distinct

Float64 = npt.NDArray[np.float64]

SAMPLES = 1000
"""Number of bootstrap samples."""
BOUNDS = (2.5, 97.5)
"""Percentiles of the samples that bound an interval of 95 %."""

_LEADING = 32
"""Components in which the first one of a sample is looked for, before it is corrected in all of them."""
_CORRECTIONS = 3


@dataclass(frozen=True, eq=False)
class AxisBootstrap:
    """Intervals over bootstrap samples of the roles.

    Attributes:
        axis_interval_2L: 2.5th and 97.5th percentile of the cosine between the axis of a sample and the axis of all
            roles.
        pc1_interval_2L: The same of the absolute cosine between the first component and the axis of a sample.
    """

    axis_interval_2L: Float64
    pc1_interval_2L: Float64


def bootstrap_axis(
    default_LD: Float64, role_vectors_PLD: Float64, samples: int = SAMPLES, seed: int = 0
) -> AxisBootstrap:
    """Compute how much the axis and its cosine with the first component vary with the choice of roles.

    The default vector is the same in all samples. Layers are treated alike, whichever of them are given together: every
    layer sees the same samples. A sample of P roles has about 63 % of them, some more than once.

    Args:
        default_LD: Default vector.
        role_vectors_PLD: Role vectors; at least two for an interval of the axis and three for that of the component.
        samples: Number of bootstrap samples B.
        seed: Seed of the random choice.

    Returns:
        The intervals, NaN at layers where the axis or the component is undefined.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> roles_PLD = rng.standard_normal((40, 1, 8))
        >>> found = bootstrap_axis(np.full((1, 8), 5.0), roles_PLD, samples=200)
        >>> bool(found.axis_interval_2L[0, 0] > 0.99)
        True
    """
    num_roles, num_layers, _ = role_vectors_PLD.shape
    axis_2L, pc1_2L = np.full((2, num_layers), np.nan), np.full((2, num_layers), np.nan)
    if num_roles < 2:
        return AxisBootstrap(axis_2L, pc1_2L)
    counts_BP = np.random.default_rng(seed).multinomial(num_roles, np.full(num_roles, 1 / num_roles), size=samples)
    weights_BP = counts_BP / num_roles
    for position in range(num_layers):
        roles_PD = np.asarray(role_vectors_PLD[:, position], np.float64)
        mean_D = roles_PD.mean(axis=0)
        axis_D = default_LD[position] - mean_D
        if not is_distinct(axis_D, mean_D):
            continue
        centred_PD = roles_PD - mean_D
        gram_PP, on_axis_P = centred_PD @ centred_PD.T, centred_PD @ axis_D
        squared = float(axis_D @ axis_D)
        spread_B = np.einsum("bp,bp->b", weights_BP @ gram_PP, weights_BP)
        length_B = np.sqrt(np.maximum(squared - 2 * (weights_BP @ on_axis_P) + spread_B, 0))
        has_axis_B = length_B > 1e-9 * np.linalg.norm(mean_D)
        cosine_B = _divide(squared - weights_BP @ on_axis_P, length_B * np.sqrt(squared), has_axis_B)
        axis_2L[:, position] = _bounds(cosine_B)
        if num_roles >= 3 and is_distinct(centred_PD, mean_D[None]).any():
            along_B = _first_component_along_axis(gram_PP, on_axis_P, weights_BP)
            pc1_2L[:, position] = _bounds(_divide(along_B, length_B, has_axis_B))
    return AxisBootstrap(axis_2L, pc1_2L)


def _first_component_along_axis(gram_PP: Float64, on_axis_P: Float64, weights_BP: Float64) -> Float64:
    """Length of each sample's axis along its first component, absolute, ``(B,)``.

    Everything is expressed in the principal components of all roles: coordinates Z of the roles, a of the axis. The
    first component of a sample is that of its weighted covariance Z' (W - w w') Z.
    """
    values, vectors = np.linalg.eigh(gram_PP)
    kept = values > 1e-12 * values[-1]
    lengths_K = np.sqrt(values[kept][::-1])
    basis_PK = vectors[:, kept][:, ::-1]
    roles_PK, axis_K = basis_PK * lengths_K, (on_axis_P @ basis_PK) / lengths_K
    leading = min(_LEADING, len(lengths_K))
    near_PJ = roles_PK[:, :leading]
    products_PJJ = near_PJ[:, :, None] * near_PJ[:, None, :]
    covariance_BJJ = (weights_BP @ products_PJJ.reshape(len(near_PJ), -1)).reshape(-1, leading, leading)
    mean_BK = weights_BP @ roles_PK
    covariance_BJJ -= mean_BK[:, :leading, None] * mean_BK[:, None, :leading]
    first_BK = np.zeros((len(weights_BP), len(lengths_K)))
    first_BK[:, :leading] = np.linalg.eigh(covariance_BJJ)[1][:, :, -1]
    if leading < len(lengths_K):
        # What the first component has outside of the leading ones is small, and each product with the whole covariance
        # leaves a smaller part of its error: the share of a far component's variance in that of the first.
        for _ in range(_CORRECTIONS):
            scores_BP = first_BK @ roles_PK.T - np.einsum("bk,bk->b", mean_BK, first_BK)[:, None]
            first_BK = (weights_BP * scores_BP) @ roles_PK - (weights_BP * scores_BP).sum(axis=1)[:, None] * mean_BK
            first_BK /= np.linalg.norm(first_BK, axis=1, keepdims=True)
    return np.abs(np.einsum("bk,bk->b", first_BK, axis_K - mean_BK))


def _divide(above_B: Float64, below_B: Float64, where_B: npt.NDArray[np.bool_]) -> Float64:
    return np.divide(above_B, below_B, out=np.full(len(above_B), np.nan), where=where_B).clip(-1, 1)


def _bounds(samples_B: Float64) -> Float64:
    """Percentile interval, of the samples that have a value; NaN if none has."""
    present_B = samples_B[np.isfinite(samples_B)]
    return np.percentile(present_B, BOUNDS) if present_B.size else np.full(2, np.nan)
