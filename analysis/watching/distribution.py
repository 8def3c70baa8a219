"""Where a projection lies among others: mean, standard deviation, percentile. Axes: N projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Distribution:
    """Projections on an axis at one layer, which others are compared with.

    Attributes:
        of: What they are projections of. ``rollouts``: single responses. ``role vectors``: means over many, which
            scatter less than single responses do, so that z-scores are larger. ``nothing``: none is known.
        mean: Their mean; NaN without any.
        std: Their standard deviation (n - 1); NaN for fewer than two.
        sorted_N: The projections, ascending.
    """

    of: Literal["rollouts", "role vectors", "nothing"]
    mean: float
    std: float
    sorted_N: Float64 = field(repr=False)

    @classmethod
    def of_values(
        cls, of: Literal["rollouts", "role vectors"], values_N: npt.NDArray[np.floating] | Sequence[float]
    ) -> Distribution:
        """Describe projections; those that are not finite are left out.

        Args:
            of: What they are projections of.
            values_N: The projections, in axis sign.

        Example:
            >>> found = Distribution.of_values("rollouts", [1.0, 2.0, 3.0])
            >>> found.mean, found.std, len(found.sorted_N)
            (2.0, 1.0, 3)
        """
        values = np.asarray(values_N, np.float64)
        values = np.sort(values[np.isfinite(values)])
        if not len(values):
            return UNKNOWN
        return cls(of, float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else float("nan"), values)

    def z_score(self, value: float) -> float:
        """Return how many standard deviations a value is above the mean; NaN where they do not scatter.

        Args:
            value: A projection, in axis sign.

        Example:
            >>> Distribution.of_values("rollouts", [1.0, 2.0, 3.0]).z_score(4.0)
            2.0
        """
        return (value - self.mean) / self.std if self.std > 0 else float("nan")

    def percentile(self, value: float) -> float:
        """Return the share of the projections below a value, and of half of those that equal it.

        Args:
            value: A projection, in axis sign.

        Returns:
            0 to 100; above 50 is nearer the Assistant than the median. NaN without projections, or of NaN.

        Example:
            >>> found = Distribution.of_values("rollouts", [1.0, 2.0, 3.0, 4.0])
            >>> found.percentile(2.5), found.percentile(0.0), found.percentile(2.0)
            (50.0, 0.0, 37.5)
        """
        if not len(self.sorted_N) or np.isnan(value):
            return float("nan")
        below, not_above = (int(np.searchsorted(self.sorted_N, value, side=side)) for side in ("left", "right"))
        return 100 * (below + not_above) / 2 / len(self.sorted_N)


UNKNOWN = Distribution("nothing", float("nan"), float("nan"), np.empty(0))
"""Nothing to compare with: a control vector has neither rollouts nor roles."""
