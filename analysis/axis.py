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
    lengths = np.linalg.norm(differences_LD, axis=-1)
    return (lengths > 0) & (lengths > _ROUNDING * np.linalg.norm(means_LD, axis=-1))


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
