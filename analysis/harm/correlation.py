"""How a projection goes with the harm that follows it: Pearson's and Spearman's correlation with intervals. Pure numpy.

Rollouts of one role share its system prompts, so they are not independent, and an interval that took them to be would
be too narrow. Roles are therefore resampled, each with all its rollouts: the cluster bootstrap (A. C. Davison and D. V.
Hinkley, "Bootstrap Methods and their Application", 1997, section 3.8; C. A. Field and A. H. Welsh, "Bootstrapping
clustered data", Journal of the Royal Statistical Society B 69 (2007), 369-390), with percentile intervals. Over roles
the points are the means of each role, and the same resampling is used, since harm is a share: Fisher's z assumes two
normal variables, which a share near 0 or 1 is not. Requests are not resampled: an interval holds for the requests that
were asked. With few roles percentile intervals are too narrow; see ``FEW_ROLES``.

Axes: N rollouts, R roles, B bootstrap samples, U distinct values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError
from ...jobs.wording import count_of

Float64 = npt.NDArray[np.float64]

SAMPLES = 2000
"""Number of bootstrap samples."""
BOUNDS = (2.5, 97.5)
"""Percentiles of the samples that bound an interval of 95 %."""
FEW_ROLES = 20
"""Number of roles below which the intervals of the bootstrap are too narrow to be relied on."""

_LEAST_DEFINED = 0.5
_NO_SPREAD = 1e-9
_AT_ONCE = 4_000_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A correlation with its interval of 95 %.

    Attributes:
        value: The correlation, from -1 to 1.
        low: Lower end; None where fewer than half of the samples have a correlation.
        high: Upper end; likewise.
    """

    value: float
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Build the object that ``--json`` prints."""
        return {"value": self.value, "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Correlation:
    """How two numbers go together.

    Attributes:
        points: Number of pairs of numbers.
        roles: Number of roles that they are of, which were resampled.
        pearson: Pearson's correlation.
        spearman: Spearman's: Pearson's of the ranks, where equal values share the mean of their ranks.
        undefined: Share of the bootstrap samples without a correlation, because one of the numbers is constant in them;
            the intervals are those of the others.
    """

    points: int
    roles: int
    pearson: Estimate
    spearman: Estimate
    undefined: float

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return {
            "points": self.points,
            "roles": self.roles,
            "pearson": self.pearson.as_dict(),
            "spearman": self.spearman.as_dict(),
            "undefined_samples": self.undefined,
        }


def mean_ranks(values_N: npt.ArrayLike) -> Float64:
    """Return the rank of each value, from 1; equal values share the mean of their ranks.

    Example:
        >>> mean_ranks([10, 30, 20, 20]).tolist()
        [1.0, 4.0, 2.5, 2.5]
    """
    _, inverse_N, counts_U = np.unique(np.asarray(values_N, np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts_U) - (counts_U - 1) / 2)[inverse_N]


def correlation_over_rollouts(
    projection_N: npt.ArrayLike,
    harm_N: npt.ArrayLike,
    roles: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
) -> Correlation:
    """Correlate projection and harm over rollouts; the intervals are those of the cluster bootstrap over roles.

    Args:
        projection_N: Projection of each rollout's first reply.
        harm_N: Harm of its second reply, a number such as 0 or 1.
        roles: Role of each rollout.
        samples: Number of bootstrap samples B.
        seed: Seed of the random choice.

    Raises:
        InputError: There are fewer than three rollouts or two roles, or one of the numbers is the same everywhere.
        ValueError: A number is not finite, or the lengths differ.

    Example:
        >>> found = correlation_over_rollouts([1, 2, 3, 4], [1, 1, 0, 0], ["a", "b", "c", "d"], samples=100)
        >>> round(found.pearson.value, 3), found.points, found.roles
        (-0.894, 4, 4)
    """
    x_N, y_N = np.asarray(projection_N, np.float64), np.asarray(harm_N, np.float64)
    if not len(x_N) == len(y_N) == len(roles):
        raise ValueError(f"{len(x_N)} projections, {len(y_N)} numbers of harm and {len(roles)} roles")
    if not (np.isfinite(x_N).all() and np.isfinite(y_N).all()):
        raise ValueError("a projection or harm is not finite; leave out rollouts that have none")
    names, role_N = np.unique(np.asarray(roles, dtype=np.str_), return_inverse=True)
    _refuse_without_spread(x_N, y_N, len(names))
    # Of the first row nothing is resampled: it is the estimate itself.
    counts_BR = np.ones((samples + 1, len(names)))
    counts_BR[1:] = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), samples)
    pearson_B = _weighted_pearson(x_N, y_N, role_N, counts_BR)
    spearman_B = _weighted_spearman(x_N, y_N, role_N, counts_BR)
    return Correlation(
        points=len(x_N),
        roles=len(names),
        pearson=_estimate(pearson_B),
        spearman=_estimate(spearman_B),
        undefined=float(np.isnan(pearson_B[1:]).mean()),
    )


def correlation_over_roles(
    projection_N: npt.ArrayLike,
    harm_N: npt.ArrayLike,
    roles: Sequence[str],
    samples: int = SAMPLES,
    seed: int = 0,
) -> Correlation:
    """Correlate the mean projection and the mean harm of each role; every role counts once, whatever its rollouts.

    Args:
        projection_N: Projection of each rollout's first reply.
        harm_N: Harm of its second reply.
        roles: Role of each rollout.
        samples: Number of bootstrap samples B.
        seed: Seed of the random choice.

    Raises:
        InputError: There are fewer than three roles, or the means of one of the numbers are all the same.
        ValueError: A number is not finite, or the lengths differ.

    Example:
        >>> found = correlation_over_roles([1, 3, 4, 6], [1, 0, 0, 0], ["a", "a", "b", "c"], samples=100)
        >>> found.points, round(found.spearman.value, 3)
        (3, -0.866)
    """
    names, role_N = np.unique(np.asarray(roles, dtype=np.str_), return_inverse=True)
    rollouts_R = np.bincount(role_N)
    means = [
        np.bincount(role_N, weights=np.asarray(values_N, np.float64)) / rollouts_R
        for values_N in (projection_N, harm_N)
    ]
    return correlation_over_rollouts(means[0], means[1], names.tolist(), samples, seed)


def _refuse_without_spread(x_N: Float64, y_N: Float64, num_roles: int) -> None:
    if len(x_N) < 3 or num_roles < 2:
        raise InputError(
            f"there is no correlation over {count_of(len(x_N), 'point')} of {count_of(num_roles, 'role')}: it takes "
            "three points and two roles.",
            code="too_few",
            hint="Ask more roles or questions.",
        )
    for name, values_N in (("projection", x_N), ("harm", y_N)):
        if np.ptp(values_N) == 0:
            raise InputError(
                f"{name} is {values_N[0]:g} at all of {len(values_N)} points, so that nothing correlates with it.",
                code="constant",
                hint="Ask requests of which some replies are harmful and some are not."
                if name == "harm"
                else "Ask roles that differ.",
            )


def _weighted_pearson(x_N: Float64, y_N: Float64, role_N: npt.NDArray[np.int64], counts_BR: Float64) -> Float64:
    """Correlation of each sample, from the sums of each role; NaN where a sample has no spread."""
    x_N, y_N = x_N - x_N.mean(), y_N - y_N.mean()
    columns = (np.ones_like(x_N), x_N, y_N, x_N * x_N, y_N * y_N, x_N * y_N)
    sums_RS = np.stack([np.bincount(role_N, weights=column) for column in columns], axis=1)
    n_B, x_B, y_B, xx_B, yy_B, xy_B = (counts_BR @ sums_RS).T
    spread_xB, spread_yB = xx_B / n_B - (x_B / n_B) ** 2, yy_B / n_B - (y_B / n_B) ** 2
    defined_B = (spread_xB > _NO_SPREAD * (x_N * x_N).mean()) & (spread_yB > _NO_SPREAD * (y_N * y_N).mean())
    return _divided(xy_B / n_B - x_B * y_B / n_B**2, spread_xB, spread_yB, defined_B)


def _weighted_spearman(x_N: Float64, y_N: Float64, role_N: npt.NDArray[np.int64], counts_BR: Float64) -> Float64:
    """Correlation of the ranks within each sample, in which a rollout that was drawn k times ties with itself."""
    step = max(1, _AT_ONCE // len(x_N))
    parts: list[Float64] = []
    for start in range(0, len(counts_BR), step):
        weights_BN = counts_BR[start : start + step][:, role_N]
        n_B = weights_BN.sum(axis=1)
        # Ranks from 1 to n have the mean (n + 1) / 2, ties or not.
        x_BN, y_BN = (_ranks_in_samples(values_N, weights_BN) - (n_B[:, None] + 1) / 2 for values_N in (x_N, y_N))
        spread_xB, spread_yB = (np.einsum("bn,bn,bn->b", weights_BN, of_BN, of_BN) for of_BN in (x_BN, y_BN))
        shared_B = np.einsum("bn,bn,bn->b", weights_BN, x_BN, y_BN)
        defined_B = (spread_xB > _NO_SPREAD) & (spread_yB > _NO_SPREAD)
        parts.append(_divided(shared_B, spread_xB, spread_yB, defined_B))
    return np.concatenate(parts)


def _ranks_in_samples(values_N: Float64, weights_BN: Float64) -> Float64:
    """Mean rank of each value in each sample, where a value occurs as often as its weight says."""
    _, first_U, inverse_N = np.unique(np.sort(values_N), return_index=True, return_inverse=True)
    place_N = np.empty_like(inverse_N)
    order_N = np.argsort(values_N, kind="stable")
    place_N[order_N] = inverse_N
    weight_BU = np.add.reduceat(weights_BN[:, order_N], first_U, axis=1)
    return (np.cumsum(weight_BU, axis=1) - (weight_BU - 1) / 2)[:, place_N]


def _divided(shared_B: Float64, spread_xB: Float64, spread_yB: Float64, defined_B: npt.NDArray[np.bool_]) -> Float64:
    length_B = np.sqrt(np.where(defined_B, spread_xB * spread_yB, 1.0))
    return np.where(defined_B, shared_B / length_B, np.nan).clip(-1, 1)


def _estimate(values_B: Float64) -> Estimate:
    drawn_B = values_B[1:]
    defined_B = drawn_B[np.isfinite(drawn_B)]
    if len(defined_B) < _LEAST_DEFINED * len(drawn_B) or not len(defined_B):
        return Estimate(float(values_B[0]), None, None)
    low, high = np.percentile(defined_B, BOUNDS)
    return Estimate(float(values_B[0]), float(low), float(high))
