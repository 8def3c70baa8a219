"""Turns that are generated one after another: a reply is in the next prompt, and every row is its own rollout's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.scheduling.ledger import Failure
from persona_atlas.jobs.work.rollouts import Rollout
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import CapturedRollout
from persona_atlas.workers.run_units import run_units

from dialogues import dialogue_attempt, place_of
from fakes import FakeEngine, vector_of
from fed_tokens import count_tokens
from plain_forward import ALL_POOLINGS, PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings

SCRIPTS = (("Who are you?", "Since when?", "Why?"), ("Hi", "So?"), ("What do you want?",))


def results_of(responder: Any, *attempts: UnitAttempt) -> list[UnitResult]:
    to_do = iter(attempts)
    results = list(run_units(responder, lambda: next(to_do, None)))
    assert all(isinstance(result, UnitResult) for result in results), results
    return [result for result in results if isinstance(result, UnitResult)]


class _Noting(FakeEngine):
    """Notes the requests it was given."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.requests: list[RolloutRequest] = []

    def _answer(self, request: RolloutRequest) -> CapturedRollout:
        self.requests.append(request)
        return super()._answer(request)


class _OneAtATime(_Noting):
    """Answers each request before it asks for the next."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for request in iter(next_request, None):
            self.calls.append([request.address])
            yield self._answer(request)


@pytest.mark.parametrize("kind", [_Noting, _OneAtATime], ids=["many at once", "one at a time"])
def test_each_request_holds_the_replies_before_it_and_rows_stand_in_address_order(kind: type[_Noting]):
    engine = kind()
    attempts = [dialogue_attempt("pirate", SCRIPTS, 0), dialogue_attempt("poet", SCRIPTS[:2], 1)]
    results = results_of(engine, *attempts)
    assert sorted(result.attempt.row_block for result in results) == [0, 1]
    rollouts: dict[tuple[str, int, int | None], Rollout] = {}
    for result in results:
        addresses = list(result.attempt.unit.addresses())
        assert [rollout.address for rollout in result.rollouts] == addresses
        (array,) = engine.arrays
        np.testing.assert_array_equal(
            result.arrays_BLD[array], np.stack([vector_of(address, array, 4, 16) for address in addresses])
        )
        rollouts |= {place_of(rollout.address): rollout for rollout in result.rollouts}
    assert len(engine.requests) == len(rollouts) == 6 + 5
    for request in engine.requests:
        persona, number, turn = place_of(request.address)
        assert turn is not None
        said = [ChatMessage("system", "You are a pirate.")]
        for place, text in enumerate(SCRIPTS[number][: (turn + 1) // 2]):
            reply = rollouts.get((persona, number, 2 * place + 1))
            said += [ChatMessage("user", text), ChatMessage("assistant", reply.response if reply else "")]
        assert list(request.messages) == said[:-1]
        assert request.question == SCRIPTS[number][turn // 2]
        assert request.system_prompt == "You are a pirate."
        assert request.seed == request.address.seed(0)


def test_what_follows_joins_before_the_next_unit():
    engine = _OneAtATime()
    results_of(engine, dialogue_attempt("pirate", SCRIPTS), dialogue_attempt("poet", SCRIPTS, 1))
    personas = [address.persona for (address,) in engine.calls]
    assert personas == ["pirate"] * 6 + ["poet"] * 6
    assert [place_of(address)[1:] for (address,) in engine.calls[:6]] == [
        (0, 1),
        (0, 3),
        (0, 5),
        (1, 1),
        (1, 3),
        (2, 1),
    ]


def test_a_failure_between_turns_repeats_no_turn_that_is_there():
    engine = FakeEngine(fail_on_calls=frozenset({2}))
    results = results_of(engine, dialogue_attempt("pirate", SCRIPTS), dialogue_attempt("poet", SCRIPTS, 1))
    assert len(results) == 2
    second = engine.calls[1]
    assert {address.turn_index for address in second} == {3}
    # The call that failed holds the second turns of both; each unit repeats its own, and goes on.
    turns = [sorted(place_of(address)[1:] for address in call) for call in engine.calls]
    assert turns == [
        [(0, 1), (0, 1), (1, 1), (1, 1), (2, 1), (2, 1)],
        [(0, 3), (0, 3), (1, 3), (1, 3)],
        [(0, 3), (1, 3)],
        [(0, 5)],
        [(0, 3), (1, 3)],
        [(0, 5)],
    ]


def test_a_conversation_that_ends_before_its_last_row_fails_its_unit_alone():
    attempts = [dialogue_attempt("pirate", SCRIPTS[:1], 0, end_after=2), dialogue_attempt("poet", SCRIPTS, 1)]
    to_do = iter(attempts)
    results = list(run_units(FakeEngine(), lambda: next(to_do, None)))
    (failure,) = [result for result in results if isinstance(result, Failure)]
    assert failure.message == "no request follows after 2 rollouts of role.pirate.pos.p0.b0, which has 3."
    assert [result.attempt.row_block for result in results if isinstance(result, UnitResult)] == [1]


class _Forgetful(FakeEngine):
    """Answers nothing but first turns."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for row in super().generate(next_request):
            if row.rollout.address.turn_index == 1:
                yield row


