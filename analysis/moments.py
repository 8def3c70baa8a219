"""Count, mean and spread of vectors, merged exactly: sums of rollouts that are never read again.

A set of rollouts is kept as its count, its mean and the sum of squared deviations from that mean, all in float64. Two
such sets merge without the rollouts themselves, by the update of Chan, Golub and LeVeque, "Algorithms for computing the
sample variance" (The American Statistician 37, 1983), which does not cancel as sums of squares do. Merging is
associative and commutative up to rounding.

Axes: N rollouts of a batch, L layers, D d_model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]

_ROWS = 32
"""Rollouts whose deviations are formed at a time."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and sum of squared deviations of a set of vectors.

    A set without rollouts has no mean: it is NaN and never a zero vector. A value that is not finite makes mean and
    deviations NaN at its own layer and coordinate only.

    Attributes:
        count: Number of vectors.
        mean_LD: Their mean; NaN if there are none.
        m2_LD: Sum over the vectors of the squared deviation from the mean; zero if there are none.

    Example:
        >>> few = Moments.of(np.array([[[1.0]], [[3.0]]]))
        >>> all_three = few.merge(Moments.of(np.array([[[8.0]]])))
        >>> all_three.count, all_three.mean_LD.item(), all_three.variance().item()
        (3, 4.0, 13.0)
    """

    count: int
    mean_LD: Float64
    m2_LD: Float64

    @classmethod
    def empty(cls, num_layers: int, d_model: int) -> Moments:
        """Make the moments of no vectors, which change nothing when they are merged.

        Args:
            num_layers: L.
            d_model: D.

        Example:
            >>> Moments.empty(1, 2).mean_LD
            array([[nan, nan]])
        """
        return cls(0, np.full((num_layers, d_model), np.nan), np.zeros((num_layers, d_model)))

    @classmethod
    def of(cls, values_NLD: npt.NDArray[np.floating]) -> Moments:
        """Compute the moments of vectors in two passes: the mean, then the deviations from it.

        Args:
            values_NLD: The vectors, float32 or float64; N may be 0.

        Example:
            >>> found = Moments.of(np.array([[[2.0, 5.0]], [[4.0, 5.0]]], dtype=np.float32))
            >>> found.mean_LD, found.m2_LD
            (array([[3., 5.]]), array([[2., 0.]]))
        """
        count, num_layers, d_model = values_NLD.shape
        if not count:
            return cls.empty(num_layers, d_model)
        # An infinite value leaves inf - inf, which is the NaN that is promised.
        with np.errstate(invalid="ignore", over="ignore"):
            mean_LD = values_NLD.mean(axis=0, dtype=np.float64)
            m2_LD = np.zeros_like(mean_LD)
            for position in range(num_layers):
                for start in range(0, count, _ROWS):  # few at a time: deviations are float64 and stay in the cache
                    deviations_ND = values_NLD[start : start + _ROWS, position] - mean_LD[position]
                    m2_LD[position] += np.einsum("nd,nd->d", deviations_ND, deviations_ND)
            mean_LD[~np.isfinite(mean_LD)] = np.nan
        return cls(count, mean_LD, m2_LD)

    def merge(self, other: Moments) -> Moments:
        """Combine the moments of two sets that have no rollout in common; neither is changed.

        Args:
            other: Moments of the same shape.

        Raises:
            ValueError: The shapes differ.

        Example:
            >>> both = Moments.of(np.array([[[1.0]]])).merge(Moments.of(np.array([[[2.0]]])))
            >>> both.count, both.mean_LD.item(), both.m2_LD.item()
            (2, 1.5, 0.5)
        """
        if self.mean_LD.shape != other.mean_LD.shape:
            raise ValueError(f"moments of shape {self.mean_LD.shape} cannot be merged with {other.mean_LD.shape}")
        if not self.count or not other.count:
            return other if other.count else self
        count = self.count + other.count
        difference_LD = other.mean_LD - self.mean_LD
        mean_LD = self.mean_LD + difference_LD * (other.count / count)
        m2_LD = self.m2_LD + other.m2_LD + difference_LD**2 * (self.count * other.count / count)
        return Moments(count, mean_LD, m2_LD)

    def variance(self) -> Float64:
        """Compute the variance about the mean with n - 1 in the denominator.

        Returns:
            ``(L, D)``; NaN for fewer than two vectors.

        Example:
            >>> Moments.of(np.array([[[1.0]], [[3.0]]])).variance(), Moments.of(np.array([[[1.0]]])).variance()
            (array([[2.]]), array([[nan]]))
        """
        return self.m2_LD / (self.count - 1) if self.count > 1 else np.full_like(self.m2_LD, np.nan)

    def total_variance(self) -> Float64:
        """Compute the variance summed over the coordinates: the trace of the covariance.

        Returns:
            ``(L,)``; NaN for fewer than two vectors.

        Example:
            >>> Moments.of(np.array([[[1.0, 0.0]], [[3.0, 2.0]]])).total_variance()
            array([4.])
        """
        return self.variance().sum(axis=1)
