"""The Assistant Axis and projections onto it.

As in Lu, Gallagher, Michala, Fish and Lindsey, "The Assistant Axis", arXiv 2601.10387.
Axes: P roles, N rollouts, L layers, D d_model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def assistant_axis(default_LD: Float64, role_vectors_PLD: Float64) -> Float64:
    """Compute the mean of the default Assistant minus the mean of the role vectors, each role with equal weight.

    Args:
        default_LD: Mean over the default Assistant's rollouts.
        role_vectors_PLD: Mean over each role's rollouts.

    Returns:
        ``(L, D)``, not normalised; it points toward the Assistant.

    Example:
        >>> default_LD = np.array([[3.0, 0.0]])
        >>> assistant_axis(default_LD, np.array([[[1.0, 1.0]], [[1.0, -1.0]]]))
        array([[2., 0.]])
    """
    return default_LD - role_vectors_PLD.mean(axis=0)


_ROUNDING = 1e-9
"""Length of a difference of means, as a share of their length, that is rounding: equal vectors leave up to 1e-13."""


def is_distinct(differences_LD: Float64, means_LD: Float64) -> npt.NDArray[np.bool_]:
    """Whether vectors differ at each layer by more than their means are rounded.

    They do not where the same token is pooled in every rollout and nothing before it is mixed in, as the last token of
    the template is at the input of the first layer.

    Args:
        differences_LD: ``(..., L, D)``, differences of vectors.
        means_LD: ``(L, D)``, a vector of the size of those that were subtracted.

    Returns:
        ``(..., L)``.

    Example:
        >>> is_distinct(np.array([[0.0, 0.0], [0.0, 0.1]]), np.array([[1.0, 2.0], [1.0, 2.0]])).tolist()
        [False, True]
    """
    # Not np.linalg.norm, which holds the squares of all coordinates of all vectors.
    lengths = np.sqrt(np.einsum("...d,...d->...", differences_LD, differences_LD))
    return np.asarray((lengths > 0) & (lengths > _ROUNDING * np.linalg.norm(means_LD, axis=-1)))


def unit(vectors: Float64) -> Float64:
    """Scale vectors along the last axis to length one.

    Args:
        vectors: ``(..., D)``.

    Raises:
        ValueError: A vector has length zero.

    Example:
        >>> unit(np.array([3.0, 4.0]))
        array([0.6, 0.8])
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError("a vector of length zero has no direction")
    return vectors / norms


def project(values_NLD: npt.NDArray[np.floating], axis_LD: Float64) -> Float64:
    """Project activations onto the unit axis, layer by layer.

    The dot product is not centred, so its zero has no meaning; only differences between projections do.

    Args:
        values_NLD: Activations.
        axis_LD: The axis, of any length.

    Returns:
        ``(N, L)`` in units of the residual stream; higher is nearer the Assistant.

    Raises:
        ValueError: The axis has length zero at a layer.

    Example:
        >>> project(np.array([[[3.0, 1.0]]]), np.array([[2.0, 0.0]]))
        array([[3.]])
    """
    return np.einsum("nld,ld->nl", values_NLD.astype(np.float64), unit(axis_LD))


def cosine(a: Float64, b: Float64) -> Float64:
    """Compute the cosine of pairs of vectors along the last axis.

    Args:
        a: ``(..., D)``.
        b: ``(..., D)``.

    Returns:
        ``(...)``, from -1 to 1.

    Raises:
        ValueError: A vector has length zero.

    Example:
        >>> float(cosine(np.array([1.0, 0.0]), np.array([0.0, 2.0])))
        0.0
    """
    return (unit(a) * unit(b)).sum(axis=-1)


