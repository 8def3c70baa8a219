"""Given conversations: each is read once, by turns that share an intervention; the user's words are found in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.jobs.interventions import AddVector, Intervention
from persona_atlas.jobs.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.chat.spans import load_renderer
from persona_atlas.workers.engine import CapturedRollout
from persona_atlas.workers.responders.given import GivenEngine

from conversations import conversation, given_plan
from plain_forward import PlainModel, relative_errors
from requests_of import engine_settings

STEERED = Intervention((AddVector(1, tuple(np.linspace(-1, 1, 32).tolist()), 2.0),))


def requests() -> list[RolloutRequest]:
    """Five turns of two conversations, as their plan asks for them."""
    plan = given_plan(
        conversation("Hi", "Hello.", "So?", "So. So.", "And now?", "Now.", system_prompt="Be."),
        conversation("Why?", "Because.", "Hi", "Hello again.", index=1),
    )
    return [request for unit in plan.units for request in plan.requests(unit)]


@pytest.fixture(scope="module")
def engine(tiny_model_directory: Path) -> GivenEngine:
    settings = engine_settings(
        tiny_model_directory, layers=(0, 1, 2), poolings=("response_mean", "user_mean", "assistant_start")
    )
    conversations = load_renderer(tiny_model_directory)
    return GivenEngine(BuiltinEngine(settings), conversations, 1000, conversations.user_spans())


def answers(engine: GivenEngine, asked: Sequence[RolloutRequest]) -> list[CapturedRollout]:
    to_ask = iter(asked)
    return list(engine.generate(lambda: next(to_ask, None)))


def test_each_turn_has_its_own_response_and_the_message_that_it_answers(
    engine: GivenEngine, tiny_model_directory: Path
):
    plain = PlainModel(tiny_model_directory)
    rows = answers(engine, requests())
    assert len(rows) == 5
    for row in rows:
        prompt, said = row.rollout.prompt_token_ids, row.rollout.response_token_ids
        states, _ = plain.run([*prompt, *said])
        # In a tiny model's prompt a byte is a token: <|end|>, a line break, <|start|> and "assistant\n" follow.
        stop = len(prompt) - 13
        user = states[:, stop - len(row.rollout.question) : stop].astype(np.float64).mean(axis=1)
        assert relative_errors(row.vectors_LD["resid_post", "user_mean"], user).max() < 1e-4
        start = states[:, len(prompt) - 1].astype(np.float64)
        assert relative_errors(row.vectors_LD["resid_post", "assistant_start"], start).max() < 1e-4
        canary = engine.canary(row)
        assert canary is not None
        assert max(canary.relative_error_L) < 1e-5


def test_turns_of_one_conversation_may_be_read_under_different_interventions(engine: GivenEngine):
    plain = answers(engine, requests())
    mixed = [replace(r, intervention=STEERED if i in (1, 2, 4) else None) for i, r in enumerate(requests())]
    for i, (row, request, one) in enumerate(zip(answers(engine, mixed), mixed, plain, strict=True)):
        assert (row.rollout, row.intervention) == (one.rollout, request.intervention)
        canary = engine.canary(row)
        assert canary is not None
        assert max(canary.relative_error_L) < 1e-5
        off = np.abs(row.vectors_LD["resid_post", "user_mean"] - one.vectors_LD["resid_post", "user_mean"]).max()
        assert off > 0.1 if i in (1, 2, 4) else off < 1e-4
