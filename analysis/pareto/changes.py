"""Changes of a rate or a score under settings, against the model as it is, with bootstrap samples. Pure.

The items (prompts, or documents of a task) are drawn with replacement, the same ones for every setting and for the
model as it is, so that what an item contributes to all of them cancels (Efron and Tibshirani, "An Introduction to the
Bootstrap", chapters 8 and 13: paired data, percentile intervals).
Axes: S settings, P items, B bootstrap samples, T tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..bootstrap import BOUNDS

Float64 = npt.NDArray[np.float64]

SAMPLES = 2000
"""Number of bootstrap samples."""

_AT_ONCE = 64
"""Samples that are drawn at a time, so that a task of many thousand documents needs little memory."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change against the model as it is.

    Attributes:
        value: The change; 0 is no change.
        low: Lower end of its interval of 95 %.
        high: Upper end.

    Raises:
        ValueError: One of them is not a number: a point that is not known cannot be compared with others.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not all(np.isfinite([self.value, self.low, self.high])):
            raise ValueError(f"a change is not a finite number: {self.value}, from {self.low} to {self.high}")


NO_CHANGE = Change(0.0, 0.0, 0.0)
"""The change of the model as it is."""


@dataclass(frozen=True, eq=False)
class Changes:
    """The changes of several settings.

    Attributes:
        value_S: The change of each setting; NaN where it is not known.
        samples_SB: The same in each bootstrap sample.
    """

    value_S: Float64
    samples_SB: Float64

    def of(self, setting: int) -> Change:
        """Return the change of one setting.

        Args:
            setting: Its index along S.

        Raises:
            ValueError: It is not known.
        """
        known_B = self.samples_SB[setting][np.isfinite(self.samples_SB[setting])]
        low, high = np.percentile(known_B, BOUNDS) if known_B.size else (np.nan, np.nan)
        return Change(float(self.value_S[setting]), float(low), float(high))


def paired_changes(rates_SP: Float64, plain_P: Float64, samples: int = SAMPLES, seed: int = 0) -> Changes:
    """Compare settings with the model as it is, item by item.

    Args:
        rates_SP: Value of each item under each setting, such as the share of its replies that are harmful; NaN where it
            has none. Such an item counts for no change of that setting.
        plain_P: Value of each item without edits; NaN likewise, for every setting.
        samples: Number of bootstrap samples B.
        seed: Seed of the draws.

    Returns:
        The mean difference, setting less plain, over the items that have both.

    Example:
        >>> found = paired_changes(np.array([[0.0, 0.0, 1.0, 0.0]]), np.array([1.0, 1.0, 1.0, 0.0]))
        >>> found.of(0)
        Change(value=-0.5, low=-1.0, high=0.0)
    """
    difference_SP = np.asarray(rates_SP, np.float64) - np.asarray(plain_P, np.float64)
    known_SP = np.isfinite(difference_SP)
    filled_SP = np.where(known_SP, difference_SP, 0.0)
    num_settings, num_items = difference_SP.shape
    samples_SB = np.full((num_settings, samples), np.nan)
    if num_items:
        random = np.random.default_rng(seed)
        shares_P = np.full(num_items, 1 / num_items)
        for start in range(0, samples, _AT_ONCE):
            counts_bP = random.multinomial(num_items, shares_P, size=min(_AT_ONCE, samples - start)).astype(np.float64)
            sums_Sb, totals_Sb = filled_SP @ counts_bP.T, known_SP.astype(np.float64) @ counts_bP.T
            samples_SB[:, start : start + len(counts_bP)] = _divide(sums_Sb, totals_Sb)
    return Changes(_divide(filled_SP.sum(axis=1), known_SP.sum(axis=1)), samples_SB)


def normal_changes(value_S: Float64, error_S: Float64, samples: int = SAMPLES, seed: int = 0) -> Changes:
    """Make changes of which only standard errors are known, as draws of normal distributions.

    Args:
        value_S: The changes.
        error_S: Their standard errors; of a difference of two scores that were not paired, the root of the sum of both
            squares.
        samples: Number of draws B.
        seed: Seed of the draws.

    Example:
        >>> change = normal_changes(np.array([0.02]), np.array([0.01]), samples=100_000).of(0)
        >>> round(change.low, 3), round(change.high, 3)
        (0.0, 0.04)
    """
    value_S, error_S = np.asarray(value_S, np.float64), np.asarray(error_S, np.float64)
    drawn_SB = np.random.default_rng(seed).standard_normal((len(value_S), samples))
    return Changes(value_S, value_S[:, None] + error_S[:, None] * drawn_SB)


def mean_changes(tasks: Sequence[Changes]) -> Changes:
    """Average the changes of several tasks, each of which counts the same.

    Args:
        tasks: The changes of each task, T of them, with the same settings and number of samples; each with draws of a
            seed of its own.

    Example:
        >>> one, other = (normal_changes(np.array([value]), np.array([0.0])) for value in (0.1, 0.3))
        >>> round(mean_changes([one, other]).of(0).value, 6)
        0.2
    """
    return Changes(
        np.mean([task.value_S for task in tasks], axis=0), np.mean([task.samples_SB for task in tasks], axis=0)
    )


def _divide(above: Float64, below: npt.NDArray[np.number]) -> Float64:
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=np.asarray(below) > 0)
