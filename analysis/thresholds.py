"""Percentile thresholds of projections, in both sign conventions that are in use.

The released configurations store -axis and clamp the projection on it from above; this project's floor clamps the
projection on the axis from below. A cap c on -axis and a floor t = -c on the axis are the same operation. A label
names the percentile on -axis as a fraction: ``p0.25`` is the 25th percentile on -axis and the 75th on the axis, a
strict floor.
Axes: N rollouts, L layers, Q percentiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PERCENTILES = (1, 25, 50, 75)
"""Percentiles of the projection on -axis."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Thresholds per label and layer.

    Attributes:
        labels: Percentiles as fractions: ``p0.01``, ``p0.25``, ``p0.5``, ``p0.75``.
        cap_on_minus_axis_QL: Ceiling for the projection on -axis.
        floor_on_axis_QL: Floor for the projection on the axis; the negative of the cap.
    """

    labels: tuple[str, ...]
    cap_on_minus_axis_QL: npt.NDArray[np.float64]
    floor_on_axis_QL: npt.NDArray[np.float64]


def thresholds(projections_NL: npt.NDArray[np.floating]) -> Thresholds:
    """Compute thresholds from the projections of all rollouts: roles, traits and default, unfiltered.

    Args:
        projections_NL: Projections on the axis; higher is nearer the Assistant.

    Raises:
        ValueError: There are no projections, or one is not finite.

    Example:
        >>> found = thresholds(np.arange(101.0)[:, None])
        >>> dict(zip(found.labels, found.floor_on_axis_QL[:, 0].tolist()))
        {'p0.01': 99.0, 'p0.25': 75.0, 'p0.5': 50.0, 'p0.75': 25.0}
    """
    if not projections_NL.shape[0]:
        raise ValueError("no projections to calibrate on")
    if not np.isfinite(projections_NL).all():
        raise ValueError("a projection is not finite")
    cap_QL = np.percentile(-projections_NL.astype(np.float64), PERCENTILES, axis=0)
    labels = tuple(f"p{percentile / 100:g}" for percentile in PERCENTILES)
    return Thresholds(labels, cap_QL, -cap_QL)