def test_a_responder_that_leaves_later_turns_out_fails_the_unit_and_is_not_asked_forever():
    to_do = iter([dialogue_attempt("pirate", SCRIPTS)])
    (failure,) = run_units(_Forgetful(), lambda: next(to_do, None))
    assert isinstance(failure, Failure)
    assert failure.message == "the engine gave 3 rollouts for 5 requests."


def plain_ids(engine: BuiltinEngine, messages: Sequence[ChatMessage]) -> list[int]:
    """The template's own ids of a chat, without our renderer."""
    tokenizer: Any = engine.loaded.tokenizer
    said = [{"role": message.role, "content": message.content} for message in messages]
    return tokenizer.apply_chat_template(said, tokenize=True, return_dict=False, add_generation_prompt=True)


@pytest.mark.parametrize("batch_tokens", [100_000, 400], ids=["all at once", "few at a time"])
def test_a_model_is_prompted_with_its_own_replies_and_later_turns_are_captured_like_any(
    batch_tokens: int, tiny_model_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = engine_settings(tiny_model_directory, layers=(0, 1, 2), batch_tokens=batch_tokens, poolings=ALL_POOLINGS)
    engine = BuiltinEngine(settings)
    attempts = [dialogue_attempt("pirate", SCRIPTS, 0), dialogue_attempt("poet", SCRIPTS[:2], 1)]
    streams: list[object] = []
    generate = engine.generate
    monkeypatch.setattr(engine, "generate", lambda ask: streams.append(ask) or generate(ask))
    results = results_of(engine, *attempts)
    assert len(results) == 2
    assert len(streams) == 1, "later turns join the running batch"
    plain = PlainModel(tiny_model_directory)
    assert results[0].canary is not None
    for result in results:
        assert [rollout.address for rollout in result.rollouts] == list(result.attempt.unit.addresses())
        replies: dict[tuple[int, int | None], Rollout] = {}
        for row, rollout in enumerate(result.rollouts):
            _, number, turn = place_of(rollout.address)
            assert turn is not None
            said = [ChatMessage("system", "You are a pirate.")]
            for place, text in enumerate(SCRIPTS[number][: (turn + 1) // 2]):
                said.append(ChatMessage("user", text))
                if 2 * place + 1 < turn:
                    said.append(ChatMessage("assistant", replies[number, 2 * place + 1].response))
            assert list(rollout.prompt_token_ids) == plain_ids(engine, said)
            shown = engine.loaded.tokenizer.decode(rollout.prompt_token_ids, skip_special_tokens=False)
            assert all(message.content in shown for message in said)
            states, _ = plain.run(conversation_ids(rollout))
            for name, expected in pool(states, rollout).items():
                got = result.arrays_BLD["resid_post", name][row]
                if not np.isnan(expected).any():
                    assert relative_errors(got, expected).max() < 1e-4, (rollout.address, name)
            replies[number, turn] = rollout
    (pirate,) = [result for result in results if result.attempt.row_block == 0]
    assert sum(rollout.num_content_tokens > 0 for rollout in pirate.rollouts) >= 4, "the test tests something"


@pytest.mark.parametrize("poolings", [("response_mean",), ("response_mean", "user_mean")], ids=["none", "user_mean"])
def test_later_turns_share_the_system_prompt_that_the_first_ones_read(
    poolings: Sequence[str], tiny_model_directory: Path, monkeypatch: pytest.MonkeyPatch
):
    engine = BuiltinEngine(engine_settings(tiny_model_directory, layers=(1,), poolings=poolings))
    seen = count_tokens(engine, monkeypatch)
    attempt = dialogue_attempt("pirate", SCRIPTS)
    to_ask = list(attempt.first_requests())
    shared = len(engine.renderer.shared_prefix(to_ask[0].opening))
    rows: list[CapturedRollout] = []
    asked: dict[object, RolloutRequest] = {}

    def next_request() -> RolloutRequest | None:
        if not to_ask:
            return None
        asked[to_ask[0].address] = to_ask[0]
        return to_ask.pop(0)

    for row in engine.generate(next_request):
        rows.append(row)
        following = attempt.requests.following(asked[row.rollout.address], row.rollout)
        to_ask.extend([] if following is None else [following])
    assert len(rows) == 6
    prompt_tokens = sum(len(row.rollout.prompt_token_ids) for row in rows)
    fed = sum(row.rollout.num_content_tokens for row in rows)
    assert shared >= 8
    assert sum(seen) == prompt_tokens - 5 * shared + fed
