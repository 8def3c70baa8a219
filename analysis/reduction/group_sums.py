"""Sums and sums of squares of rollouts by group, in one pass over the values.

Decoding is what a pass over all rollouts should cost. Numpy takes eight passes for these sums, each of which reads the
values from beyond the processor's cache and gives up Python's lock, so that threads wait for one another; a loop that
Numba compiles reads them once, sums in float64, and is one call.
Axes: N rollouts of a unit, R rows of its block, G groups, L layers of a part, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
import numpy.typing as npt

from ..moments import Moments

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Membership:
    """Which rows of a block each group has; ``membership`` makes it.

    Attributes:
        rows_N: The rows, group by group.
        edges: Where each group begins in ``rows_N``, and where the last one ends, ``(G + 1,)``.
    """

    rows_N: Int64
    edges: Int64


class GroupSums:
    """Sums of rollouts by group at some layers, added part by part.

    What is summed are differences from the first rollout, in float64: their squares cancel no digits however long the
    mean is, and equal rollouts have no variance at all.

    Args:
        num_groups: G.
        num_layers: L.
        d_model: D.
    """

    def __init__(self, num_groups: int, num_layers: int, d_model: int) -> None:
        self._shift_LD = np.zeros((num_layers, d_model), dtype=np.float32)
        self._has_shift_L = np.zeros(num_layers, dtype=bool)
        self._sums_LGD = np.zeros((num_layers, num_groups, d_model))
        self._squares_LGD = np.zeros((num_layers, num_groups, d_model))
        self._counts_LG = np.zeros((num_layers, num_groups), dtype=np.int64)

    def add(self, first: int, values_LRD: Float32, groups: Membership) -> bool:
        """Add rollouts at adjacent layers.

        Args:
            first: Position of the first layer.
            values_LRD: Vectors, contiguous; rows of no group are not looked at.
            groups: The rows of each group.

        Returns:
            False if a value is not finite; the sums are of no use from then on.
        """
        layers = slice(first, first + len(values_LRD))
        if not self._has_shift_L[first]:
            self._shift_LD[layers], self._has_shift_L[layers] = values_LRD[:, groups.rows_N[0]], True
        self._counts_LG[layers] += np.diff(groups.edges)
        return _compiled_add()(
            values_LRD,
            self._shift_LD[layers],
            groups.rows_N,
            groups.edges,
            self._sums_LGD[layers],
            self._squares_LGD[layers],
        )

    def moments(self) -> list[Moments]:
        """Return count, mean and squared deviations of each group."""
        found: list[Moments] = []
        # A unit is added at every layer, so all layers have the same counts.
        for number, count in enumerate(self._counts_LG[0].tolist()):
            if not count:
                found.append(Moments.empty(*self._shift_LD.shape))
                continue
            total_LD, squares_LD = self._sums_LGD[:, number], self._squares_LGD[:, number]
            # Rounding may leave a little less than nothing.
            m2_LD = np.maximum(squares_LD - total_LD**2 / count, 0)
            found.append(Moments(count, self._shift_LD + total_LD / count, m2_LD))
        return found


def membership(rows_N: Int64, groups_N: Int64, num_groups: int) -> Membership:
    """Return which rows of a block each group has.

    Args:
        rows_N: The rows that count.
        groups_N: Number of the group of each.
        num_groups: G.

    Example:
        >>> found = membership(np.array([4, 5, 7]), np.array([1, 0, 1]), 3)
        >>> found.rows_N.tolist(), found.edges.tolist()
        ([5, 4, 7], [0, 1, 3, 3])
    """
    return _membership(rows_N.tobytes(), groups_N.tobytes(), num_groups)


@lru_cache(maxsize=32)
def _membership(rows: bytes, groups: bytes, num_groups: int) -> Membership:
    """Cached, because most units of a run have the same questions, and so the same groups."""
    rows_N, groups_N = np.frombuffer(rows, dtype=np.int64), np.frombuffer(groups, dtype=np.int64)
    order_N = np.argsort(groups_N, kind="stable")
    return Membership(rows_N[order_N], np.searchsorted(groups_N[order_N], np.arange(num_groups + 1)))


_Add = Callable[[Float32, Float32, Int64, Int64, Float64, Float64], bool]


_SIGNATURE = "b1(f4[:,:,::1], f4[:,::1], i8[::1], i8[::1], f8[:,:,::1], f8[:,:,::1])"


@cache
def _compiled_add() -> _Add:
    """Compile ``_add``, in half a second; imported and compiled only where something is summed."""
    import numba

    # A step of 1 says that an array is contiguous: the loop is five times as slow for any other, and refuses it.
    return numba.njit(_SIGNATURE, nogil=True)(_add)


def _add(
    values_LRD: Float32, shift_LD: Float32, rows_N: Int64, edges: Int64, sums_LGD: Float64, squares_LGD: Float64
) -> bool:
    """Add the differences from the shift, and their squares, to the sums of each group; for Numba.

    Returns:
        Whether all sums are finite; squares of float32 are within float64, so that is whether all values are.
    """
    num_coordinates = values_LRD.shape[2]
    is_finite = True
    for layer in range(len(values_LRD)):
        shift_D = shift_LD[layer]
        for group in range(len(edges) - 1):
            sums_D, squares_D = sums_LGD[layer, group], squares_LGD[layer, group]
            start, stop = edges[group], edges[group + 1]
            # Four rollouts at a time, because reading and writing the sums takes longer than the arithmetic.
            for row in range(start, stop - 3, 4):
                a_D, b_D = values_LRD[layer, rows_N[row]], values_LRD[layer, rows_N[row + 1]]
                c_D, d_D = values_LRD[layer, rows_N[row + 2]], values_LRD[layer, rows_N[row + 3]]
                for at in range(num_coordinates):
                    shift = np.float64(shift_D[at])
                    a, b = np.float64(a_D[at]) - shift, np.float64(b_D[at]) - shift
                    c, d = np.float64(c_D[at]) - shift, np.float64(d_D[at]) - shift
                    sums_D[at] += (a + b) + (c + d)
                    squares_D[at] += (a * a + b * b) + (c * c + d * d)
            for row in range(start + (stop - start) // 4 * 4, stop):
                a_D = values_LRD[layer, rows_N[row]]
                for at in range(num_coordinates):
                    a = np.float64(a_D[at]) - np.float64(shift_D[at])
                    sums_D[at] += a
                    squares_D[at] += a * a
            for at in range(num_coordinates):
                is_finite &= np.isfinite(squares_D[at])
    return is_finite
