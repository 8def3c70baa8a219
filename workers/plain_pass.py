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

from ..jobs.block import ArrayName, Rollout
from ..jobs.spec import TOKENS, HookPoint
from .hook_points import Tap


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
        arrays: Which vectors; ``tokens`` are the response's, of every captured layer, ``(L, N, D)``.
        rollout: One that has content.
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
    vectors: dict[ArrayName, npt.NDArray[np.float64]] = {}
    for point, pooling in arrays:
        states: list[torch.Tensor] = []
        for i, layer in enumerate(layers):
            # One more than there are blocks; the last one is behind the final norm.
            index = {"resid_pre": layer, "resid_post": layer + 1}.get(point, len(hidden))
            states.append(hidden[index] if index < len(hidden) - 1 else seen[point, i])
        states_LTD = np.stack([state[0].double().cpu().numpy() for state in states])
        if pooling == TOKENS:
            vectors[point, pooling] = states_LTD[:, prompt:]
            continue
        span = states_LTD[:, prompt:] if pooling.startswith("response_") else states_LTD[:, :prompt]
        vectors[point, pooling] = span.mean(axis=1) if pooling.endswith("_mean") else span[:, -1]
    return vectors
