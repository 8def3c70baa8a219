"""The arithmetic of attention within one conversation: torch's kernel, or two matrix products where that is faster.

Knows nothing of passes, caches and models. Axes of a call: any leading axes, then queries or keys, then the head size.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from .to_device import to_device

try:
    from torch.nn.attention.varlen import varlen_attn as _varlen_attn
except ImportError:  # before torch 2.10
    _varlen_attn = None

_VARLEN_OPTIONS = frozenset(inspect.signature(_varlen_attn).parameters) if _varlen_attn else frozenset[str]()
_LARGEST_HEAD = 256

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


@dataclass(frozen=True, slots=True)
class Lengths:
    """Lengths of texts that are attended to in one call of torch's kernel for texts of different lengths.

    Attributes:
        query_ends: int32 ``(texts + 1,)``, on the device: where the queries of each text begin and end.
        key_ends: The same of its keys; a text's queries are its last positions.
        most_queries: Most queries of a text.
        most_keys: Most keys of a text.
    """

    query_ends: torch.Tensor
    key_ends: torch.Tensor
    most_queries: int
    most_keys: int

    @classmethod
    def of(cls, queries: Sequence[int], keys: Sequence[int], device: str) -> Lengths:
        """Describe texts by the numbers of their queries and keys."""
        ends = [to_device([0, *accumulate(counts)], device).int() for counts in (queries, keys)]
        return cls(ends[0], ends[1], max(queries), max(keys))


def has_kernel_for_lengths(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Return whether ``attention_of_lengths`` can be used: on GPUs, in 16 bit, in versions of torch that have it."""
    return (
        query.device.type == "cuda"
        and query.dtype in {torch.bfloat16, torch.float16}
        and {"window_size", "scale"} <= _VARLEN_OPTIONS
        and query.shape[-1] == value.shape[-1] <= _LARGEST_HEAD
        and query.shape[-1] % 8 == 0
    )


def attention_of_lengths(
    query_NHD: torch.Tensor, key_TKD: torch.Tensor, value_TKD: torch.Tensor, lengths: Lengths, scaling: float
) -> torch.Tensor:
    """Compute causal attention within each of several texts in one call.

    Args:
        query_NHD: Queries of all texts, one after another.
        key_TKD: Keys of all texts.
        value_TKD: Values of all texts.
        lengths: Where each text begins and ends.
        scaling: Factor of the scores before the softmax.

    Returns:
        ``(N, H, D)``.
    """
    assert _varlen_attn is not None
    # Some versions want to be told what the kernel does anyway.
    grouped: dict[str, Any] = {"enable_gqa": True} if "enable_gqa" in _VARLEN_OPTIONS else {}
    found = _varlen_attn(
        query_NHD,
        key_TKD,
        value_TKD,
        lengths.query_ends,
        lengths.key_ends,
        lengths.most_queries,
        lengths.most_keys,
        scale=scaling,
        # All keys before a query and none after it.
        window_size=(-1, 0),
        **grouped,
    )
    return found if isinstance(found, torch.Tensor) else found[0]


@cache
def _has_grouped_decoding() -> bool:
    """Whether cuDNN's attention takes grouped queries and a mask: on GPUs from Hopper on."""
    return torch.backends.cudnn.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def decoding_attention(
    query_AHD: torch.Tensor, key_AKTD: torch.Tensor, value_AKTD: torch.Tensor, mask_A11T: torch.Tensor, scoring: Scoring
) -> torch.Tensor:
    """Compute the attention of one query of each of several conversations.

    Args:
        query_AHD: The queries.
        key_AKTD: Keys.
        value_AKTD: Values.
        mask_A11T: Additive mask.
        scoring: How scores become weights.

    Returns:
        ``(A, H, D)``.
    """
    heads = key_AKTD.shape[1]
    on_cpu = query_AHD.device.type == "cpu"
    if not on_cpu and not scoring.needs_scores and query_AHD.dtype != torch.float32 and _has_grouped_decoding():
        # Measured on an H200: 0.6 of the time that the queries of a group take as one query axis.
        with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH], set_priority=True):
            return scaled_dot_product_attention(
                query_AHD[:, :, None],
                key_AKTD,
                value_AKTD,
                attn_mask=mask_A11T,
                scale=scoring.scaling,
                enable_gqa=True,
            )[:, :, 0]
    # The G queries that share a key head become the query axis, so that the keys are not repeated for them.
    query_AKGD = query_AHD.unflatten(1, (heads, -1))
    attend = products if on_cpu else attention
    mask_A1GT = mask_A11T.expand(-1, -1, query_AKGD.shape[2], -1)
    sinks = scoring.sinks_of(heads, 1)
    return attend(query_AKGD, key_AKTD, value_AKTD, mask_A1GT, scoring, sinks).flatten(1, 2)


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
    # In place: nothing else has the scores, and copies of them are most of the memory that this takes.
    if scoring.softcap is not None:
        scores.div_(scoring.softcap).tanh_().mul_(scoring.softcap)
    scores += mask
    # Torch accumulates a softmax in float32, whatever the dtype of its input.
    if sinks is None:
        return scores.softmax(dim=-1) @ value
    with_sinks = torch.cat([scores, sinks.to(scores.dtype).expand(*scores.shape[:-1], 1)], dim=-1)
    return with_sinks.softmax(dim=-1)[..., :-1] @ value
