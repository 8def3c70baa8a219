"""Texts to be read, and comparisons of what was captured of them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from persona_atlas.jobs.interventions import Intervention
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.rollouts import Rollout
from persona_atlas.workers.engine import CapturedRollout, CapturedText, TokenisedText


def texts(count: int = 6, intervention: Intervention | None = None) -> list[TokenisedText]:
    """Texts of two turns, an empty response among them; the first two begin alike."""
    rng = random.Random(0)
    alike = tuple(rng.randrange(40, 200) for _ in range(20))
    made: list[TokenisedText] = []
    for number in range(count):
        ids = (*alike[: 20 * (number < 2)], *(rng.randrange(40, 200) for _ in range(50 + 7 * number)))
        responses = ((25, 25 + 2 * number), (45, len(ids)))
        made.append(TokenisedText(f"text {number}", ids, responses, ((22, 24), (42, 44)), intervention))
    return made


def assert_same(got: Sequence[CapturedText], expected: Sequence[CapturedText]) -> None:
    """Compare what was captured of texts, to the last bit."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.edits == other.edits
        for arrays, others in ((one.vectors_LD, other.vectors_LD), (one.tokens_KTD, other.tokens_KTD)):
            for values, same in zip(arrays, others, strict=True):
                assert list(values) == list(same)
                for array in same:
                    np.testing.assert_array_equal(values[array], same[array])


def rollout_of(text: TokenisedText, captured: CapturedText) -> CapturedRollout:
    """The rollout of the last response of a text."""
    start, stop = text.responses[1]
    rollout = Rollout(
        address=RolloutAddress("role", "pirate", "pos", 0, 0, 0),
        system_prompt="",
        question="",
        response="",
        prompt_token_ids=text.token_ids[:start],
        response_token_ids=text.token_ids[start:stop],
        num_content_tokens=stop - start,
        finish_reason="given",
        seed=0,
    )
    return CapturedRollout(rollout, captured.vectors_LD[1], captured.tokens_KTD[1], text.user_spans[1])