def cosine_or_nan(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Float64:
    """Compute the cosine of pairs of vectors along the last axis, NaN where one has no direction.

    Args:
        a: ``(..., D)``; a vector of NaN or of length zero has no direction.
        b: ``(..., D)``, of a shape that broadcasts with ``a``.

    Returns:
        ``(...)``, from -1 to 1 or NaN.

    Example:
        >>> cosine_or_nan(np.array([[1.0, 0.0], [0.0, 0.0]]), np.array([2.0, 0.0]))
        array([ 1., nan])
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    products = (a * b).sum(axis=-1)
    has_direction = np.asarray(lengths > 0)
    return np.divide(products, lengths, out=np.full(np.shape(products), np.nan), where=has_direction).clip(-1, 1)


def role_axis_cosines(role_vectors_PLD: npt.NDArray[np.floating], axis_LD: Float64) -> Float64:
    """Compute the cosine of every role vector with the axis, after the mean role vector is subtracted.

    Without that, every role has nearly the same cosine: role vectors share a mean activation that is many times longer
    than what tells them apart. The same cannot be said of trait vectors, which are differences already.

    Args:
        role_vectors_PLD: Role vectors, NaN where there is none.
        axis_LD: The axis, NaN at layers where it is undefined.

    Returns:
        ``(P, L)``, NaN where the role vector or the axis is, or where the vector is the mean. Above zero: nearer the
        Assistant than the mean role.

    Example:
        >>> role_axis_cosines(np.array([[[8.0, 1.0]], [[8.0, -1.0]]]), np.array([[0.0, 2.0]])).ravel()
        array([ 1., -1.])
    """
    values_PLD = np.asarray(role_vectors_PLD, np.float64)
    mean_LD = _mean_of_present(values_PLD)
    centred_PLD = values_PLD - mean_LD
    cosines_PL = cosine_or_nan(centred_PLD, axis_LD)
    return np.where(is_distinct(centred_PLD, mean_LD), cosines_PL, np.nan)


def trait_axis_cosines(trait_vectors_TLD: npt.NDArray[np.floating], axis_LD: Float64) -> Float64:
    """Compute the cosine of every trait vector with the axis.

    Args:
        trait_vectors_TLD: Differences of means, as the kinds ``pos_neg``, ``pos_neg_50`` and ``pos_default`` are; NaN
            where there is none.
        axis_LD: The axis, NaN at layers where it is undefined.

    Returns:
        ``(T, L)``, NaN where either is. Above zero: the trait points toward the Assistant.

    Example:
        >>> trait_axis_cosines(np.array([[[3.0, 4.0]], [[np.nan, np.nan]]]), np.array([[0.0, 1.0]])).ravel()
        array([0.8, nan])
    """
    return cosine_or_nan(trait_vectors_TLD, axis_LD)


def split_half(default_2LD: Float64, role_vectors_2PLD: Float64) -> Float64:
    """Compute the cosine between the axes of two halves of the questions.

    The axis is computed twice, from rollouts of the questions with even and with odd index. The closer to 1, the less
    of it depends on which questions were asked; both halves have half of the rollouts, so the whole axis is more
    reliable.

    Args:
        default_2LD: Default vector of each half.
        role_vectors_2PLD: The same roles' vectors of each half, NaN for a role without rollouts in a half; such a role
            is left out of both.

    Returns:
        ``(L,)``, from -1 to 1; NaN where a half has no axis.

    Example:
        >>> default_2LD = np.array([[[4.0, 0.0]], [[4.0, 0.0]]])
        >>> split_half(default_2LD, np.array([[[[1.0, 0.0]]], [[[4.0, 3.0]]]]))
        array([0.])
    """
    in_both_PL = np.asarray(np.isfinite(role_vectors_2PLD).all(axis=(0, 3)))
    axes_2LD = np.full(default_2LD.shape, np.nan)
    for half in range(2):
        kept_PLD = np.where(in_both_PL[..., None], role_vectors_2PLD[half], np.nan)
        axes_2LD[half] = default_2LD[half] - _mean_of_present(kept_PLD)
        axes_2LD[half][~is_distinct(axes_2LD[half], default_2LD[half])] = np.nan
    return cosine_or_nan(axes_2LD[0], axes_2LD[1])


def _mean_of_present(vectors_PLD: Float64) -> Float64:
    """Mean over the vectors without NaN, ``(L, D)``; NaN at a layer that has none."""
    present_PL = np.asarray(np.isfinite(vectors_PLD).all(axis=-1))
    total_LD = np.where(present_PL[..., None], vectors_PLD, 0.0).sum(axis=0)
    counts_L1 = np.asarray(present_PL.sum(axis=0))[:, None]
    return np.divide(total_LD, counts_L1, out=np.full(total_LD.shape, np.nan), where=counts_L1 > 0)
