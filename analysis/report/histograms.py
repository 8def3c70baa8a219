"""Distributions of single rollouts on the axis, by kind, at every layer. Axes: N rollouts, L layers, B bins."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ...storage.derived.reductions import Reduction
from ..layerwise import has_array, layer_groups, read_layers

_MOST_BINS = 48


def _num_bins(num_rollouts: int) -> int:
    """Choose a number of bins that few rollouts fill: Rice's rule, twice the cube root, within limits.

    Example:
        >>> _num_bins(20), _num_bins(292), _num_bins(900_000)
        (8, 14, 48)
    """
    return max(8, min(_MOST_BINS, math.ceil(2 * num_rollouts ** (1 / 3))))


@dataclass(frozen=True, eq=False)
class Histograms:
    """Numbers of rollouts per bin of the projection on the axis.

    Attributes:
        kinds: ``default``, ``role``, ``trait``: those that have rollouts; ``rollout`` where kinds are not known.
        totals: Number of rollouts of each kind.
        range_L2: Lowest and highest projection at each layer, which the bins divide evenly; NaN without an axis.
        counts_LKB: Number of rollouts by layer, kind and bin.
    """

    kinds: tuple[str, ...]
    totals: tuple[int, ...]
    range_L2: npt.NDArray[np.float64]
    counts_LKB: npt.NDArray[np.int64]


def histograms_of(reduction: Reduction, kinds_N: npt.NDArray[np.str_] | None) -> Histograms | None:
    """Count rollouts per bin; None where the reduction holds no projections.

    Args:
        reduction: The reduction.
        kinds_N: Kind of the rollout of every projection; None where it is not known.
    """
    rows_N = reduction.projection_rows
    if rows_N is None or not len(rows_N) or not has_array(reduction, "projections"):
        return None
    if kinds_N is None:
        kinds_N = np.full(len(rows_N), "rollout")
    present = set(np.unique(kinds_N).tolist())
    kinds = tuple(kind for kind in ("default", "role", "trait", "conversation", "rollout") if kind in present)
    masks = [kinds_N == kind for kind in kinds]
    num_layers = len(reduction.layers)
    range_L2 = np.full((num_layers, 2), np.nan)
    num_bins = _num_bins(len(kinds_N))
    counts_LKB = np.zeros((num_layers, len(kinds), num_bins), dtype=np.int64)
    for at in layer_groups(reduction):
        values_NL = read_layers(reduction, "projections", at)
        assert values_NL is not None
        for layer, values_N in enumerate(values_NL.T, start=at.start):
            if np.isfinite(values_N).all():
                low, high = float(values_N.min()), float(values_N.max())
                # All the same: a bin must have a width.
                high = high if high > low else low + max(abs(low), 1.0) * 1e-3
                range_L2[layer] = low, high
                for kind, mask in enumerate(masks):
                    counts_LKB[layer, kind], _ = np.histogram(values_N[mask], bins=num_bins, range=(low, high))
    return Histograms(kinds, tuple(int(mask.sum()) for mask in masks), range_L2, counts_LKB)
