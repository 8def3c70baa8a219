"""The Assistant Axis and projections onto it.

Lu, Gallagher, Michala, Fish, Lindsey, "The Assistant Axis", arXiv 2601.10387. Axes: P roles, N rollouts, L layers,
D d_model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


def assistant_axis(default_LD: Float64, role_vectors_PLD: Float64) -> Float64:
    """Compute mean(default) - mean over roles of the role vectors, every role with equal weight.

    It points toward the Assistant and is not normalised.

    Args:
        default_LD: Mean over the default Assistant's rollouts.
        role_vectors_PLD: One vector a role.

    Returns:
        ``(L, D)``.
    """
    return default_LD - role_vectors_PLD.mean(axis=0)


def unit(vectors: Float64) -> Float64:
    """Scale the last axis to length one.

    Raises:
        ValueError: A vector has no length, so no direction.
    """
    norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
    if not (norms > 0).all():
        raise ValueError("a vector of length zero has no direction")
    return vectors / norms


def project(values_NLD: npt.NDArray[np.floating], axis_LD: Float64) -> Float64:
    """Project onto the unit axis, layer by layer: a dot product, not centred, so zero means nothing by itself.

    Returns:
        ``(N, L)`` in the units of the residual stream, in axis sign (up is toward the Assistant).
    """
    return np.einsum("nld,ld->nl", values_NLD.astype(np.float64), unit(axis_LD))


def cosine(a: Float64, b: Float64) -> Float64:
    """Cosine along the last axis."""
    return (unit(a) * unit(b)).sum(axis=-1)
