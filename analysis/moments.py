"""Means of vectors by group, accumulated batch by batch: empty, add, merge, finish. Merging is associative.

Axes: N rollouts of a batch, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass
class GroupedMeans:
    """Sums and counts of vectors by group.

    A group without rollouts has no mean; it never becomes a zero vector.

    Attributes:
        sums: Sum of the vectors of each group, float64 ``(L, D)``: float32 sums lose digits over many rollouts.
        counts: Number of vectors of each group.

    Example:
        >>> means = GroupedMeans()
        >>> means.add(["a", "b", "a"], np.array([[[1.0]], [[5.0]], [[3.0]]], dtype=np.float32))
        >>> {group: mean.item() for group, mean in means.finish().items()}
        {'a': 2.0, 'b': 5.0}
    """

    sums: dict[Hashable, Float64] = field(default_factory=dict)
    counts: dict[Hashable, int] = field(default_factory=dict)

    def add(self, groups: Sequence[Hashable], values_NLD: npt.NDArray[np.float32]) -> None:
        """Add a batch of vectors.

        Args:
            groups: Group of each of the N rollouts.
            values_NLD: Finite vectors.
        """
        members: dict[Hashable, list[int]] = {}
        for n, group in enumerate(groups):
            members.setdefault(group, []).append(n)
        for group, rows in members.items():
            self._accumulate(group, values_NLD[rows].sum(axis=0, dtype=np.float64), len(rows))

    def merge(self, other: GroupedMeans) -> GroupedMeans:
        """Combine two accumulators into a new one; neither is changed."""
        merged = GroupedMeans({g: s.copy() for g, s in self.sums.items()}, dict(self.counts))
        for group, total in other.sums.items():
            merged._accumulate(group, total, other.counts[group])
        return merged

    def _accumulate(self, group: Hashable, total_LD: Float64, count: int) -> None:
        if group in self.sums:
            self.sums[group] += total_LD
            self.counts[group] += count
        else:
            self.sums[group] = total_LD.copy()
            self.counts[group] = count

    def finish(self) -> dict[Hashable, Float64]:
        """Compute the mean of every group, float64 ``(L, D)``."""
        return {group: total / self.counts[group] for group, total in self.sums.items()}
