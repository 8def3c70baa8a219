"""Sums and sums of squares of rollouts by group, in one pass over the values.

Decoding is what a pass over all rollouts should cost. In numpy the sums take a difference, a square and two products of
matrices, each of which reads the values again and gives up Python's lock, for which threads then wait. A loop that
Numba compiles reads them once, sums in float64, and is one call; figures: docs/log.md.
Axes: N rollouts of a unit, R rows of its block, G groups, L layers of a part, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from threading import Lock

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

_Add = Callable[[Float32, Float32, Int64, Int64, Float64, Float64], bool]
# A step of 1 says that an array is contiguous: for others the loop is several times as slow.
_SIGNATURE = "b1(f4[:,:,::1], f4[:,::1], i8[::1], i8[::1], f8[:,:,::1], f8[:,:,::1])"
_COMPILING = Lock()


@dataclass(frozen=True, eq=False, slots=True)
class Membership:
    """Which rows of a block each group has; ``membership`` makes it.

    Attributes:
        rows_N: The rows, group by group.
        edges_G1: Where each group begins in ``rows_N``, and where the last one ends, ``(G + 1,)``.
        counts_G: Number of rows of each group.
        first_row: The first row that counts, whatever its group.
        last_row: The last.
    """

    rows_N: Int64
    edges_G1: Int64
    counts_G: Int64
    first_row: int
    last_row: int


class GroupSums:
    """Sums of rollouts by group at some layers, added part by part.

    What is summed are differences from the first rollout, in float64. So a mean that is long beside the spread costs no
    digits; rollouts that lie a million times as far from the first one as from each other lose some of their variance.

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
        self._counts_G = np.zeros(num_groups, dtype=np.int64)

    def add(self, first: int, values_LRD: Float32, groups: Membership) -> bool:
        """Add rollouts at adjacent layers; each unit is added at every layer.

        Args:
            first: Position of the first layer.
            values_LRD: Vectors, contiguous; rows of no group are not looked at.
            groups: The rows of each group.

        Returns:
            False if a value is not finite; the sums are of no use from then on.

        Raises:
            ValueError: The values or the groups do not fit these sums.
        """
        layers = slice(first, first + len(values_LRD))
        sums_LGD, shift_LD = self._sums_LGD[layers], self._shift_LD[layers]
        # The compiled loop checks no index.
        if (
            not values_LRD.flags.c_contiguous
            or shift_LD.shape != values_LRD.shape[::2]
            or groups.counts_G.shape != self._counts_G.shape
            or not 0 <= groups.first_row <= groups.last_row < values_LRD.shape[1]
        ):
            raise ValueError(f"values of shape {values_LRD.shape} from layer {first} do not fit {self._sums_LGD.shape}")
        if not self._has_shift_L[first]:
            shift_LD[:], self._has_shift_L[layers] = values_LRD[:, groups.first_row], True
        if first == 0:
            self._counts_G += groups.counts_G
        add = _compiled_add()
        return add(values_LRD, shift_LD, groups.rows_N, groups.edges_G1, sums_LGD, self._squares_LGD[layers])

    def finish(self) -> tuple[Int64, Float64, Float64]:
        """Turn the sums into counts, means and squared deviations, in place: nothing can be added any more.

        Returns:
            Number of rollouts ``(G,)``; their mean ``(L, G, D)``, NaN where there are none; and the sum of their
            squared deviations from it ``(L, G, D)``.
        """
        mean_LGD, m2_LGD = self._sums_LGD, self._squares_LGD
        for group, count in enumerate(self._counts_G.tolist()):
            if not count:
                mean_LGD[:, group] = np.nan
                continue
            total_LD = mean_LGD[:, group]
            m2_LGD[:, group] -= total_LD**2 / count
            total_LD /= count
            total_LD += self._shift_LD
        # Rounding may leave a little less than nothing.
        return self._counts_G, mean_LGD, np.maximum(m2_LGD, 0, out=m2_LGD)


def membership(rows_N: Int64, groups_N: Int64, num_groups: int) -> Membership:
    """Return which rows of a block each group has.

    Args:
        rows_N: The rows that count, at least one.
        groups_N: Number of the group of each, below ``num_groups``.
        num_groups: G.

    Raises:
        ValueError: There is no such group.

    Example:
        >>> found = membership(np.array([4, 5, 7]), np.array([1, 0, 1]), 3)
        >>> found.rows_N.tolist(), found.edges_G1.tolist()
        ([5, 4, 7], [0, 1, 3, 3])
    """
    return _membership(rows_N.tobytes(), groups_N.tobytes(), num_groups)


@lru_cache(maxsize=32)
def _membership(rows: bytes, groups: bytes, num_groups: int) -> Membership:
    """Cached, because most units of a run have the same questions, and so the same groups."""
    rows_N, groups_N = np.frombuffer(rows, dtype=np.int64), np.frombuffer(groups, dtype=np.int64)
    counts_G = np.bincount(groups_N, minlength=num_groups)
    if len(counts_G) != num_groups:
        raise ValueError(f"a rollout is in group {len(counts_G) - 1} of {num_groups}")
    edges_G1 = np.concatenate([[0], np.cumsum(counts_G)])
    in_order_N = rows_N[np.argsort(groups_N, kind="stable")]
    return Membership(in_order_N, edges_G1, counts_G, int(rows_N.min()), int(rows_N.max()))


def _compiled_add() -> _Add:
    """Return ``_add``, compiled by the first thread that asks while the others wait."""
    with _COMPILING:
        return _compile_add()


@cache
def _compile_add() -> _Add:
    """Compile ``_add``, which takes most of a second with Numba's import: only where something is summed."""
    import numba

    return numba.njit(_SIGNATURE, nogil=True)(_add)


def _add(
    values_LRD: Float32, shift_LD: Float32, rows_N: Int64, edges_G1: Int64, sums_LGD: Float64, squares_LGD: Float64
) -> bool:
    """Add the differences from the shift, and their squares, to the sums of each group; for Numba.

    Returns:
        Whether all sums are finite; squares of float32 are within float64, so that is whether all values are.
    """
    num_coordinates = values_LRD.shape[2]
    is_finite = True
    for layer in range(len(values_LRD)):
        shift_D = shift_LD[layer]
        for group in range(len(edges_G1) - 1):
            sums_D, squares_D = sums_LGD[layer, group], squares_LGD[layer, group]
            start, stop = edges_G1[group], edges_G1[group + 1]
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
