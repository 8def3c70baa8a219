"""Sample the next tokens: temperature and nucleus sampling, independent of batching.

Every rollout has its own seed and draws its random numbers in advance, so its tokens do not depend on which other
rollouts share its batch, nor on their order. A token is then picked by inverse transform sampling: the tokens are
sorted by probability, and the first whose cumulative probability exceeds the random number is taken.

Axes: B rows of the batch, V vocabulary, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ...jobs.errors import UnitError
from ...jobs.specs.spec_parts import SamplingSpec
from .capture import NOT_FINITE_HINT

_CANDIDATES = (64, 1024)
"""Numbers of most likely tokens to search for the nucleus, the second for rows where the first is not enough; rows with
a still wider nucleus take the whole vocabulary. Sorting the whole vocabulary for every row would dominate sampling."""

_ROWS_AT_ONCE = 8
"""Rows sampled at a time on a CPU: as many rows of a whole vocabulary stay in its cache between operations."""


def uniforms(seeds: Sequence[int], num_steps: int) -> torch.Tensor:
    """Draw all random numbers of rollouts in advance, on the CPU, each from its own seed.

    Args:
        seeds: One 63-bit seed per rollout.
        num_steps: Most tokens that a rollout may sample.

    Returns:
        float32 ``(B, num_steps)`` in [0, 1).
    """
    rows = [np.random.Generator(np.random.PCG64(seed)).random(num_steps, dtype=np.float32) for seed in seeds]
    return torch.from_numpy(np.stack(rows))


def sample(logits_BV: torch.Tensor, uniform_B: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Sample one token per row from the smallest set of tokens with at least ``top_p`` of the probability mass.

    Args:
        logits_BV: ``(B, V)``, any float dtype.
        uniform_B: ``(B,)`` in [0, 1): a row's random number, by which its token is picked.
        temperature: Divisor of the logits; 0 takes the most likely token.
        top_p: Probability mass of the nucleus, in (0, 1].

    Returns:
        Token ids, int64 ``(B,)``.

    Raises:
        UnitError: The logits of a row are not finite.
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


def sample_each(logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: Sequence[SamplingSpec]) -> torch.Tensor:
    """Sample one token per row, each row in its own way; see ``sample``.

    Args:
        logits_BV: ``(B, V)``, any float dtype.
        uniform_B: ``(B,)`` in [0, 1).
        sampling: For each row, the temperature and the probability mass of the nucleus.

    Returns:
        Token ids, int64 ``(B,)``.

    Raises:
        UnitError: The logits of a row are not finite.
    """
    rows_of: dict[tuple[float, float], list[int]] = {}
    for row, one in enumerate(sampling):
        rows_of.setdefault((one.temperature, one.top_p), []).append(row)
    if len(rows_of) == 1:
        # The rows of a job, without a copy of the logits.
        return sample(logits_BV, uniform_B, *next(iter(rows_of)))
    tokens_B = torch.empty(len(sampling), dtype=torch.long, device=logits_BV.device)
    for (temperature, top_p), rows in rows_of.items():
        tokens_B[rows] = sample(logits_BV[rows], uniform_B[rows], temperature, top_p)
    return tokens_B


def _sample_rows(logits_BV: torch.Tensor, uniform_B1: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    probs_BV = (logits_BV.float() / temperature).softmax(dim=-1)
    tokens_B = torch.empty(len(probs_BV), dtype=torch.long, device=probs_BV.device)
    # Most nuclei are narrow: only rows whose candidates have less than top_p of the mass are tried with more of them.
    rows_B = torch.arange(len(probs_BV), device=probs_BV.device)
    vocabulary = probs_BV.shape[-1]
    for width in sorted({min(width, vocabulary) for width in (*_CANDIDATES, vocabulary)}):
        # Without an index while all rows are left: indexing would copy the whole tensor.
        top_BK, ids_BK = (probs_BV if len(rows_B) == len(probs_BV) else probs_BV[rows_B]).topk(width, dim=-1)
        # A logit of NaN or +inf makes all probabilities of its row NaN, so checking one of them is enough.
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
        raise UnitError("the model's logits are not finite.", code="not_finite", hint=NOT_FINITE_HINT)


def _pick(probs_BK: torch.Tensor, ids_BK: torch.Tensor, uniform_B1: torch.Tensor, top_p: float) -> torch.Tensor:
    """Pick one of the candidates per row; they are sorted by decreasing probability and contain the nucleus."""
    mass_BK = probs_BK.cumsum(dim=-1)
    # A token is in the nucleus if the mass before it is less than top_p; the first one always is.
    probs_BK = torch.where(mass_BK - probs_BK < top_p, probs_BK, 0.0)
    probs_BK[:, 0] = probs_BK[:, 0].clamp_min(torch.finfo(torch.float32).tiny)
    mass_BK = probs_BK.cumsum(dim=-1)
    place_B1 = (mass_BK <= uniform_B1 * mass_BK[:, -1:]).sum(dim=-1, keepdim=True)
    last_B1 = (probs_BK > 0).sum(dim=-1, keepdim=True) - 1
    return ids_BK.gather(-1, torch.minimum(place_B1, last_B1))[:, 0]
