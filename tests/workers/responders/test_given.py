"""Given conversations: one pass over each by turns that share an intervention; the user's words are found in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.interventions import AddVector, Direction, Intervention
from persona_atlas.jobs.work.rollouts import Canary
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.chat.spans import ConversationRenderer, load_renderer
from persona_atlas.workers.engine import CapturedRollout, CapturedText, TokenisedText
from persona_atlas.workers.responders.given import GivenResponder
from persona_atlas.workers.run_units import run_units

from conversations import conversation, given_plan
from plain_forward import PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of

STEERED = Intervention((AddVector(1, Direction.of(np.linspace(-1, 1, 32)), 2.0),))
TALKS = [
    conversation("Hi", "Hello", "So?", "So.", "And?", "No.", index=0, system_prompt="Be brief."),
    conversation("Who?", "Nobody", index=1),
    conversation("Why?", "Because", "Oh", "Yes", index=2),
]


@dataclass
class _Counting:
    """A reader that notes how many texts each call brings."""

    inner: BuiltinEngine
    tokens_per_capture: int
    calls: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.layers, self.canary_limit = self.inner.layers, self.inner.canary_limit
        self.passes = self.inner.passes

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        self.calls.append(len(texts))
        return self.inner.capture(texts)

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        return self.inner.canary(captured, others)

    def close(self) -> None:
        self.inner.close()


@pytest.fixture(scope="module")
def model(tiny_model_directory: Path) -> BuiltinEngine:
    return BuiltinEngine(engine_settings(tiny_model_directory, layers=(0, 1, 2)))


@pytest.fixture(scope="module")
def renderer(tiny_model_directory: Path) -> ConversationRenderer:
    return load_renderer(tiny_model_directory)


@pytest.mark.parametrize(("tokens", "calls"), [(100_000, [3]), (1, [1, 1, 1])], ids=["one call", "a call each"])
def test_every_turn_is_a_rollout_and_each_conversation_is_read_once(
    tokens: int, calls: list[int], model: BuiltinEngine, renderer: ConversationRenderer, tiny_model_directory: Path
):
    plan = given_plan(*TALKS)
    (unit,) = plan.units
    to_do = iter([UnitAttempt(unit, plan.requests(unit), 1, 0)])
    reader = _Counting(model, tokens)
    (result,) = run_units(GivenResponder(reader, renderer), lambda: next(to_do, None))
    assert isinstance(result, UnitResult)
    assert reader.calls == calls
    responses = [(0, "Hello"), (0, "So."), (0, "No."), (1, "Nobody"), (2, "Because"), (2, "Yes")]
    assert [(rollout.conversation_index, rollout.response) for rollout in result.rollouts] == responses
    assert {rollout.finish_reason for rollout in result.rollouts} == {"given"}
    assert [rollout.question for rollout in result.rollouts] == ["Hi", "So?", "And?", "Who?", "Why?", "Oh"]
    plain = PlainModel(tiny_model_directory)
    for row, rollout in enumerate(result.rollouts):
        states, _ = plain.run(conversation_ids(rollout))
        for (_, name), array_BLD in result.arrays_BLD.items():
            assert relative_errors(array_BLD[row], pool(states, rollout)[name]).max() < 1e-4


def test_a_request_for_a_text_that_is_not_given_is_refused(model: BuiltinEngine, renderer: ConversationRenderer):
    with pytest.raises(UnitError, match="has no text to read"):
        generate(GivenResponder(model, renderer), requests_of(1))


def test_readers_that_keep_every_token_take_up_fewer_texts_at_a_time(model: BuiltinEngine, tiny_model_directory: Path):
    keeping = BuiltinEngine(engine_settings(tiny_model_directory, layers=(0, 1, 2), token_layers=(1,)))
    assert (model.tokens_per_capture, keeping.tokens_per_capture) == (65_536, 4096)
    assert (model.prefetch, model.reader) == (0, model)


def turns() -> list[RolloutRequest]:
    """Five turns of two conversations, as their plan asks for them."""
    plan = given_plan(
        conversation("Hi", "Hello.", "So?", "So. So.", "And now?", "Now.", system_prompt="Be."),
        conversation("Why?", "Because.", "Hi", "Hello again.", index=1),
    )
    return [request for unit in plan.units for request in plan.requests(unit).first(unit)]


@pytest.fixture(scope="module")
def responder(tiny_model_directory: Path) -> GivenResponder:
    settings = engine_settings(
        tiny_model_directory, layers=(0, 1, 2), poolings=("response_mean", "user_mean", "assistant_start")
    )
    conversations = load_renderer(tiny_model_directory)
    return GivenResponder(BuiltinEngine(settings), conversations, conversations.user_spans())


def answers(responder: GivenResponder, asked: Sequence[RolloutRequest]) -> list[CapturedRollout]:
    to_ask = iter(asked)
    return list(responder.generate(lambda: next(to_ask, None)))


def test_each_turn_has_its_own_response_and_the_message_that_it_answers(
    responder: GivenResponder, tiny_model_directory: Path
):
    plain = PlainModel(tiny_model_directory)
    rows = answers(responder, turns())
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
        canary = responder.reader.canary(row)
        assert canary is not None
        assert max(canary.relative_error_L) < 1e-5


def test_a_text_is_read_once_for_each_intervention_of_its_turns(model: BuiltinEngine, renderer: ConversationRenderer):
    reader = _Counting(model, 100_000)
    mixed = [replace(r, intervention=STEERED if i in (1, 2, 4) else None) for i, r in enumerate(turns())]
    rows = answers(GivenResponder(reader, renderer), mixed)
    assert [row.rollout.address for row in rows] == [request.address for request in mixed]
    # The first turn, the two after it, and each of the second conversation's alone.
    assert reader.calls == [4]


def test_turns_of_one_conversation_may_be_read_under_different_interventions(responder: GivenResponder):
    plain = answers(responder, turns())
    mixed = [replace(r, intervention=STEERED if i in (1, 2, 4) else None) for i, r in enumerate(turns())]
    for i, (row, request, one) in enumerate(zip(answers(responder, mixed), mixed, plain, strict=True)):
        assert (row.rollout, row.intervention) == (one.rollout, request.intervention)
        canary = responder.reader.canary(row)
        assert canary is not None
        assert max(canary.relative_error_L) < 1e-5
        off = np.abs(row.vectors_LD["resid_post", "user_mean"] - one.vectors_LD["resid_post", "user_mean"]).max()
        assert off > 0.1 if i in (1, 2, 4) else off < 1e-4
