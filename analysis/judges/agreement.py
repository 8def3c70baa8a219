"""How far two judges agree: weighted kappa, confusion table, correlation. Pure numpy.

Axes: N rollouts that both judges have scored; C categories of the scale, ascending.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...jobs.judging.outcomes import SCALES
from ...jobs.personas import Kind

_TRAIT_BINS = 10

BINS: dict[Kind, tuple[str, ...]] = {
    "role": tuple(str(score) for score in range(SCALES["role"][1] + 1)),
    "trait": tuple(f"{10 * b}-{10 * b + 9 if b < _TRAIT_BINS - 1 else 100}" for b in range(_TRAIT_BINS)),
}
"""Labels of the categories of each kind, ascending: the four scores of roles, and tens of the scores of traits."""


@dataclass(frozen=True, eq=False)
class Agreement:
    """Agreement of two judges about the rollouts of one kind that both have scored.

    Attributes:
        rollouts: Their number.
        weighted_kappa: Cohen's kappa with quadratic weights over the categories; NaN where it is undefined, because
            there is no rollout or both judges give all of them one and the same category.
        correlation: Pearson's correlation of the scores; NaN where a judge gives all rollouts the same score.
        mean_absolute_difference: Mean of the absolute difference of the scores; NaN without rollouts.
        confusion: int64 ``(C, C)``, number of rollouts by category of the first judge (rows) and of the second.
    """

    rollouts: int
    weighted_kappa: float
    correlation: float
    mean_absolute_difference: float
    confusion: npt.NDArray[np.int64]


def categories(kind: Kind, scores_N: npt.ArrayLike) -> npt.NDArray[np.int64]:
    """Return the category of each score, an index into ``BINS``: for roles the nearest of 0 to 3, for traits the ten.

    Args:
        kind: ``role`` or ``trait``.
        scores_N: Scores on the scale of the kind.

    Example:
        >>> categories("role", [0, 2.6, 3]).tolist(), categories("trait", [0, 9.9, 10, 100]).tolist()
        ([0, 3, 3], [0, 0, 1, 9])
    """
    scores_N = np.asarray(scores_N, dtype=np.float64)
    if kind == "role":
        return np.rint(scores_N).astype(np.int64)
    return np.minimum(scores_N // 10, _TRAIT_BINS - 1).astype(np.int64)


def agreement(kind: Kind, first_N: npt.ArrayLike, second_N: npt.ArrayLike) -> Agreement:
    """Compare the scores that two judges gave the same rollouts.

    Args:
        kind: ``role`` or ``trait``, which decides the categories.
        first_N: Scores of the first judge.
        second_N: Scores of the second, in the same order.

    Example:
        >>> found = agreement("role", [0, 1, 2, 3], [0, 1, 2, 2])
        >>> round(found.weighted_kappa, 3), found.mean_absolute_difference
        (0.875, 0.25)
    """
    a_N, b_N = (np.asarray(scores, dtype=np.float64) for scores in (first_N, second_N))
    num_categories = len(BINS[kind])
    confusion_CC = np.zeros((num_categories, num_categories), dtype=np.int64)
    np.add.at(confusion_CC, (categories(kind, a_N), categories(kind, b_N)), 1)
    return Agreement(
        rollouts=len(a_N),
        weighted_kappa=weighted_kappa(confusion_CC),
        correlation=_correlation(a_N, b_N),
        mean_absolute_difference=float(np.abs(a_N - b_N).mean()) if len(a_N) else float("nan"),
        confusion=confusion_CC,
    )


def weighted_kappa(confusion_CC: npt.NDArray[np.int64]) -> float:
    """Compute Cohen's kappa with quadratic weights: 1 - observed / expected weighted disagreement.

    Cohen (1968), Weighted kappa. The weight of categories i and j is (i - j)^2; what is expected follows from the
    margins, as if the judges were independent.

    Args:
        confusion_CC: Number of rollouts by category of one judge (rows) and of the other (columns).

    Returns:
        1 for full agreement, 0 for as much as by chance; NaN where chance alone would give no disagreement.

    Example:
        >>> weighted_kappa(np.array([[2, 0], [0, 2]])), weighted_kappa(np.array([[1, 1], [1, 1]]))
        (1.0, 0.0)
    """
    counts_CC = np.asarray(confusion_CC, dtype=np.float64)
    total = counts_CC.sum()
    place_C = np.arange(len(counts_CC), dtype=np.float64)
    weights_CC = (place_C[:, None] - place_C[None, :]) ** 2
    observed = (weights_CC * counts_CC).sum()
    margins_CC = np.outer(counts_CC.sum(axis=1), counts_CC.sum(axis=0))
    expected = (weights_CC * margins_CC).sum() / total if total else 0.0
    return float(1 - observed / expected) if expected > 0 else float("nan")


def _correlation(a_N: npt.NDArray[np.float64], b_N: npt.NDArray[np.float64]) -> float:
    if len(a_N) < 2 or np.ptp(a_N) == 0 or np.ptp(b_N) == 0:
        return float("nan")
    return float(np.corrcoef(a_N, b_N)[0, 1])
