"""From what a slot has to the values of every pooling, after checking that it has exactly the tokens of its spans.

Does not import vLLM.
Axes: L captured layers, K those of which every token is kept, T content tokens of one response, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...jobs.errors import UnitError
from ...jobs.poolings import POOLINGS, TokenSpans
from ...jobs.work.rollouts import ArrayName
from ..builtin.passes.capture import require_finite
from ..engine import EngineSettings
from .flights import Float32, SlotCapture

Arrays = dict[ArrayName, Float32]


def wrong_tokens(slot: SlotCapture, spans: TokenSpans, token_ids: Sequence[int]) -> str | None:
    """Say what a slot has that is not of the tokens of its span.

    Args:
        slot: What was captured.
        spans: Token ranges of its response, user's message and prompt.
        token_ids: The whole conversation.

    Returns:
        A clause for an error message; None where every sum is right and every token was kept.
    """
    for (combine, span), count in slot.counts.items():
        start, stop = spans.of(span)
        expected = list(token_ids[start:stop])[-1:] if combine == "last" else token_ids[start:stop]
        if (count, slot.id_sums[combine, span]) != (len(expected), sum(expected)):
            return f"{count} tokens of its {span}, {combine}, were captured, and other ones than its {len(expected)}"
    if slot.tokens_KTD.shape[0]:
        start, stop = spans.response
        # The token that ended the turn may have been fed, and is the last.
        if slot.token_ids[: stop - start] != tuple(token_ids[start:stop]):
            return f"{len(slot.token_ids)} tokens were kept, and other ones than the {stop - start} of its response"
    return None


def pooled(
    slot: SlotCapture, settings: EngineSettings, spans: TokenSpans, token_ids: Sequence[int], name: str
) -> tuple[Arrays, Arrays]:
    """Compute the values of every pooling.

    Args:
        slot: What was captured.
        settings: Poolings and captured layers.
        spans: Token ranges of its response, user's message and prompt.
        token_ids: The whole conversation.
        name: Name of the rollout or the text in error messages.

    Returns:
        The vectors, ``(L, D)`` each, and the arrays of every token, ``(K, T, D)`` each.

    Raises:
        UnitError: The sums or the kept tokens are not those of the spans, or a value is not finite.
    """
    wrong = wrong_tokens(slot, spans, token_ids)
    if wrong is not None:
        raise UnitError(f"{name}: {wrong}.", code="tokens_missing")
    num_content = spans.response[1] - spans.response[0]
    vectors: Arrays = {}
    tokens: Arrays = {}
    for point in settings.capture.hook_points:
        for pooling in map(POOLINGS.__getitem__, settings.capture.poolings):
            start, stop = spans.of(pooling.span)
            if pooling.combine == "every":
                value = tokens[point, pooling.name] = slot.tokens_KTD[:, :num_content].copy()
                layers = settings.token_layers
            else:
                # A pooling may share its sum with another one.
                value = slot.sums[pooling.combine, pooling.span].copy()
                if pooling.combine == "mean" and stop > start:
                    value /= stop - start
                vectors[point, pooling.name] = value if stop > start else np.full_like(value, np.nan)
                layers = settings.layers
            if stop > start:
                require_finite(torch.from_numpy(value), layers, f"{point}/{pooling.name} of {name}")
    return vectors, tokens
