"""Choose the next tokens. Each rollout draws from a stream of its own, so batching and order change nothing.

Axes: B rows of the batch, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...jobs.errors import UnitError

_CANDIDATES = (64, 1024)
"""Likeliest tokens looked at first, and for rows whose nucleus is wider; then the whole vocabulary."""

_ROWS_AT_ONCE = 8
"""On a processor: so many rows of a whole vocabulary stay in its cache from one operation to the next."""


def uniforms(seeds: Sequence[int], num_steps: int) -> torch.Tensor:
    """Draw every rollout's random numbers ahead, on the CPU, from its own seed.

    Args:
        seeds: One per rollout.
        num_steps: Tokens it may sample.

    Returns:
        float32 ``(B, num_steps)`` in [0, 1).
    """
    rows = [np.random.Generator(np.random.PCG64(seed)).random(num_steps, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def sample(logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Sample one token a row from the smallest set of tokens with at least ``top_p`` of the mass.

    Args:
        logits_BV: ``(B, V)``, any float dtype.
        uniform_B: ``(B,)`` in [0, 1); picks the token by inverse cumulative distribution, likeliest first.
        temperature: 0 takes the likeliest token.
        top_p: In (0, 1].

    Returns:
        int64 ``(B,)``.

    Raises:
        UnitError: A row has no finite likeliest logit.
    """
    if temperature == 0:
        _require_finite(logits_BV.amax(dim=-1))
        return logits_BV.argmax(dim=-1)
    uniform_B1 = uniform_B.to(logits_BV.device)[:, None]
    at_once = _ROWS_AT_ONCE if logits_BV.device.type == "cpu" else max(1, len(logits_BV))
    return torch.cat(
        [
            _sample_rows(logits, uniform, temperature, top_p)
            for logits, uniform in zip(logits_BV.split(at_once), uniform_B1.split(at_once), strict=True)
        ]
    )


def _sample_rows(logits_BV: torch.Tensor, uniform_B1: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    probs_BV = (logits_BV.float() / temperature).softmax(dim=-1)
    tokens_B = torch.empty(len(probs_BV), dtype=torch.long, device=probs_BV.device)
    # Few nuclei are wide: only the rows whose candidates fall short of top_p are looked at again.
    rows_B = torch.arange(len(probs_BV), device=probs_BV.device)
    vocabulary = probs_BV.shape[-1]
    for width in sorted({min(width, vocabulary) for width in (*_CANDIDATES, vocabulary)}):
        # Not by an index where all are meant: that would copy whole vocabularies.
        top_BK, ids_BK = (probs_BV if len(rows_B) == len(probs_BV) else probs_BV[rows_B]).topk(width, dim=-1)
        # What is not finite makes all of a row's probabilities NaN.
        _require_finite(top_BK[:, 0])
        chosen_B = _pick(top_BK, ids_BK, uniform_B1[rows_B], top_p)
        enough_B = (top_BK.sum(dim=-1) >= top_p) | (width == vocabulary)
        tokens_B[rows_B[enough_B]] = chosen_B[enough_B]
        rows_B = rows_B[~enough_B]
        if not len(rows_B):
            break
    return tokens_B


def _require_finite(likeliest_B: torch.Tensor) -> None:
    if not bool(torch.isfinite(likeliest_B).all()):
        raise UnitError("the model's logits are not finite.", code="not_finite")


def _pick(probs_BK: torch.Tensor, ids_BK: torch.Tensor, uniform_B1: torch.Tensor, top_p: float) -> torch.Tensor:
    """Pick from candidates, likeliest first, that hold the nucleus."""
    mass_BK = probs_BK.cumsum(dim=-1)
    # A token is in the nucleus while the mass before it is short of top_p; the first always is.
    probs_BK = torch.where(mass_BK - probs_BK < top_p, probs_BK, 0.0)
    probs_BK[:, 0] = probs_BK[:, 0].clamp_min(torch.finfo(torch.float32).tiny)
    mass_BK = probs_BK.cumsum(dim=-1)
    place_B1 = (mass_BK <= uniform_B1 * mass_BK[:, -1:]).sum(dim=-1, keepdim=True)
    last_B1 = (probs_BK > 0).sum(dim=-1, keepdim=True) - 1
    return ids_BK.gather(-1, torch.minimum(place_B1, last_B1))[:, 0]
