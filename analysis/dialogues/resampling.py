"""Intervals and tests over conversations: percentile bootstrap, sign flips, Holm's correction. Pure numpy.

The turns of one conversation depend on each other, so a conversation is drawn, or flipped, whole. Axes: C
conversations, T turns, B bootstrap samples.
"""

from __future__ import annotations

import math
import zlib

import numpy as np
import numpy.typing as npt

from ..bootstrap import BOUNDS

Float64 = npt.NDArray[np.float64]

SAMPLES = 2000
"""Bootstrap samples."""
FLIPS = 9999
"""Random sign flips; with at most as many that are possible, all of them are made instead."""
FEW = 10
"""Below this number of conversations percentile intervals are noticeably too narrow, by theory and in the tests."""


def seed_of(seed: int, name: str) -> list[int]:
    """Return a seed of its own for a group, so that no group's numbers depend on which others there are.

    Args:
        seed: Seed of the whole study.
        name: Name of the group.
    """
    return [seed, zlib.crc32(name.encode())]


def mean_intervals(
    values_CT: npt.NDArray[np.floating], *, samples: int = SAMPLES, seed: int | list[int] = 0
) -> Float64:
    """Bound the means over conversations by a bootstrap that draws whole conversations.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", chapter 13: percentile intervals. The mean at a
    turn is that of the conversations that have it, in each sample too.

    Args:
        values_CT: A value for each conversation and turn; NaN where a conversation has none.
        samples: Number of samples B.
        seed: Seed of the draws.

    Returns:
        ``(T, 2)``, the 2.5th and the 97.5th percentile; NaN where fewer than two conversations have a value.

    Example:
        >>> low, high = mean_intervals(np.arange(20.0)[:, None])[0]
        >>> bool(low < 9.5 < high)
        True
    """
    values_CT = np.asarray(values_CT, np.float64)
    num_conversations, num_turns = values_CT.shape
    has_CT = np.isfinite(values_CT)
    interval_T2 = np.full((num_turns, 2), np.nan)
    if num_conversations < 2:
        return interval_T2
    # Beside a large common offset the sums would lose digits.
    centre = float(values_CT[has_CT].mean()) if has_CT.any() else 0.0
    draws = np.random.default_rng(seed).multinomial(
        num_conversations, np.full(num_conversations, 1 / num_conversations), size=samples
    )
    total_BT = draws @ np.where(has_CT, values_CT - centre, 0.0)
    count_BT = draws @ has_CT.astype(np.float64)
    for turn in np.flatnonzero(has_CT.sum(axis=0) >= 2):
        drawn_B = count_BT[:, turn] > 0
        interval_T2[turn] = centre + np.percentile(total_BT[drawn_B, turn] / count_BT[drawn_B, turn], BOUNDS)
    return interval_T2


def sign_flip_p(changes_C: npt.NDArray[np.floating], *, flips: int = FLIPS, seed: int | list[int] = 0) -> float:
    """Test whether changes are symmetric about zero, by the mean under random signs; two-sided.

    Source: Fisher's randomisation test of paired differences; Phipson and Smyth, "Permutation P-values should never be
    zero", Statistical Applications in Genetics and Molecular Biology 9 (2010), for (k + 1) / (n + 1).

    Args:
        changes_C: Change of each conversation; those without a value are left out before.
        flips: Number of random assignments n of signs. Where there are no more than these possible, all are taken, the
            observed one among them, and p is their share.
        seed: Seed of the signs.

    Returns:
        p, above 0; NaN without a conversation. With C conversations it is at least 2 / 2^C.

    Raises:
        ValueError: A change is not finite.

    Example:
        >>> sign_flip_p(np.array([-1.0, -2.0, -1.5, -0.5, -1.0])), sign_flip_p(np.array([1.0, -1.0]))
        (0.0625, 1.0)
    """
    changes_C = np.asarray(changes_C, np.float64)
    if not np.isfinite(changes_C).all():
        raise ValueError("a change is not finite")
    count = len(changes_C)
    if count == 0:
        return float("nan")
    # Equal sums, added in another sequence, differ by rounding.
    least = abs(changes_C.sum()) - 1e-9 * float(np.abs(changes_C).sum())
    if 2**count <= flips:
        signs = 1 - 2 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
        return float(np.mean(np.abs(signs @ changes_C) >= least))
    rng, as_large, done = np.random.default_rng(seed), 0, 0
    while done < flips:
        part = min(flips - done, max(1, 2**22 // count))
        signs = 1.0 - 2.0 * rng.integers(0, 2, (part, count))
        as_large += int((np.abs(signs @ changes_C) >= least).sum())
        done += part
    return (as_large + 1) / (flips + 1)


def holm(p_values: list[float]) -> list[float]:
    """Adjust p values of several tests by Holm's method, so that the chance of any false one is bounded.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6
    (1979), 65-70.

    Args:
        p_values: The p values; NaN for a test that could not be made, which counts as none.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    for number, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - number)))
        adjusted[place] = largest
    return adjusted
