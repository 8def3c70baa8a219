"""Attention of a long text: for some queries at a time where scores or a mask are held, with the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from persona_atlas.workers.builtin.passes import packed
from persona_atlas.workers.builtin.passes.attention import Scoring, attention
from persona_atlas.workers.builtin.passes.packed import PackedPass, Segment

LENGTH, PREFIX, HEADS, KEY_HEADS, SIZE, WINDOW = 70, 9, 4, 2, 8, 16
SINKS = torch.linspace(-1, 1, HEADS)

Allows = Callable[..., torch.Tensor]


def causal(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return key <= query


def windowed(_batch: Any, _head: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    return (key <= query) & (query - key < WINDOW)


def attended(allows: Allows, reach: int | None, scoring: Scoring) -> torch.Tensor:
    """The outputs of a text, and of one that has the first tokens of it as its prefix."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(heads, 2 * LENGTH - PREFIX, SIZE, generator=generator) for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    running = PackedPass("cpu", [Segment(0, LENGTH), Segment(PREFIX, LENGTH - PREFIX)])
    return running.attend(0, query, key, value, running.rule_of(allows, reach), scoring)


@pytest.mark.parametrize(("allows", "reach"), [(causal, None), (windowed, WINDOW)])
@pytest.mark.parametrize("scoring", [Scoring(0.3, softcap=2.0), Scoring(0.3, sinks_H=SINKS), Scoring(0.3)], ids=str)
def test_long_texts_are_attended_to_in_parts_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, allows: Allows, reach: int | None, scoring: Scoring
):
    monkeypatch.setattr(packed, "_FEW_SCORES_BYTES", 0)
    whole = attended(allows, reach, scoring)
    most_bytes = 20 * LENGTH * 4 * (HEADS if scoring.needs_scores else 1)
    monkeypatch.setattr(packed, "_MOST_SCORES_BYTES", most_bytes)
    held: list[int] = []

    def watched(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, *more: Any) -> torch.Tensor:
        if mask is not None:
            held.append(mask.nbytes * (HEADS if scoring.needs_scores else 1))
        return attention(query, key, value, mask, *more)

    monkeypatch.setattr(packed, "attention", watched)
    torch.testing.assert_close(attended(allows, reach, scoring), whole, rtol=1e-5, atol=1e-6)
    assert len(held) > 3
    assert max(held) <= most_bytes
