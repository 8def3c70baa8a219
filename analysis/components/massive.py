"""Coordinates with massive activations, which can decide a PCA that is not z-scored.

Sun, Chen, Kolter and Liu, "Massive Activations in Large Language Models" (arXiv 2402.17762), call an activation of one
token massive if it is above 100 and about 1,000 times the median magnitude of its hidden state. That rule depends on
the scale of a model, and the means over a response that are kept here leave out the first token, where most of these
activations are. The rule here is this project's own and free of scale: a coordinate of the mean vector is massive if
its magnitude is more than 100 times the median magnitude. At most two coordinates of a layer are, of three in all, in
the 30 layers of SmolLM2: they have 101 to 266 times the median, where every other coordinate has less than 91 times,
and after the first layers less than 62 times.

Axes: P vectors, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

RATIO = 100.0
"""Magnitude of a coordinate, as a multiple of the median magnitude, above which it is massive."""

NOTABLE_SHARE = 0.1
"""Share of massive coordinates in the variance of the vectors above which the z-scored PCA is the one to look at."""


def massive_coordinates(mean_LD: npt.NDArray[np.floating], ratio: float = RATIO) -> list[list[int]]:
    """List the coordinates with massive activations at each layer.

    Args:
        mean_LD: A mean activation, as the mean of the role vectors.
        ratio: Multiple of the median magnitude above which a coordinate is massive.

    Returns:
        For each layer the coordinates, the largest first; empty for most layers of most models, and where the mean is
        NaN.

    Example:
        >>> massive_coordinates(np.array([[1.0, -1.0, 2.0, -300.0, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]]))
        [[3], []]
    """
    magnitude_LD = np.abs(np.asarray(mean_LD, np.float64))
    median_L1 = np.median(magnitude_LD, axis=1, keepdims=True)
    massive_LD = magnitude_LD > ratio * median_L1
    order_LD = np.argsort(-magnitude_LD, axis=1, kind="stable")
    return [
        [int(coordinate) for coordinate in order_D if massive_D[coordinate]]
        for order_D, massive_D in zip(order_LD, massive_LD, strict=True)
    ]


def massive_share(
    vectors_PLD: npt.NDArray[np.floating], coordinates: Sequence[Sequence[int]]
) -> npt.NDArray[np.float64]:
    """Compute the share of some coordinates in the variance of vectors.

    Args:
        vectors_PLD: Vectors, as role vectors.
        coordinates: Coordinates at each layer, as ``massive_coordinates`` lists them.

    Returns:
        ``(L,)``, 0 to 1; above ``NOTABLE_SHARE`` the z-scored PCA is the one to look at. NaN where the vectors do not
        vary.

    Example:
        >>> massive_share(np.array([[[0.0, 1.0]], [[6.0, 3.0]]]), [[0]])
        array([0.9])
    """
    share_L = np.full(vectors_PLD.shape[1], np.nan)
    for position, chosen in enumerate(coordinates):
        variance_D = np.asarray(vectors_PLD[:, position], np.float64).var(axis=0)
        if (total := variance_D.sum()) > 0:
            share_L[position] = variance_D[list(chosen)].sum() / total
    return share_L
