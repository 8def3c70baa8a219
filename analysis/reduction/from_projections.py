"""Thresholds, intervals and the rollouts' own variance, from the projections of every rollout. Pure.

Axes: N rollouts, P roles, L layers of a group, K components.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ..components.pca import rollout_variance_share
from ..reliability import question_intervals
from ..thresholds import thresholds
from .by_layer import OVERFLOW
from .cast import Cast
from .projections import Spread
from .rollouts import KINDS, has_halves

Arrays = dict[str, npt.NDArray[Any]]
Float64 = npt.NDArray[np.float64]


class ProjectionResults:
    """What follows from projections, for any group of layers.

    Args:
        cast: The personas.
        lines: Lines of the index of every rollout, in the order of the projections.
        rollout_variance_L: Total variance of the rollouts of all roles, at every layer.
    """

    def __init__(self, cast: Cast, lines: pa.Table, rollout_variance_L: Float64) -> None:
        self._cast = cast
        self._rollout_variance_L = rollout_variance_L
        self._rows, self._roles_N = _members(cast)
        # Conversations of no persona, which a directory of responses may hold besides, are no part of the calibration.
        self._is_of_persona_N1 = np.concatenate(
            [np.full((persona.count, 1), persona.kind in KINDS) for persona in cast.everybody]
        )
        self._questions = lines["question_index"].to_numpy(zero_copy_only=False) if has_halves(lines) else None

    def at(
        self, start: int, projections_NL: npt.NDArray[np.float32], along: Sequence[dict[str, Float64]]
    ) -> tuple[Arrays, dict[int, str]]:
        """Compute the arrays of some layers.

        Args:
            start: Position of the first layer.
            projections_NL: Projections of every rollout; NaN where there is no axis.
            along: Mean and squared deviations along the components, of every persona.

        Returns:
            The arrays, and the positions in the group at which projections are undefined although there is an axis.
        """
        undefined: dict[int, str] = {}
        for position in range(projections_NL.shape[1]):
            values_N = projections_NL[:, position]
            # NaN throughout where there is no axis.
            if not np.isfinite(values_N).all() and not np.isnan(values_N).all():
                undefined[position] = OVERFLOW
                projections_NL[:, position] = np.nan
        levels = thresholds(projections_NL, self._cast.settings.percentiles, self._is_of_persona_N1)
        arrays: Arrays = {
            "projections": projections_NL,
            "cap_on_minus_axis": levels.cap_on_minus_axis_QL,
            "floor_on_axis": levels.floor_on_axis_QL,
        }
        if self._questions is not None:
            arrays |= self._intervals(projections_NL, self._questions)
        if any(found["mean"].shape[1] for found in along):
            layers = slice(start, start + projections_NL.shape[1])
            variance_LK = self._variance_along(along)
            arrays["pca_rollout_variance"] = rollout_variance_share(variance_LK, self._rollout_variance_L[layers])
        return arrays, undefined

    def _intervals(self, projections_NL: npt.NDArray[np.float32], questions: npt.NDArray[np.int64]) -> Arrays:
        cast = self._cast
        of_roles = question_intervals(
            projections_NL[self._rows], self._roles_N, questions[self._rows], num_personas=len(cast.roles)
        )
        assert cast.default is not None
        own = slice(cast.default.first, cast.default.first + cast.default.count)
        everyone = np.zeros(cast.default.count, dtype=np.int64)
        of_default = question_intervals(projections_NL[own], everyone, questions[own], num_personas=1)
        return {"role_projection_interval": of_roles, "default_projection_interval": of_default[:, 0]}

    def _variance_along(self, along: Sequence[dict[str, Float64]]) -> Float64:
        """Variance of all rollouts of roles along each component, about their common mean."""
        pairs = [
            (persona, found)
            for persona, found in zip(self._cast.everybody, along, strict=True)
            if persona.kind == "role"
        ]
        shape = pairs[0][1]["mean"].shape
        spread = Spread(*shape)
        for persona, found in pairs:
            spread.merge(persona.count, found["mean"], found["m2"])
        return np.stack([spread.at(layer)["along_m2"] for layer in range(shape[0])]) / max(
            1, sum(persona.count for persona, _ in pairs) - 1
        )


def _members(cast: Cast) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the places of the rollouts that count, role by role, and the number of the role of each."""
    rows = [role.first + np.flatnonzero(role.members(cast.counted)) for role in cast.roles]
    numbers = [np.full(len(places), number, dtype=np.int64) for number, places in enumerate(rows)]
    return np.concatenate(rows), np.concatenate(numbers)
