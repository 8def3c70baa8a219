"""The canary: some rollouts, recomputed one by one in a plain forward pass and compared with the captured values.

This module has the choice of a worker, the comparison and its limits; ``jobs/work/canary_rows`` has the rule, and
``builtin/plain_pass`` recomputes. Does not import torch.
Axes: L captured layers, K those of which every token is kept, T tokens, D d_model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..jobs.errors import UnitError
from ..jobs.poolings import keeps_tokens
from ..jobs.specs.spec_parts import CanarySpec
from ..jobs.work.canary_rows import MOST_ROUNDING, can_be_compared, canary_draw, due_rows, first_rows
from ..jobs.work.rollouts import ArrayName, Canary
from ..jobs.work.units import UnitAttempt
from .engine import CapturedRollout, Reader
from .mixed_up import taken_for

_log = logging.getLogger(__name__)

LIMITS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
"""Relative error above which a unit fails or a worker warns, by parameter type. Measured on SmolLM2: up to 4e-7 in
float32 and 1e-2 in bfloat16; there a vector of another rollout, layer or span is off by 1e-1 and more. In bfloat16
rounding alone puts deep models above it, and other rollouts may be nearer (``benchmarks/canary_limits.py``)."""


class CanaryChecks:
    """Chooses rollouts of one worker's units, and compares them with plain forward passes.

    A worker is trusted once rollouts of one of its units were right, and no longer when one was wrong or only kept with
    a warning: until then every unit is checked, so that a broken replica is noticed at its first unit.

    Args:
        rule: Which rollouts are compared; None: by default.

    Attributes:
        rule: The rule.
    """

    def __init__(self, rule: CanarySpec | None = None) -> None:
        self.rule = rule or CanarySpec()
        self._is_trusted = False

    def check(self, attempt: UnitAttempt, rows: Sequence[CapturedRollout], reader: Reader) -> Canary | None:
        """Compare the chosen rollouts of a finished unit.

        Args:
            attempt: The attempt.
            rows: Its captured rollouts, in row order.
            reader: The reader that captured them.

        Returns:
            The worst figures of all compared rollouts; None when none was chosen.

        Raises:
            UnitError: A rollout differs by more than is allowed, and the rule lets that fail its unit, or no rounding
                explains it; names it and its worst layer.
        """
        limit = self.rule.tolerance or reader.canary_limit
        canaries: list[Canary] = []
        try:
            for row in self._rows(attempt, rows):
                others = [*rows[:row], *rows[row + 1 :]]
                canary = reader.canary(rows[row], others)
                if canary is not None:
                    judged = self._judged(canary, reader.layers, limit, str(rows[row].rollout.address))
                    canaries.append(replace(judged, rows=(row,)))
        except Exception:
            self._is_trusted = False
            raise
        if not canaries:
            return None
        merged = Canary.merged(canaries)
        self._is_trusted = not merged.num_above
        return merged

    def _judged(self, canary: Canary, layers: Sequence[int], limit: float, rollout: str) -> Canary:
        """Fail a rollout above its limit, or count it and warn where the rule says so and rounding may explain it."""
        if canary.worst_relative_error <= limit:
            if self.rule.action != "warn" or not canary.taken_for:
                return canary
            # Where rollouts lie closer together than rounding is large, rounding that they share looks like this, too.
            _log.warning("%s: what was captured is as near to %s; it is kept", rollout, canary.taken_for)
            return replace(canary, num_above=1)
        if self.rule.action != "warn" or canary.taken_for or not canary.worst_relative_error <= MOST_ROUNDING:
            require_close(canary, layers, limit, rollout)
        _log.warning(
            "%s: what was captured differs from a plain forward pass by %.1e of its norm, which is above %.0e; it is "
            "kept (capture.canary.action: warn)",
            rollout,
            canary.worst_relative_error,
            limit,
        )
        return replace(canary, num_above=1)

    def _rows(self, attempt: UnitAttempt, rows: Sequence[CapturedRollout]) -> list[int]:
        if self.rule.check == "none":
            return []
        rollouts = [row.rollout for row in rows]
        draws = [canary_draw(rollout.address, rollout.seed) for rollout in rollouts]
        content = [rollout.num_content_tokens for rollout in rollouts]
        comparable = [
            can_be_compared(
                [pooling for _, pooling in (*row.vectors_LD, *row.tokens_KTD)], tokens, row.rollout.finish_reason
            )
            for row, tokens in zip(rows, content, strict=True)
        ]
        chosen = set(due_rows(self.rule, draws, comparable))
        # A unit that failed was perhaps refused for rollouts that only an untrusted worker compares.
        if attempt.is_suspect or not self._is_trusted:
            chosen.update(first_rows(draws, content, comparable))
        return sorted(chosen)


def compare(
    captured: Mapping[ArrayName, npt.NDArray[np.float32]],
    plain: Mapping[ArrayName, npt.NDArray[np.float64]],
    token_positions: Sequence[int] = (),
    others: Sequence[Mapping[ArrayName, npt.NDArray[Any]]] = (),
) -> Canary:
    """Compare one rollout's captured values with those of a plain pass; all tokens of a layer count as one vector.

    Args:
        captured: Captured values by array: ``(L, D)``, or ``(K, T, D)`` where every token is kept.
        plain: Values of the plain pass, for the same arrays and in the same shapes.
        token_positions: Indices of the K layers among the L.
        others: Captured values of rollouts with which this one might have been mixed up.

    Returns:
        The worst error and cosine over all arrays, per layer. A value that is not finite makes the error infinite.
    """
    errors, cosines = [], []
    # Pooled arrays have all captured layers; in a run without pooled arrays, those of tokens have.
    num_layers = max(len(expected) for expected in plain.values())
    for array, expected in plain.items():
        positions = list(token_positions) if keeps_tokens(array[1]) else list(range(num_layers))
        expected_LD = expected.reshape(len(positions), -1)
        got_LD = captured[array].astype(np.float64).reshape(expected_LD.shape)
        norms_L, off_L = np.linalg.norm(expected_LD, axis=1), np.linalg.norm(got_LD - expected_LD, axis=1)
        with np.errstate(all="ignore"):
            # A norm may be 0, such as that of a padding token's embedding; 0 against 0 is no error.
            error_L = np.where(off_L == 0, 0.0, off_L / norms_L)
            cosine_L = (got_LD * expected_LD).sum(axis=1) / (np.linalg.norm(got_LD, axis=1) * norms_L)
            cosine_L = np.where(off_L == 0, 1.0, cosine_L)
        # An array of tokens may have only some of the layers; for the others it counts as exact.
        whole_error_L, whole_cosine_L = np.zeros(num_layers), np.ones(num_layers)
        whole_error_L[positions] = np.where(np.isfinite(error_L), error_L, np.inf)
        whole_cosine_L[positions] = np.where(np.isfinite(cosine_L), cosine_L, -1.0)
        errors.append(whole_error_L)
        cosines.append(whole_cosine_L)
    worst_L, least_L = np.max(errors, axis=0), np.min(cosines, axis=0)
    return Canary(
        1,
        tuple(float(value) for value in worst_L),
        tuple(float(value) for value in least_L),
        taken_for=taken_for(captured, plain, others),
    )


def require_close(canary: Canary, layers: Sequence[int], limit: float, rollout: str) -> None:
    """Check that a canary is within its limit.

    Args:
        canary: The result of ``compare``.
        layers: The captured layers.
        limit: Largest relative error that is allowed.
        rollout: Name of the rollout, for the message.

    Raises:
        UnitError: A layer exceeds the limit; names the worst layer.
    """
    worst = int(np.argmax(canary.relative_error_L))
    error = canary.relative_error_L[worst]
    if not error <= limit:
        raise UnitError(
            f"{rollout}, layer {layers[worst]}: what was captured differs from a plain forward pass by {error:.1e} of "
            f"its norm; {limit:.0e} is allowed.{f' It is {canary.taken_for}.' if canary.taken_for else ''}",
            code="canary",
        )
