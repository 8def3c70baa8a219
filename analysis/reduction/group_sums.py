"""Sums and sums of squares of rollouts by group, in few passes over the values.

Decoding is what a pass over all rollouts should cost, so that what is done besides has to be little: each value is read
four times while it is in the processor's cache, nothing of its size is allocated, and what does not depend on the
values is found out once for a unit.
Axes: N rollouts of a unit, G groups, L layers of a part, D d_model, R repeats of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from ..moments import Moments

Float32 = npt.NDArray[np.float32]
Places = slice | npt.NDArray[np.int64]

_ROW_VALUES = 4096
"""Length from which on a row costs little to begin with."""

_REPEATS = (1, 2, 4, 8, 16)
"""How often a shorter one is repeated; units have a multiple of it in rows, mostly."""

_LEAST_COLUMNS, _MOST_COLUMNS = 128, 1024
"""Columns of a product of matrices, at least and at most."""

_UNITS_IN_FLOAT32 = 8
"""Units whose sums are added in float32, before these are added in float64, which takes several times as long."""

_LARGEST = float(np.finfo(np.float32).max) / _UNITS_IN_FLOAT32
"""Largest sum of squares of a unit of which that many can be added in float32."""


@dataclass(frozen=True, eq=False, slots=True)
class Membership:
    """Which group each rollout of a unit belongs to; ``membership`` makes it.

    Attributes:
        present: The groups that occur.
        weights_GN: For each of these, 1 for its rollouts and 0 for others.
        counts_G: Number of its rollouts.
    """

    present: Places
    weights_GN: Float32
    counts_G: npt.NDArray[np.int64]


class GroupSums:
    """Sums of rollouts by group at some layers, added part by part.

    Products are taken in float32 of the differences from the first rollout: these are as small as the rollouts' spread,
    so that a long mean costs no digits, and equal rollouts have no variance at all. Sums over units are float64, of
    float32 sums over a few.

    Args:
        num_groups: G.
        num_layers: L.
        d_model: D.
    """

    def __init__(self, num_groups: int, num_layers: int, d_model: int) -> None:
        # Side by side as often as makes a long row, because a short one costs mostly what each begins with.
        self._repeats = next((number for number in _REPEATS if number * d_model >= _ROW_VALUES), _REPEATS[-1])
        self._shift_LRD = np.zeros((num_layers, self._repeats, d_model), dtype=np.float32)
        self._shift_L1D = self._shift_LRD.reshape(num_layers, 1, -1)
        self._has_shift = np.zeros(num_layers, dtype=bool)
        # Sums, and sums of squares.
        self._sums_2LGD = np.zeros((2, num_layers, num_groups, d_model))
        # Those of the last few units, and how many these are.
        self._recent_2LGD = np.zeros((2, num_layers, num_groups, d_model), dtype=np.float32)
        self._num_recent_L = np.zeros(num_layers, dtype=np.int64)
        self._counts_G = np.zeros(num_groups, dtype=np.int64)

    def add(self, first: int, values_LND: Float32, groups: Membership) -> bool:
        """Add rollouts at adjacent layers, with sums over them in float32.

        Args:
            first: Position of the first layer.
            values_LND: Vectors, those of a layer one after another in memory; overwritten, because a copy would cost
                as much as the sums.
            groups: The group of each rollout.

        Returns:
            False, and nothing is added, if a value is not finite or squares are too large for float32; see
            ``add_wide``.
        """
        num_layers, _, d_model = values_LND.shape
        layers = slice(first, first + num_layers)
        if not self._has_shift[first]:
            if not np.isfinite(values_LND[:, 0]).all():
                return False
            self._set_shift(layers, values_LND[:, 0])
        self._subtract_shift(layers, values_LND)
        sums_2LGD = np.empty((2, num_layers, len(groups.weights_GN), d_model), dtype=np.float32)
        _sum_groups(groups.weights_GN, values_LND, sums_2LGD[0])
        np.square(values_LND, out=values_LND)
        _sum_groups(groups.weights_GN, values_LND, sums_2LGD[1])
        # Of squares, so that one that is infinite or no number is the largest.
        if not sums_2LGD[1].max() < _LARGEST:
            return False
        self._recent_2LGD[:, layers, groups.present] += sums_2LGD
        self._num_recent_L[layers] += 1
        if self._num_recent_L[first] == _UNITS_IN_FLOAT32:
            self._add_recent(layers)
        self._count(layers, groups)
        return True

    def add_wide(self, first: int, values_LND: Float32, groups: Membership) -> bool:
        """Add rollouts with sums over them in float64, several times slower.

        Args:
            first: Position of the first layer.
            values_LND: Vectors.
            groups: The group of each rollout.

        Returns:
            False, and nothing is added, if a value is not finite.
        """
        layers = slice(first, first + len(values_LND))
        if not np.isfinite(values_LND).all():
            return False
        if not self._has_shift[first]:
            self._set_shift(layers, values_LND[:, 0])
        wide_LND = values_LND.astype(np.float64) - self._shift_LRD[layers, :1]
        sums_2LGD = np.stack([groups.weights_GN @ wide_LND, groups.weights_GN @ wide_LND**2])
        self._sums_2LGD[:, layers, groups.present] += sums_2LGD
        self._count(layers, groups)
        return True

    def _set_shift(self, layers: slice, values_LD: Float32) -> None:
        self._shift_LRD[layers], self._has_shift[layers] = values_LD[:, None], True

    def _subtract_shift(self, layers: slice, values_LND: Float32) -> None:
        num_layers, num_rows, d_model = values_LND.shape
        rest = num_rows % self._repeats
        whole_LND = values_LND[:, : num_rows - rest] if rest else values_LND
        # Raises where it would be a copy, from which the shift would be subtracted in vain.
        long_LRD = whole_LND.reshape(num_layers, -1, self._repeats * d_model, copy=False)
        np.subtract(long_LRD, self._shift_L1D[layers], out=long_LRD)
        if rest:
            rest_LRD = values_LND[:, num_rows - rest :]
            np.subtract(rest_LRD, self._shift_LRD[layers, :1], out=rest_LRD)

    def _add_recent(self, layers: slice) -> None:
        self._sums_2LGD[:, layers] += self._recent_2LGD[:, layers]
        self._recent_2LGD[:, layers], self._num_recent_L[layers] = 0, 0

    def _count(self, layers: slice, groups: Membership) -> None:
        if layers.start == 0:
            self._counts_G[groups.present] += groups.counts_G

    def moments(self) -> list[Moments]:
        """Return count, mean and squared deviations of each group."""
        self._add_recent(slice(None))
        found: list[Moments] = []
        shift_LD = self._shift_LRD[:, 0]
        for number, count in enumerate(self._counts_G.tolist()):
            if not count:
                found.append(Moments.empty(*shift_LD.shape))
                continue
            total_LD, squares_LD = self._sums_2LGD[:, :, number]
            mean_LD = shift_LD + total_LD / count
            # Rounding may leave a little less than nothing.
            found.append(Moments(count, mean_LD, np.maximum(squares_LD - total_LD**2 / count, 0)))
        return found


def membership(groups_N: npt.NDArray[np.int64]) -> Membership:
    """Return which group each rollout of a unit belongs to.

    Args:
        groups_N: Number of the group of each rollout.
    """
    return _membership(groups_N.tobytes())


@lru_cache(maxsize=32)
def _membership(groups: bytes) -> Membership:
    """Cached, because most units of a run have the same questions, and so the same groups."""
    groups_N = np.frombuffer(groups, dtype=np.int64)
    present, counts_G = np.unique(groups_N, return_counts=True)
    weights_GN = (groups_N == present[:, None]).astype(np.float32)
    is_range = present[-1] - present[0] + 1 == len(present)
    places = slice(int(present[0]), int(present[-1]) + 1) if is_range else present
    return Membership(places, weights_GN, counts_G.astype(np.int64))


def _sum_groups(weights_GN: Float32, values_LND: Float32, into_LGD: Float32) -> None:
    """Sum rollouts by group, a piece of the coordinates at a time: all at once take twice as long for ten groups."""
    num_layers, num_rows, d_model = values_LND.shape
    num_pieces = _pieces(d_model)
    if num_pieces == 1:
        np.matmul(weights_GN, values_LND, out=into_LGD)
        return
    pieces_LPND = values_LND.reshape(num_layers, num_rows, num_pieces, -1).swapaxes(1, 2)
    into_LPGD = into_LGD.reshape(num_layers, len(weights_GN), num_pieces, -1).swapaxes(1, 2)
    np.matmul(weights_GN, pieces_LPND, out=into_LPGD)


@cache
def _pieces(d_model: int) -> int:
    """Return into how many pieces of equal length the coordinates are divided: 1 if no number of them fits."""
    numbers = range(-(-d_model // _MOST_COLUMNS), d_model // _LEAST_COLUMNS + 1)
    return next((number for number in numbers if d_model % number == 0), 1)
