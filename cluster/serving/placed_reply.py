"""Where a reply lies on the axis: its projection at one layer, beside those of the axis's own run. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...analysis.axis_source import AxisSource, Float64
from ...analysis.watching.distribution import Distribution
from ...workers.engine import CapturedRollout

POOLING = "response_mean"
"""The mean over the response's tokens; its projection is the mean of theirs."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where one reply lies on the axis. Numbers are in axis sign: higher is nearer the Assistant.

    Attributes:
        layer: 0-based layer.
        projection: Mean projection of the reply's tokens on the axis of length one, in units of the residual stream,
            after interventions at this layer; None for a reply without a token.
        z_score: Standard deviations above the mean of the run's projections; None where these are not known.
        percentile: Share of the run's projections below it, 0 to 100; None where these are not known.
    """

    layer: int
    projection: float | None
    z_score: float | None
    percentile: float | None

    def as_dict(self) -> dict[str, Any]:
        """Build the part of a server's reply."""
        return {
            "layer": self.layer,
            "projection": self.projection,
            "z_score": self.z_score,
            "percentile": self.percentile,
        }

    def __str__(self) -> str:
        """Describe it in a few words.

        Example:
            >>> str(Place(15, 3.14159, -0.25, 40.0)), str(Place(15, None, None, None))
            ('projection 3.14 at layer 15 (z -0.25, percentile 40)', 'no projection')
        """
        if self.projection is None:
            return "no projection"
        beside = [f"z {self.z_score:+.2f}"] if self.z_score is not None else []
        beside += [f"percentile {self.percentile:.0f}"] if self.percentile is not None else []
        return f"projection {self.projection:.3g} at layer {self.layer}" + (f" ({', '.join(beside)})" if beside else "")


class Placing:
    """Places replies on an axis.

    Args:
        axis: The axis.
        layer: 0-based layer at which replies were captured.

    Raises:
        InputError: There is no axis at this layer.
    """

    def __init__(self, axis: AxisSource, layer: int) -> None:
        self.layer = layer
        self._hook_point = axis.hook_point
        self._unit_D: Float64 = axis.unit_D(layer)
        self._others: Distribution = axis.distribution(layer)

    @property
    def others(self) -> str:
        """What a reply is compared with; see ``Distribution.of``."""
        return self._others.of

    def place(self, captured: CapturedRollout) -> Place:
        """Return where a reply lies.

        Args:
            captured: The reply, captured at this layer alone.
        """
        # A run captures one hook point here; its name is a type of the spec.
        (values_1D,) = (v for (point, _), v in captured.vectors_LD.items() if point == self._hook_point)
        projection = float(np.asarray(values_1D[0], np.float64) @ self._unit_D)
        return Place(
            self.layer,
            _known(projection),
            _known(self._others.z_score(projection)),
            _known(self._others.percentile(projection)),
        )


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None
