"""The canary: one rollout recomputed the plain way, to be held against what was captured of it.

The plain way is Hugging Face's own: the finished conversation alone, no cache, no padding, its own attention, means in
numpy. What it offers as hidden states is taken from there; the stream above the last block and the places inside a block
are not among them and are read off by a hook that keeps whole tensors.
Axes: L captured layers, T tokens of the conversation, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..jobs.block import ArrayName, Canary, Rollout
from ..jobs.errors import UnitError
from ..jobs.spec import HookPoint
from .engine import CapturedRollout
from .hook_points import Tap

LIMITS = {"float32": 1e-3, "bfloat16": 5e-2, "float16": 5e-2}
"""Relative error above which a unit fails, by parameter type."""


def compare(
    captured: Mapping[ArrayName, npt.NDArray[np.float32]], plain: Mapping[ArrayName, npt.NDArray[np.float64]]
) -> Canary:
    """Hold one rollout's captured vectors against the plain ones.

    Args:
        captured: ``(L, D)`` per array.
        plain: The same arrays.

    Returns:
        The worst figures over the arrays, per layer. A number that is not finite makes the error infinite.
    """
    errors, cosines = [], []
    for array, expected_LD in plain.items():
        got_LD = captured[array].astype(np.float64)
        norms = np.linalg.norm(expected_LD, axis=1)
        with np.errstate(all="ignore"):
            error_L = np.linalg.norm(got_LD - expected_LD, axis=1) / norms
            cosine_L = (got_LD * expected_LD).sum(axis=1) / (np.linalg.norm(got_LD, axis=1) * norms)
        errors.append(np.where(np.isfinite(error_L), error_L, np.inf))
        cosines.append(np.where(np.isfinite(cosine_L), cosine_L, -1.0))
    worst_L, least_L = np.max(errors, axis=0), np.min(cosines, axis=0)
    return Canary(1, tuple(float(value) for value in worst_L), tuple(float(value) for value in least_L))


def require_close(canary: Canary, layers: Sequence[int], dtype: str) -> None:
    """Make sure that a canary is within its limit.

    Args:
        canary: The figures.
        layers: The captured layers.
        dtype: The parameters' type, which decides the limit.

    Raises:
        UnitError: A layer is beyond it; names the worst.
    """
    worst = int(np.argmax(canary.relative_error_L))
    error, limit = canary.relative_error_L[worst], LIMITS[dtype]
    if not error <= limit:
        raise UnitError(
            f"layer {layers[worst]}: what was captured differs from a plain forward pass by {error:.1e} of its norm; "
            f"{limit:.0e} is allowed in {dtype}.",
            code="canary",
        )


def plain_vectors(
    model: Any,
    taps: Mapping[HookPoint, Sequence[Tap]],
    layers: Sequence[int],
    arrays: Sequence[ArrayName],
    rollout: Rollout,
) -> dict[ArrayName, npt.NDArray[np.float64]]:
    """Recompute a rollout's vectors.

    Args:
        model: A causal language model with its own attention.
        taps: The places of the hook points, one per captured layer.
        layers: The captured layers.
        arrays: Which vectors.
        rollout: One that has content.
    """
    prompt = len(rollout.prompt_token_ids)
    ids = [*rollout.prompt_token_ids, *rollout.response_token_ids[: rollout.num_content_tokens]]
    seen: dict[tuple[HookPoint, int], torch.Tensor] = {}

    def keep(key: tuple[HookPoint, int]) -> Any:
        return lambda states: seen.__setitem__(key, states)

    handles = [tap.attach(keep((point, i))) for point, places in taps.items() for i, tap in enumerate(places)]
    try:
        with torch.inference_mode():
            output = model(
                input_ids=torch.tensor([ids], device=next(model.parameters()).device),
                use_cache=False,
                output_hidden_states=True,
                logits_to_keep=1,
            )
    finally:
        for handle in handles:
            handle.remove()
    hidden = output.hidden_states
    vectors: dict[ArrayName, npt.NDArray[np.float64]] = {}
    for point, pooling in arrays:
        states = [seen[point, i] for i in range(len(layers))]
        for i, layer in enumerate(layers):
            # One more than there are blocks; the last one is behind the final norm.
            index = {"resid_pre": layer, "resid_post": layer + 1}.get(point)
            if index is not None and index < len(hidden) - 1:
                states[i] = hidden[index]
        states_LTD = np.stack([state[0].double().cpu().numpy() for state in states])
        span = states_LTD[:, prompt:] if pooling.startswith("response_") else states_LTD[:, :prompt]
        vectors[point, pooling] = span.mean(axis=1) if pooling.endswith("_mean") else span[:, -1]
    return vectors


def canary_of(
    model: Any, taps: Mapping[HookPoint, Sequence[Tap]], layers: Sequence[int], captured: CapturedRollout
) -> Canary | None:
    """Recompute a rollout and compare; None when it has no content."""
    if not captured.rollout.has_vector:
        return None
    arrays = list(captured.vectors_LD)
    return compare(captured.vectors_LD, plain_vectors(model, taps, layers, arrays, captured.rollout))
