"""The size of a batch where nobody has set it: what the memory of a GPU has room for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from ...engine import EngineSettings
from ..loaded_model import LoadedModel
from ..reading import PASS_TOKENS

_RESERVED = 0.1
"""Part of a GPU's memory that a batch leaves free: for fragmentation, and for what else runs there."""

_ACTIVATIONS = 24
"""Values of the type of the model that a token of a pass needs for each value of its residual stream: the inner layer
of an MLP has up to four times its width, twice, besides queries, keys, values and what norms return."""

_MOST_ROWS = 512
"""Rollouts of a batch beyond which a GPU is busy anyway."""

_PROMPT_TOKENS = 256
"""Tokens of a prompt, roughly, where only the longest response is known."""

_LEAST_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class BatchCosts:
    """What a batch costs in memory.

    Attributes:
        bytes_per_token: Keys and values of one token.
        bytes_per_row: Sums and buffers of one rollout: captured values, probabilities.
        bytes_per_stream_value: Bytes of a value of the residual stream.
        d_model: Width of the residual stream.
        pass_tokens: Most tokens of a pass over prompts.
        max_new_tokens: Most tokens of a response.
    """

    bytes_per_token: float
    bytes_per_row: float
    bytes_per_stream_value: int
    d_model: int
    pass_tokens: int
    max_new_tokens: int


def fitting_batch_tokens(free_bytes: int, total_bytes: int, costs: BatchCosts) -> int:
    """Compute how many tokens a batch can have.

    Args:
        free_bytes: Memory that is free once the model is loaded.
        total_bytes: All memory of the device.
        costs: What a batch costs.

    Returns:
        Tokens, prompts and responses together; at least 4096, whatever is free.

    Example:
        >>> costs = BatchCosts(131_072, 2_000_000, 2, 4096, 16_384, 512)
        >>> fitting_batch_tokens(60 * 10**9, 80 * 10**9, costs)
        364902
    """
    activations = costs.pass_tokens * _ACTIVATIONS * costs.d_model * costs.bytes_per_stream_value
    row_tokens = costs.max_new_tokens + _PROMPT_TOKENS
    room = free_bytes - _RESERVED * total_bytes - activations
    tokens = room / (costs.bytes_per_token + costs.bytes_per_row / row_tokens)
    return max(_LEAST_TOKENS, int(min(tokens, _MOST_ROWS * row_tokens)))


def sized(settings: EngineSettings, loaded: LoadedModel) -> EngineSettings:
    """Return settings with the size of a batch, which is found out where nobody has set it.

    Args:
        settings: Settings of an engine.
        loaded: Its model, on the device.
    """
    if settings.batch_tokens is not None:
        return settings
    free, total = torch.cuda.mem_get_info()
    # What torch has taken from the device and does not use is free, too.
    free += torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    capture = settings.capture
    # Beside the sums of every array, a decoding step has a buffer for every hook point.
    arrays = len(capture.hook_points) * (1 + len(capture.poolings))
    vocabulary = int(loaded.model.get_input_embeddings().weight.shape[0])
    costs = BatchCosts(
        bytes_per_token=loaded.cache_bytes_per_token(),
        # Of the logits of a rollout, those of the model, two copies in float32, and what sampling sorts.
        bytes_per_row=4 * arrays * len(settings.layers) * loaded.d_model + 16 * vocabulary,
        bytes_per_stream_value=getattr(torch, settings.dtype).itemsize,
        d_model=loaded.d_model,
        pass_tokens=PASS_TOKENS[settings.device],
        max_new_tokens=settings.sampling.max_new_tokens,
    )
    return replace(settings, batch_tokens=fitting_batch_tokens(free, total, costs))
