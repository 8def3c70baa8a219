"""What a comparison of stored rollouts with plain forward passes of the model found. Plain values.

This package knows no models: ``cluster/run/recompute.py`` computes them.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Deviation:
    """A stored rollout that differs from a plain forward pass by more than is allowed.

    Attributes:
        rollout: Its address.
        unit_id: Id of its unit.
        layer: The layer that differs most, 0-based.
        relative_error: ``|stored - plain| / |plain|`` there, the largest over all arrays.
        taken_for: What else its vectors are nearer to, which no rounding explains; ``""``: nothing.
    """

    rollout: str
    unit_id: str
    layer: int
    relative_error: float
    taken_for: str = ""


@dataclass(frozen=True, slots=True)
class Recomputation:
    """Stored rollouts, chosen at random, against plain forward passes of the model.

    Attributes:
        rollouts: Number of rollouts that were compared, each at every hook point, pooling and layer that is stored.
        tolerance: Largest relative error that is allowed: that of the parameter type plus that of the stored precision.
        worst_relative_error: Largest relative error of all; None when there was nothing to compare.
        deviations: The rollouts beyond the tolerance, the worst first.
        above: Number of rollouts beyond the tolerance that rounding may explain: in 16 bits, where the run's rule keeps
            such rollouts with a warning.
        left_out: For each pooling that could not be recomputed, the number of rollouts: those of ``user_mean`` in later
            turns of given conversations, because the tokens of the user's message are not stored.
    """

    rollouts: int
    tolerance: float
    worst_relative_error: float | None
    deviations: tuple[Deviation, ...]
    left_out: dict[str, int]
    above: int = 0

    @property
    def is_close(self) -> bool:
        """Whether every compared rollout is within the tolerance."""
        return not self.deviations
