"""How long activations are, from the moments of their personas. Axes: G personas, D d_model."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def root_mean_square(
    mean_GD: npt.NDArray[np.floating], variance_GD: npt.NDArray[np.floating], count_G: npt.NDArray[np.integer]
) -> float:
    """Compute the root mean square length of the vectors behind some means.

    The mean of |h|^2 over a group is |mean|^2 plus the summed squared deviations divided by their number.

    Args:
        mean_GD: Mean of each group.
        variance_GD: Its variance (n - 1); NaN for a single vector, which deviates by nothing from its own mean.
        count_G: Number of its vectors.

    Returns:
        The length; every vector counts once.

    Example:
        >>> vectors = np.array([[3.0, 4.0], [5.0, 0.0], [0.0, 1.0]])
        >>> means = np.stack([vectors[:2].mean(axis=0), vectors[2]])
        >>> variances = np.stack([vectors[:2].var(axis=0, ddof=1), [np.nan, np.nan]])
        >>> found = root_mean_square(means, variances, np.array([2, 1]))
        >>> bool(np.isclose(found, np.sqrt((25 + 25 + 1) / 3)))
        True
    """
    deviations_G = np.where(count_G > 1, (count_G - 1) * np.asarray(variance_GD, np.float64).sum(axis=1), 0.0)
    squares_G = count_G * (np.asarray(mean_GD, np.float64) ** 2).sum(axis=1) + deviations_G
    return float(np.sqrt(squares_G.sum() / count_G.sum()))
