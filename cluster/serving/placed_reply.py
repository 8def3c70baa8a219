"""Where a reply lies on the axis: its projection at one layer, beside those of the axis's own run. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...analysis.axis_source import AxisSource, Float64
from ...analysis.watching.distribution import Distribution
from ...jobs.work.rollouts import EditRecord
from ...workers.engine import CapturedRollout


@dataclass(frozen=True, slots=True)
class Place:
    """Where one reply lies on the axis. Numbers are in axis sign: higher is nearer the Assistant.

    Attributes:
        layer: 0-based layer.
        projection: Projection of the reply on the axis of length one, in units of the residual stream, after
            interventions at this layer; of its tokens' mean, or of what else the axis was pooled by. None for a reply
            without a token.
        z_score: Standard deviations above the mean of the run's projections; None where these are not known.
        percentile: Share of the run's projections below it, 0 to 100; None where these are not known.
        edits: What interventions did to prompt and reply, by layer; empty without interventions.
    """

    layer: int
    projection: float | None
    z_score: float | None
    percentile: float | None
    edits: tuple[EditRecord, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Build the part of a server's reply."""
        return {
            "layer": self.layer,
            "projection": self.projection,
            "z_score": self.z_score,
            "percentile": self.percentile,
            "edits": [
                {
                    "layer": edit.layer,
                    "share_changed": edit.share_changed,
                    "mean_correction": edit.mean_correction,
                }
                for edit in self.edits
            ],
        }

    def __str__(self) -> str:
        """Describe it in a few words.

        Example:
            >>> str(Place(15, 3.14159, -0.25, 40.0)), str(Place(15, None, None, None))
            ('projection 3.14 at layer 15 (z -0.25, percentile 40)', 'no projection')
            >>> str(Place(15, 3.0, None, None, (EditRecord(14, num_tokens=40, num_changed=10, mean_correction=2.5),)))
            'projection 3 at layer 15; changed 25 % of tokens at layer 14'
        """
        if self.projection is None:
            return "no projection"
        beside = [f"z {self.z_score:+.2f}"] if self.z_score is not None else []
        beside += [f"percentile {self.percentile:.0f}"] if self.percentile is not None else []
        found = f"projection {self.projection:.3g} at layer {self.layer}" + (
            f" ({', '.join(beside)})" if beside else ""
        )
        return f"{found}{_changed(self.edits)}"


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
        self._array = (axis.hook_point, axis.pooling)
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
        (value_D,) = captured.vectors_LD[self._array]
        projection = float(np.asarray(value_D, np.float64) @ self._unit_D)
        return Place(
            self.layer,
            _known(projection),
            _known(self._others.z_score(projection)),
            _known(self._others.percentile(projection)),
            captured.rollout.edits or (),
        )


def _changed(edits: Sequence[EditRecord]) -> str:
    if not edits:
        return ""
    share = sum(edit.share_changed for edit in edits) / len(edits)
    first, last = edits[0].layer, edits[-1].layer
    layers = f"layer {first}" if len(edits) == 1 else f"{len(edits)} layers, {first} to {last}"
    return f"; changed {100 * share:.0f} % of tokens at {layers}"


def _known(number: float) -> float | None:
    return number if math.isfinite(number) else None
