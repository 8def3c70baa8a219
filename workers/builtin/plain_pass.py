"""One rollout the plain way, Hugging Face's own: the finished conversation alone, no cache, no padding, no packing.

What transformers offers as hidden states is taken from there; the stream above the last block and the places inside a
block are not among them and are read off by a hook that keeps whole tensors. Means are numpy's, in float64.
Axes: L captured layers, T tokens of the conversation, N of its response's content, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ...jobs.rollouts import ArrayName, Rollout
from ...jobs.spec import TOKENS, HookPoint
from ..models.hook_points import Tap


def plain_vectors(
    model: Any,
    taps: Mapping[HookPoint, Sequence[Tap]],
    layers: Sequence[int],
    arrays: Sequence[ArrayName],
    rollout: Rollout,
    token_positions: Sequence[int] = (),
) -> dict[ArrayName, npt.NDArray[np.float64]]:
    """Recompute a rollout's vectors.

    Args:
        model: A causal language model with its own attention.
        taps: The places of the hook points, one per captured layer.
        layers: The captured layers.
        arrays: Which vectors; ``tokens`` are the response's, ``(K, N, D)``.
        rollout: One that has content.
        token_positions: Places of the K layers among the L.
    """
    prompt = len(rollout.prompt_token_ids)
    ids = [*rollout.prompt_token_ids, *rollout.response_token_ids[: rollout.num_content_tokens]]
    seen: dict[tuple[str, int], torch.Tensor] = {}

    def keep(key: tuple[str, int]) -> Any:
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

    def stream(point: HookPoint | str, i: int) -> npt.NDArray[np.float64]:
        # One more than there are blocks; the last one is behind the final norm.
        index = {"resid_pre": layers[i], "resid_post": layers[i] + 1}.get(point, len(hidden))
        states = hidden[index] if index < len(hidden) - 1 else seen[point, i]
        return states[0].double().cpu().numpy()

    return {
        (point, pooling): np.stack(
            [
                _pooled(stream(point, i), prompt, pooling)
                for i in (token_positions if pooling == TOKENS else range(len(layers)))
            ]
        )
        for point, pooling in arrays
    }


def _pooled(states_TD: npt.NDArray[np.float64], prompt: int, pooling: str) -> npt.NDArray[np.float64]:
    """Pool one layer: ``(D,)``, of ``tokens`` the response's ``(N, D)``."""
    if pooling == TOKENS:
        return states_TD[prompt:]
    span_TD = states_TD[prompt:] if pooling.startswith("response_") else states_TD[:prompt]
    return span_TD.mean(axis=0) if pooling.endswith("_mean") else span_TD[-1]
