"""The Pareto front of settings: those that no other setting betters in harm and capability at once. Pure.

Less harm is better, and more capability. Numbers are changes against the model as it is, which is a point itself, at
no change of either.
Axes: S points, B bootstrap samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .changes import NO_CHANGE, Change, Changes

PLAIN = "plain"
"""Name of the point of the model as it is."""


@dataclass(frozen=True, slots=True)
class ParetoPoint:
    """One setting.

    Attributes:
        name: Its name, as in released configurations, end exclusive: ``layers_46:54-p0.25``; ``plain`` without edits.
        window: First layer and end, exclusive; None without edits.
        percentile: Label of the cap, which counts percentiles of the projection on minus the axis: ``p0.25`` is the
            75th in axis sign. None without edits.
        harm: Change of the rate of harmful replies; below 0 is better.
        capability: Change of the mean score of the tasks; above 0 is better.
        front_share: Share of the bootstrap samples in which it is on the front; NaN where there are none.
    """

    name: str
    window: tuple[int, int] | None
    percentile: str | None
    harm: Change
    capability: Change
    front_share: float = float("nan")

    @property
    def is_plain(self) -> bool:
        """Whether it is the model as it is."""
        return self.window is None

    def as_dict(self, *, is_on_front: bool) -> dict[str, Any]:
        """Build the object that ``--json`` prints.

        Args:
            is_on_front: Whether no other point dominates it.
        """
        return {
            "name": self.name,
            "window": None if self.window is None else list(self.window),
            "percentile": self.percentile,
            "harm_change": _as_dict(self.harm),
            "capability_change": _as_dict(self.capability),
            "on_front": is_on_front,
            "front_share": None if np.isnan(self.front_share) else self.front_share,
        }


PLAIN_POINT = ParetoPoint(PLAIN, None, None, NO_CHANGE, NO_CHANGE)
"""The model as it is."""


def on_front(harm_S: npt.ArrayLike, capability_S: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Tell which points no other point dominates.

    A point dominates another if it has at most its harm and at least its capability, and one of both is better. Points
    that are equal in both do not dominate each other: all of them are on the front, or none.

    Args:
        harm_S: Harm of each point; less is better.
        capability_S: Its capability; more is better.

    Raises:
        ValueError: A number is NaN, which compares with nothing: such a point would seem to be on the front.

    Example:
        >>> on_front([0.0, -0.3, -0.3, -0.1], [0.0, -0.1, -0.2, -0.1]).tolist()
        [True, True, False, False]
    """
    harm_S, capability_S = np.asarray(harm_S, np.float64), np.asarray(capability_S, np.float64)
    if np.isnan(harm_S).any() or np.isnan(capability_S).any():
        raise ValueError("a point of a Pareto front is NaN")
    no_worse_SS = (harm_S[:, None] <= harm_S) & (capability_S[:, None] >= capability_S)
    better_SS = (harm_S[:, None] < harm_S) | (capability_S[:, None] > capability_S)
    return np.asarray(~(no_worse_SS & better_SS).any(axis=0))


def front_of(points: Sequence[ParetoPoint]) -> tuple[ParetoPoint, ...]:
    """Return the points on the front, by falling capability and then by rising harm.

    Args:
        points: The points, with that of the model as it is where it is to be compared with.
    """
    is_on_S = on_front([point.harm.value for point in points], [point.capability.value for point in points])
    held = [point for point, is_on in zip(points, is_on_S.tolist(), strict=True) if is_on]
    return tuple(sorted(held, key=lambda point: (-point.capability.value, point.harm.value)))


def front_shares(harm: Changes, capability: Changes) -> npt.NDArray[np.float64]:
    """Count how often each setting is on the front of a bootstrap sample, beside the model as it is.

    Harm and capability are measured on different items, so their samples are independent and are joined one by one.
    A sample with a number that is not known is left out.

    Args:
        harm: Changes of harm of S settings, the model as it is not among them.
        capability: Changes of capability of the same settings, with the same number of samples.

    Returns:
        The share of each setting, ``(S + 1,)``, that of the model as it is last; NaN where no sample counts.
    """
    nothing_1B = np.zeros((1, harm.samples_SB.shape[1]))
    harm_SB = np.concatenate([harm.samples_SB, nothing_1B])
    capability_SB = np.concatenate([capability.samples_SB, nothing_1B])
    known_B = np.isfinite(harm_SB).all(axis=0) & np.isfinite(capability_SB).all(axis=0)
    if not known_B.any():
        return np.full(len(harm_SB), np.nan)
    fronts = [on_front(harm_SB[:, b], capability_SB[:, b]) for b in np.flatnonzero(known_B)]
    return np.mean(fronts, axis=0)


def choose(points: Sequence[ParetoPoint], tolerance: float) -> ParetoPoint | None:
    """Choose the setting with the largest reduction of harm among those that cost little capability.

    Args:
        points: The points.
        tolerance: How much the mean score may fall, as a number of at least 0.

    Returns:
        The point with the lowest harm among those whose capability changes by ``-tolerance`` or more and whose harm is
        below that of the model as it is; of several the one with more capability, then the one with the fewer layers.
        None where there is none.

    Raises:
        ValueError: The tolerance is negative or NaN.
    """
    if not tolerance >= 0:
        raise ValueError(f"a tolerance of {tolerance}")
    fitting = [
        point
        for point in points
        if not point.is_plain and point.harm.value < 0 and point.capability.value >= -tolerance
    ]
    return min(fitting, key=_preference, default=None)


def _preference(point: ParetoPoint) -> tuple[float, float, int]:
    assert point.window is not None
    return point.harm.value, -point.capability.value, point.window[1] - point.window[0]


def _as_dict(change: Change) -> dict[str, float]:
    return {"value": change.value, "low": change.low, "high": change.high}
