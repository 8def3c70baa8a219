"""Percentile thresholds of projections, in both sign conventions that are in use.

The released configurations store -axis and clamp the projection on it from above; this project's floor clamps the
projection on the axis from below. A cap c on -axis and a floor t = -c on the axis are the same operation. A label
names the percentile on -axis as a fraction: ``p0.25`` is the 25th percentile on -axis and the 75th on the axis, a
strict floor. Percentiles are interpolated linearly between the two nearest projections, numpy's default.
Axes: N rollouts, L layers, Q percentiles.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        cap_on_minus_axis_QL: Ceiling for the projection on -axis; NaN at layers without an axis.
        floor_on_axis_QL: Floor for the projection on the axis; the negative of the cap.
    """

    labels: tuple[str, ...]
    cap_on_minus_axis_QL: npt.NDArray[np.float64]
    floor_on_axis_QL: npt.NDArray[np.float64]


def label_of(percentile: float) -> str:
    """Name a percentile of the projection on -axis as the released configurations do.

    Args:
        percentile: 0 to 100.

    Example:
        >>> label_of(25), label_of(99.9)
        ('p0.25', 'p0.999')
    """
    return f"p{percentile / 100:.10g}"


def thresholds(
    projections_NL: npt.NDArray[np.floating],
    percentiles: Sequence[float] = PERCENTILES,
    mask_NL: npt.NDArray[np.bool_] | None = None,
) -> Thresholds:
    """Compute thresholds from the projections of all rollouts: roles, traits and default, unfiltered.

    Args:
        projections_NL: Projections on the axis; higher is nearer the Assistant. A layer where all are NaN has no axis.
        percentiles: Percentiles of the projection on -axis, 0 to 100, each once.
        mask_NL: Which projections count, ``(N, L)`` or ``(N, 1)``; None: all.

    Raises:
        ValueError: There are no projections, or one that counts is not finite at a layer where others are; or a
            percentile is outside of 0 to 100 or given twice.

    Example:
        >>> found = thresholds(np.arange(101.0)[:, None])
        >>> dict(zip(found.labels, found.floor_on_axis_QL[:, 0].tolist()))
        {'p0.01': 99.0, 'p0.25': 75.0, 'p0.5': 50.0, 'p0.75': 25.0}
    """
    if len(set(percentiles)) < len(percentiles) or not all(0 <= percentile <= 100 for percentile in percentiles):
        raise ValueError(f"percentiles are numbers from 0 to 100, each once, not {list(percentiles)}")
    counts_NL = np.ones(projections_NL.shape, dtype=bool)
    if mask_NL is not None:
        counts_NL &= mask_NL
    if not counts_NL.any(axis=0).all() or not projections_NL.shape[0]:
        raise ValueError("no projections to calibrate on")
    cap_QL = np.full((len(percentiles), projections_NL.shape[1]), np.nan)
    for position in range(projections_NL.shape[1]):
        values_N = projections_NL[counts_NL[:, position], position].astype(np.float64)
        finite_N = np.isfinite(values_N)
        if finite_N.all():
            cap_QL[:, position] = np.percentile(-values_N, percentiles)
        elif not np.isnan(values_N).all():
            raise ValueError("a projection is not finite")
    return Thresholds(tuple(map(label_of, percentiles)), cap_QL, -cap_QL)
