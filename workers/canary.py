"""The canary: one rollout of every unit, recomputed in a plain forward pass and compared with the captured values.

This module has the comparison and its limits; ``builtin/plain_pass`` recomputes. Does not import torch.
Axes: L captured layers, K those of which every token is kept, T tokens, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ..jobs.errors import UnitError
from ..jobs.poolings import keeps_tokens
from ..jobs.rollouts import ArrayName, Canary

LIMITS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
"""Relative error above which a unit fails, by parameter type. Measured on SmolLM2: up to 4e-7 in float32 and 1e-2 in
bfloat16; a vector of another rollout, layer or span is off by 1e-1 and more."""


def compare(
    captured: Mapping[ArrayName, npt.NDArray[np.float32]],
    plain: Mapping[ArrayName, npt.NDArray[np.float64]],
    token_positions: Sequence[int] = (),
) -> Canary:
    """Compare one rollout's captured values with those of a plain pass; all tokens of a layer count as one vector.

    Args:
        captured: Captured values by array: ``(L, D)``, or ``(K, T, D)`` where every token is kept.
        plain: Values of the plain pass, for the same arrays and in the same shapes.
        token_positions: Indices of the K layers among the L.

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
    return Canary(1, tuple(float(value) for value in worst_L), tuple(float(value) for value in least_L))


def require_close(canary: Canary, layers: Sequence[int], limit: float) -> None:
    """Check that a canary is within its limit.

    Args:
        canary: The result of ``compare``.
        layers: The captured layers.
        limit: Largest relative error that is allowed.

    Raises:
        UnitError: A layer exceeds the limit; names the worst layer.
    """
    worst = int(np.argmax(canary.relative_error_L))
    error = canary.relative_error_L[worst]
    if not error <= limit:
        raise UnitError(
            f"layer {layers[worst]}: what was captured differs from a plain forward pass by {error:.1e} of its norm; "
            f"{limit:.0e} is allowed.",
            code="canary",
        )
