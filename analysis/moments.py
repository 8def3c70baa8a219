"""Means over rollouts, gathered block by block: empty, add, merge, finish. Associative; float64 sums.

Axes: N rollouts of a block, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass
class GroupedMeans:
    """Sums and counts of vectors by group. A group without rollouts has no mean, never a zero vector."""

    sums: dict[Hashable, Float64] = field(default_factory=dict)
    counts: dict[Hashable, int] = field(default_factory=dict)

    def add(self, groups: Sequence[Hashable], values_NLD: npt.NDArray[np.float32]) -> None:
        """Add a block.

        Args:
            groups: The group of each of the N rollouts.
            values_NLD: float32, finite.
        """
        members: dict[Hashable, list[int]] = {}
        for n, group in enumerate(groups):
            members.setdefault(group, []).append(n)
        for group, rows in members.items():
            self._gather(group, values_NLD[rows].sum(axis=0, dtype=np.float64), len(rows))

    def merge(self, other: GroupedMeans) -> GroupedMeans:
        """Give the means over both sets of rollouts; neither side changes."""
        merged = GroupedMeans({g: s.copy() for g, s in self.sums.items()}, dict(self.counts))
        for group, total in other.sums.items():
            merged._gather(group, total, other.counts[group])
        return merged

    def _gather(self, group: Hashable, total_LD: Float64, count: int) -> None:
        if group in self.sums:
            self.sums[group] += total_LD
            self.counts[group] += count
        else:
            self.sums[group] = total_LD.copy()
            self.counts[group] = count

    def finish(self) -> dict[Hashable, Float64]:
        """Give the mean of every group, float64 ``(L, D)``."""
        return {group: total / self.counts[group] for group, total in self.sums.items()}
