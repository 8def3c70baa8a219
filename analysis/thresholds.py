"""Percentile thresholds of projections, in both signs that are in use.

The released configurations store -axis and clamp the projection on it from above; this project's floor acts on the
axis itself. With cap c on -axis and floor t on the axis, t = -c is the same operation. A label names the percentile
on -axis, as a fraction: ``p0.25`` is the 25th percentile on -axis, which is the 75th on the axis: a strict floor.
Axes: N rollouts, L layers, Q percentiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

PERCENTILES = (1, 25, 50, 75)
"""Of the projection on -axis."""


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Thresholds per label and layer.

    Attributes:
        labels: ``p0.01``, ``p0.25``, ``p0.5``, ``p0.75``.
        cap_on_minus_axis_QL: Ceiling for the projection on -axis.
        floor_on_axis_QL: Floor for the projection on the axis; the negative of the cap.
    """

    labels: tuple[str, ...]
    cap_on_minus_axis_QL: npt.NDArray[np.float64]
    floor_on_axis_QL: npt.NDArray[np.float64]


def thresholds(projections_NL: npt.NDArray[np.floating]) -> Thresholds:
    """Calibrate on the projections of all rollouts: roles, traits and default, unfiltered.

    Args:
        projections_NL: On the axis (up is toward the Assistant).

    Raises:
        ValueError: There are none, or one is not finite.
    """
    if not projections_NL.shape[0]:
        raise ValueError("no projections to calibrate on")
    if not np.isfinite(projections_NL).all():
        raise ValueError("a projection is not finite")
    cap_QL = np.percentile(-projections_NL.astype(np.float64), PERCENTILES, axis=0)
    labels = tuple(f"p{percentile / 100:g}" for percentile in PERCENTILES)
    return Thresholds(labels, cap_QL, -cap_QL)
