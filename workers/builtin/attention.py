"""The arithmetic of attention within one conversation: torch's kernel, or two matrix products where that is faster.

Knows nothing of passes, caches and models. Axes of a call: any leading axes, then queries or keys, then the head size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

_FEW_QUERIES = 16
"""Queries per key head up to which a CPU spends more time on transposing the keys than on multiplying them. A decoding
slot has G queries per key head, one for each query head that shares it; in known model families G is below this."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a layer turns products of queries and keys into attention weights.

    Attributes:
        scaling: Factor of the scores before the softmax.
        softcap: Soft bound of the scores (``tanh``), as in Gemma 2; None where the family has none.
        sinks_H: A learned score for each query head that takes part in the softmax and has no value (an attention
            sink), as in GPT-OSS; None where the family has none.
    """

    scaling: float
    softcap: float | None = None
    sinks_H: torch.Tensor | None = None

    @property
    def needs_scores(self) -> bool:
        """Whether torch's kernel cannot compute it, because the scores or their sum are changed."""
        return self.softcap is not None or self.sinks_H is not None

    def sinks_of(self, num_heads: int, num_queries: int) -> torch.Tensor | None:
        """Return the sinks of query heads that are grouped by key head.

        Args:
            num_heads: Number of key heads K.
            num_queries: S, the queries of each of the G query heads of a group, one group member after the other.

        Returns:
            ``(K, G * S, 1)``; None where the family has no sinks.
        """
        if self.sinks_H is None:
            return None
        return self.sinks_H.unflatten(0, (num_heads, -1)).repeat_interleave(num_queries, dim=1)[..., None]


def additive(allowed: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a mask to be added to scores: 0 where a query may attend to a key, minus infinity elsewhere."""
    # Built once per pass; torch would convert a boolean mask to this form in every layer.
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scoring: Scoring,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention with torch's kernel where possible, else as ``products``.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        mask: Additive mask; None for a causal one, where ``scoring.needs_scores`` is false.
        scoring: How scores become weights.
        sinks: As for ``products``.
    """
    if mask is not None and scoring.needs_scores:
        return products(query, key, value, mask, scoring, sinks)
    return scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scoring.scaling
    )


def products(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scoring: Scoring,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute attention as two matrix products; a softcap is applied before the mask, as in Gemma 2.

    Args:
        query: Queries.
        key: Keys.
        value: Values.
        mask: Additive mask.
        scoring: How scores become weights.
        sinks: The sinks of ``scoring``, one per query, which can be broadcast to the scores' first column; None for
            none.
    """
    query = query * scoring.scaling
    # Few queries and many keys: computing keys @ queries avoids transposing the keys, which dominates on a CPU.
    few = query.shape[-2] <= _FEW_QUERIES and query.device.type == "cpu"
    scores = (key @ query.mT).mT.contiguous() if few else query @ key.mT
    if scoring.softcap is not None:
        scores = torch.tanh(scores / scoring.softcap) * scoring.softcap
    scores = scores + mask
    # Torch accumulates a softmax in float32, whatever the dtype of its input.
    if sinks is None:
        return scores.softmax(dim=-1) @ value
    with_sinks = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], dim=-1)
    return with_sinks.softmax(dim=-1)[..., :-1] @ value
