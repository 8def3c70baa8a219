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

from ....jobs.errors import UnitError
from ....jobs.specs.spec_parts import SamplingSpec
from ..passes.capture import NOT_FINITE_HINT

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
        Token ids, int64 ``(B,)``, in main memory.

    Raises:
        UnitError: The logits of a row are not finite.
    """
    uniform_B = uniform_B.to(logits_BV.device)
    at_once = _ROWS_AT_ONCE if logits_BV.device.type == "cpu" else max(1, len(logits_BV))
    tokens: list[torch.Tensor] = []
    for part_BV, part_B in zip(logits_BV.split(at_once), uniform_B.split(at_once), strict=True):
        weights_BV = weights_of(part_BV, temperature)
        first_3B = draw(weights_BV, part_B, top_p, greedy=temperature == 0)
        tokens.append(settle(first_3B, weights_BV, part_B, top_p))
    return torch.cat(tokens)


def sample_each(logits_BV: torch.Tensor, uniform_B: torch.Tensor, sampling: Sequence[SamplingSpec]) -> torch.Tensor:
    """Sample one token per row, each row in its own way; see ``sample``.

    Args:
        logits_BV: ``(B, V)``, any float dtype.
        uniform_B: ``(B,)`` in [0, 1).
        sampling: For each row, the temperature and the probability mass of the nucleus.

    Returns:
        Token ids, int64 ``(B,)``, in main memory.

    Raises:
        UnitError: The logits of a row are not finite.
    """
    rows_of: dict[tuple[float, float], list[int]] = {}
    for row, one in enumerate(sampling):
        rows_of.setdefault((one.temperature, one.top_p), []).append(row)
    if len(rows_of) == 1:
        # The rows of a job, without a copy of the logits.
        return sample(logits_BV, uniform_B, *next(iter(rows_of)))
    tokens_B = torch.empty(len(sampling), dtype=torch.long)
    for (temperature, top_p), rows in rows_of.items():
        tokens_B[rows] = sample(logits_BV[rows], uniform_B[rows], temperature, top_p)
    return tokens_B


def weights_of(logits_BV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return what tokens are ranked by, float32 ``(B, V)``: probabilities, or at temperature 0 the logits themselves.

    Args:
        logits_BV: ``(B, V)``, any float dtype.
        temperature: Divisor of the logits.
    """
    return logits_BV.float() if temperature == 0 else (logits_BV.float() / temperature).softmax(dim=-1)


def draw(
    weights_BV: torch.Tensor, uniform_B: torch.Tensor, top_p: float, *, greedy: bool, width: int = _CANDIDATES[0]
) -> torch.Tensor:
    """Sample one token per row among its most likely ones, without waiting for the device.

    Args:
        weights_BV: What ``weights_of`` returned.
        uniform_B: A row's random number.
        top_p: Probability mass of the nucleus.
        greedy: Whether the most likely token is taken, because the temperature is 0.
        width: Number of tokens to search for the nucleus.

    Returns:
        int64 ``(3, B)``: token ids; 1 where the nucleus was among the tokens searched, so that the token is the one
        sampled; 1 where the weights of the row are finite.
    """
    width = min(width, weights_BV.shape[-1])
    if greedy:
        likeliest_B, tokens_B = weights_BV.max(dim=-1)
        finite_B = torch.isfinite(likeliest_B)
        return torch.stack([tokens_B, torch.ones_like(tokens_B), finite_B.long()])
    top_BK, ids_BK = weights_BV.topk(width, dim=-1)
    # A logit of NaN or +inf makes all probabilities of its row NaN, so checking one of them is enough.
    finite_B = torch.isfinite(top_BK[:, 0])
    enough_B = top_BK.sum(dim=-1) >= top_p
    if width == weights_BV.shape[-1]:
        enough_B = torch.ones_like(enough_B)
    return torch.stack([_pick(top_BK, ids_BK, uniform_B[:, None], top_p), enough_B.long(), finite_B.long()])


def settle(
    first_3B: torch.Tensor,
    weights_BV: torch.Tensor,
    uniform_B: torch.Tensor,
    top_p: float,
    rows: Sequence[int] | None = None,
) -> torch.Tensor:
    """Finish what ``draw`` began: search more tokens for the rows whose nucleus is wider.

    Args:
        first_3B: What ``draw`` returned.
        weights_BV: Its weights.
        uniform_B: Its random numbers.
        top_p: Probability mass of the nucleus.
        rows: Rows whose tokens are needed; None: all.

    Returns:
        Token ids, int64 ``(B,)``, in main memory; those of other rows than ``rows`` mean nothing.

    Raises:
        UnitError: The weights of a row are not finite.
    """
    # The only time at which sampling waits for the device, unless a nucleus is wide.
    tokens_B, enough_B, finite_B = first_3B.cpu()
    if rows is not None:
        needed_B = torch.zeros_like(tokens_B, dtype=torch.bool)
        needed_B[list(rows)] = True
        enough_B, finite_B = enough_B.masked_fill(~needed_B, 1), finite_B.masked_fill(~needed_B, 1)
    _require_finite(finite_B)
    vocabulary = weights_BV.shape[-1]
    for width in (_CANDIDATES[1], vocabulary):
        rows_B = torch.nonzero(enough_B == 0)[:, 0]
        if not len(rows_B):
            break
        there_B = rows_B.to(weights_BV.device)
        more_3B = draw(weights_BV[there_B], uniform_B[there_B], top_p, greedy=False, width=width).cpu()
        tokens_B[rows_B], enough_B[rows_B] = more_3B[0], more_3B[1]
    return tokens_B


def _require_finite(finite_B: torch.Tensor) -> None:
    if not bool(finite_B.all()):
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
