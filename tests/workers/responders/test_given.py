"""Given conversations through a responder: one pass over each, a rollout for every turn, as many in a call as fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.rollouts import Canary, UnitResult
from persona_atlas.jobs.units import UnitAttempt
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.chat.spans import ConversationRenderer, load_renderer
from persona_atlas.workers.engine import CapturedRollout, CapturedText, TokenisedText
from persona_atlas.workers.responders.given import GivenResponder
from persona_atlas.workers.run_units import run_units

from conversations import conversation, given_plan
from plain_forward import PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of

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

    def capture(self, texts: Sequence[TokenisedText]) -> list[CapturedText]:
        self.calls.append(len(texts))
        return self.inner.capture(texts)

    def canary(self, captured: CapturedRollout) -> Canary | None:
        return self.inner.canary(captured)


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
        for name, expected in pool(states, rollout).items():
            assert relative_errors(result.arrays_BLD["resid_post", name][row], expected).max() < 1e-4


def test_a_request_for_a_text_that_is_not_given_is_refused(model: BuiltinEngine, renderer: ConversationRenderer):
    with pytest.raises(UnitError, match="has no text to read"):
        generate(GivenResponder(model, renderer), requests_of(1))


def test_readers_that_keep_every_token_take_up_fewer_texts_at_a_time(model: BuiltinEngine, tiny_model_directory: Path):
    keeping = BuiltinEngine(engine_settings(tiny_model_directory, layers=(0, 1, 2), token_layers=(1,)))
    assert (model.tokens_per_capture, keeping.tokens_per_capture) == (400_000, 4096)
    assert (model.prefetch, model.reader) == (0, model)
