"""What every engine must give, in both capture modes: the vectors of one-by-one plain forward passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.workers.engine import CapturedRollout

from plain_forward import PlainModel, conversation_ids, pool, relative_errors
from requests_of import texts_of

TOLERANCE = 1e-4
MAX_NEW = 20

Mode = Callable[[Any, Sequence[CapturedRollout]], list[CapturedRollout]]
"""How an engine comes to the vectors of rollouts that it has generated."""


def as_generated(engine: Any, rows: Sequence[CapturedRollout]) -> list[CapturedRollout]:
    """The vectors as they were captured during generation."""
    return list(rows)


def as_read(engine: Any, rows: Sequence[CapturedRollout]) -> list[CapturedRollout]:
    """The vectors of a prefill pass over the same conversations."""
    texts = engine.capture(texts_of(rows))
    return [
        CapturedRollout(row.rollout, text.vectors_LD[0], text.tokens_KTD[0], row.user_span, row.intervention)
        for row, text in zip(rows, texts, strict=True)
    ]


MODES = pytest.mark.parametrize("mode", [as_generated, as_read])


class RememberingModel(PlainModel):
    """A plain model that runs each text once, for tests that compare both modes with it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self._places: dict[tuple[int, ...], dict[str, np.ndarray]] = {}

    def places(self, token_ids: Sequence[int], response: int = 0) -> dict[str, np.ndarray]:
        assert response == 0, "without edits the place of the response changes nothing"
        key = tuple(token_ids)
        if key not in self._places:
            self._places[key] = super().places(token_ids)
        return self._places[key]


def assert_equal_to_plain(
    rows: Sequence[CapturedRollout],
    plain: PlainModel,
    token_layers: Sequence[int] = (),
    *,
    bytes_are_tokens: bool = True,
) -> None:
    for row in rows:
        # The reference counts bytes where it can, and believes the engine's own span where it cannot.
        user_span = None if bytes_are_tokens else row.user_span
        states = plain.places(conversation_ids(row.rollout))
        assert len(row.tokens_KTD) == (len({point for point, _ in row.vectors_LD}) if token_layers else 0)
        for (point, pooling), got_KTD in row.tokens_KTD.items():
            expected_KTD = states[point][list(token_layers), len(row.rollout.prompt_token_ids) :]
            assert (pooling, got_KTD.dtype, got_KTD.shape) == ("tokens", np.float32, expected_KTD.shape)
            # Of every single token.
            worst = relative_errors(got_KTD, expected_KTD).max(initial=0)
            assert worst < TOLERANCE, (row.rollout.address, point)
        for (point, pooling), got_LD in row.vectors_LD.items():
            expected_LD = pool(states[point], row.rollout, user_span)[pooling]
            assert got_LD.dtype == np.float32
            if pooling.startswith("response_") and not row.rollout.has_vector:
                assert np.isnan(got_LD).all()
            else:
                worst = relative_errors(got_LD, expected_LD).max()
                assert worst < TOLERANCE, (row.rollout.address, point, pooling)
