"""Rates of harm with Wilson intervals: by bins of the projection before it, and by role. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..sweeping.intervals import wilson_interval

Float64 = npt.NDArray[np.float64]

BINS = 10
"""Number of bins unless a user asks for another."""


@dataclass(frozen=True, slots=True)
class HarmRate:
    """The harm of some replies.

    Attributes:
        name: What they have in common: a role, or the number of a bin, from 1.
        replies: Number of replies with a label.
        harmful: Number of them that are harm.
        rate: Share of these.
        low: Lower end of the Wilson interval of 95 %, for which replies count as independent. Those of one role are
            not quite.
        high: Upper end.
        projection: Mean projection of the replies before them, in axis sign.
        least: Least projection.
        greatest: Greatest projection.
    """

    name: str
    replies: int
    harmful: int
    rate: float
    low: float
    high: float
    projection: float
    least: float
    greatest: float

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return asdict(self)


def harm_by_bin(projection_N: npt.ArrayLike, harm_N: npt.ArrayLike, bins: int = BINS) -> tuple[HarmRate, ...]:
    """Count harm in bins of the projection with about equally many replies: its quantiles are their edges.

    Equal projections are in one bin, so that there may be fewer bins than asked for, of unequal size.

    Args:
        projection_N: Projection before each reply.
        harm_N: 1 where the reply is harm, else 0.
        bins: Number of bins.

    Returns:
        The bins that have a reply, from the least projection.

    Raises:
        ValueError: A projection is not finite, a number of harm is neither 0 nor 1, or there is less than one bin.

    Example:
        >>> [(one.replies, one.harmful, one.projection) for one in harm_by_bin([4, 1, 2, 3], [0, 1, 1, 0], bins=2)]
        [(2, 2, 1.5), (2, 0, 3.5)]
    """
    x_N, harmful_N = _checked(projection_N, harm_N)
    if bins < 1:
        raise ValueError(f"{bins} bins")
    if not len(x_N):
        return ()
    edges = np.quantile(x_N, np.linspace(0, 1, bins + 1)[1:-1])
    bin_N = np.searchsorted(edges, x_N, side="right")
    kept = np.unique(bin_N)
    return tuple(_rate(str(number), x_N[bin_N == one], harmful_N[bin_N == one]) for number, one in enumerate(kept, 1))


def harm_by_role(projection_N: npt.ArrayLike, harm_N: npt.ArrayLike, roles: Sequence[str]) -> tuple[HarmRate, ...]:
    """Count the harm of each role.

    Args:
        projection_N: Projection before each reply.
        harm_N: 1 where the reply is harm, else 0.
        roles: Role of each reply.

    Returns:
        The roles, from the least mean projection.

    Raises:
        ValueError: A projection is not finite, or a number of harm is neither 0 nor 1.

    Example:
        >>> [(one.name, one.rate) for one in harm_by_role([1, 3, 0], [1, 0, 1], ["poet", "poet", "void"])]
        [('void', 1.0), ('poet', 0.5)]
    """
    x_N, harmful_N = _checked(projection_N, harm_N)
    role_N = np.asarray(roles, dtype=np.str_)
    rates = [_rate(str(role), x_N[role_N == role], harmful_N[role_N == role]) for role in np.unique(role_N)]
    return tuple(sorted(rates, key=lambda rate: rate.projection))


def _checked(projection_N: npt.ArrayLike, harm_N: npt.ArrayLike) -> tuple[Float64, npt.NDArray[np.bool_]]:
    x_N, y_N = np.asarray(projection_N, np.float64), np.asarray(harm_N, np.float64)
    if not np.isfinite(x_N).all() or not np.isin(y_N, (0, 1)).all():
        raise ValueError("a projection is not finite, or harm is neither 0 nor 1; leave out replies that have none")
    return x_N, y_N == 1


def _rate(name: str, x_N: Float64, harmful_N: npt.NDArray[np.bool_]) -> HarmRate:
    harmful, replies = int(harmful_N.sum()), len(x_N)
    low, high = wilson_interval(harmful, replies)
    return HarmRate(
        name=name,
        replies=replies,
        harmful=harmful,
        rate=harmful / replies,
        low=low,
        high=high,
        projection=float(x_N.mean()),
        least=float(x_N.min()),
        greatest=float(x_N.max()),
    )
