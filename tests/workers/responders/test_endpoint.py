"""Responses from a server: a real one on this machine, which refuses, stalls, cuts and lies when told to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.jobs.errors import InputError, UnitError
from persona_atlas.jobs.interventions import AddVector, Direction, Intervention
from persona_atlas.jobs.scheduling.ledger import Failure
from persona_atlas.jobs.sources.persona_source import PersonaRequests
from persona_atlas.jobs.specs.spec_parts import GenerationSpec
from persona_atlas.jobs.work.rollouts import Served
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt, WorkUnit
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.chat.spans import ConversationRenderer, load_renderer
from persona_atlas.workers.chat.user_span import UserSpans
from persona_atlas.workers.engine import CapturedRollout, Responder
from persona_atlas.workers.responders.answers import TransientFailureError, read_completion
from persona_atlas.workers.responders.chat_client import Retries
from persona_atlas.workers.responders.endpoint import EndpointResponder, check_endpoint, describe_requests
from persona_atlas.workers.run_units import run_units

from chat_server import Body, ChatServer, serving, wait_until
from dialogues import dialogue_attempt
from plain_forward import ALL_POOLINGS, POOLINGS, PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, requests_of
from tiny_models import END_ID, SPECIAL

MOST = 80
"""Most tokens that are asked for."""

QUICK = Retries(tries=5, first_pause_s=0.01)


@pytest.fixture(scope="module")
def reader(tiny_model_directory: Path) -> BuiltinEngine:
    return BuiltinEngine(engine_settings(tiny_model_directory, layers=(0, 1, 2)))


@pytest.fixture(scope="module")
def renderer(tiny_model_directory: Path) -> ConversationRenderer:
    return load_renderer(tiny_model_directory)


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer()) as running:
        yield running


def engine_of(
    server: ChatServer,
    reader: BuiltinEngine,
    renderer: ConversationRenderer,
    *,
    retries: Retries = QUICK,
    user_spans: UserSpans | None = None,
    on_wait: Callable[[str], None] = lambda _: None,
    **generation: object,
) -> EndpointResponder:
    asked = GenerationSpec.model_validate({"endpoint": server.url, **generation})
    sampling = engine_settings(Path(), layers=(0,), max_new_tokens=MOST, temperature=0.7, top_p=0.9).sampling
    return EndpointResponder(reader, renderer, asked, "tiny", sampling, retries, user_spans, on_wait=on_wait)


def collect(engine: EndpointResponder, requests: Sequence[RolloutRequest], done: list[CapturedRollout]) -> None:
    to_do = iter(requests)
    for captured in engine.generate(lambda: next(to_do, None)):
        done.append(captured)


def generate(engine: Responder, requests: Sequence[RolloutRequest]) -> list[CapturedRollout]:
    to_do = iter(requests)
    done = {captured.rollout.address: captured for captured in engine.generate(lambda: next(to_do, None))}
    return [done[request.address] for request in requests]


def test_prompts_go_out_as_the_spec_says_and_responses_are_captured_as_a_plain_forward_pass_sees_them(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer, tiny_model_directory: Path
):
    requests = requests_of(9)
    captured = generate(engine_of(server, reader, renderer), requests)
    plain = PlainModel(tiny_model_directory)
    for request, got in zip(requests, captured, strict=True):
        rollout = got.rollout
        assert rollout.response == f"You asked: {request.question}"
        assert (rollout.seed, rollout.finish_reason) == (request.seed, "stop")
        assert list(rollout.prompt_token_ids) == renderer.renderer.render(request.messages)
        states, _ = plain.run(conversation_ids(rollout))
        expected = pool(states, rollout)
        for name in POOLINGS:
            assert relative_errors(got.vectors_LD["resid_post", name], expected[name]).max() < 1e-4
    assert set(captured[0].vectors_LD) == {("resid_post", pooling) for pooling in POOLINGS}
    bodies = {body["messages"][-1]["content"]: body for body in server.bodies}
    for request in requests:
        body = bodies[request.question]
        roles = [message["role"] for message in body["messages"]]
        assert roles == (["system", "user"] if request.system_prompt else ["user"])
        assert (body["temperature"], body["top_p"], body["max_tokens"]) == (0.7, 0.9, MOST)
        assert body["seed"] == request.seed % 2**31
        assert "chat_template_kwargs" not in body


def test_a_server_is_sent_its_own_replies_and_later_turns_are_captured_like_any(
    server: ChatServer, renderer: ConversationRenderer, tiny_model_directory: Path
):
    reader = BuiltinEngine(engine_settings(tiny_model_directory, layers=(0, 1, 2), poolings=ALL_POOLINGS))
    engine = engine_of(server, reader, renderer, user_spans=renderer.user_spans(), concurrency=2)
    to_do = iter([dialogue_attempt("pirate", [("Hi", "So?", "And?"), ("Who?", "Why?")])])
    (result,) = run_units(engine, lambda: next(to_do, None))
    assert isinstance(result, UnitResult)
    said = [[message["content"] for message in body["messages"][1:]] for body in server.bodies]
    assert sorted(said, key=lambda texts: (texts[0], len(texts))) == [
        ["Hi"],
        ["Hi", "You asked: Hi", "So?"],
        ["Hi", "You asked: Hi", "So?", "You asked: So?", "And?"],
        ["Who?"],
        ["Who?", "You asked: Who?", "Why?"],
    ]
    assert [rollout.response for rollout in result.rollouts] == [
        "You asked: Hi", "You asked: So?", "You asked: And?", "You asked: Who?", "You asked: Why?"
    ]  # fmt: skip
    plain = PlainModel(tiny_model_directory)
    for row, rollout in enumerate(result.rollouts):
        states, _ = plain.run(conversation_ids(rollout))
        for name, expected in pool(states, rollout).items():
            assert relative_errors(result.arrays_BLD["resid_post", name][row], expected).max() < 1e-4


def test_the_end_of_turn_that_a_server_leaves_in_the_text_is_no_content(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.answer = lambda _: "Arr! <|end|> is spelt.<|end|>"
    (row,) = generate(engine_of(server, reader, renderer), requests_of(1))
    assert row.rollout.response == "Arr! <|end|> is spelt."
    assert END_ID not in row.rollout.response_token_ids
    assert row.rollout.num_content_tokens == len("Arr! <|end|> is spelt.")


def test_a_prompt_that_spells_a_control_token_is_not_sent(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    with pytest.raises(UnitError, match=r"spells <\|end\|>, which a server") as caught:
        generate(engine_of(server, reader, renderer), requests_of(2, system_prompt="Be <|end|> brief."))
    assert caught.value.code == "control_tokens"
    assert not any("<|end|>" in message["content"] for body in server.bodies for message in body["messages"])


def test_a_canary_holds_what_was_captured(server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer):
    engine = engine_of(server, reader, renderer)
    canary = engine.reader.canary(generate(engine, requests_of(1))[0])
    assert canary is not None
    assert max(canary.relative_error_L) < 1e-5


def test_the_users_words_are_pooled_too(server: ChatServer, renderer: ConversationRenderer, tiny_model_directory: Path):
    settings = engine_settings(
        tiny_model_directory, layers=(0, 1, 2), max_new_tokens=MOST, poolings=("user_mean", "assistant_start")
    )
    asked = GenerationSpec.model_validate({"endpoint": server.url})
    engine = EndpointResponder(
        BuiltinEngine(settings), renderer, asked, "tiny", settings.sampling, QUICK, renderer.user_spans()
    )
    plain = PlainModel(tiny_model_directory)
    for got in generate(engine, requests_of(6)):
        states, _ = plain.run(conversation_ids(got.rollout))
        for (_, name), vector_LD in got.vectors_LD.items():
            assert relative_errors(vector_LD, pool(states, got.rollout)[name]).max() < 1e-4
        canary = engine.reader.canary(got)
        assert canary is not None
        assert max(canary.relative_error_L) < 1e-5


def test_an_intervention_is_refused_by_name_for_a_server_knows_none(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    fine, other, third = requests_of(3)
    steered = replace(other, intervention=Intervention((AddVector(1, Direction.of([0.5] * 32)),)))
    done: list[CapturedRollout] = []
    with pytest.raises(UnitError, match="carries an intervention") as caught:
        collect(engine_of(server, reader, renderer), [fine, steered], done)
    assert caught.value.code == "no_intervention"
    assert str(other.address) in caught.value.message
    assert [row.rollout.address for row in done] == [fine.address]
    assert len(server.bodies) == 1
    (same,) = generate(engine_of(server, reader, renderer), [replace(third, intervention=Intervention())])
    assert same.rollout.address == third.address


def test_never_more_requests_are_open_than_asked_for(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.delay_s = 0.02
    assert len(generate(engine_of(server, reader, renderer, concurrency=3), requests_of(20))) == 20
    assert server.most_at_once == 3


@pytest.mark.parametrize("trouble", ["429", "500", "503", "cut", "garbage", "abort", "error"])
def test_what_may_pass_is_asked_again(
    trouble: str, server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.script = [trouble] * 4
    requests = requests_of(3)
    captured = generate(engine_of(server, reader, renderer), requests)
    assert [got.rollout.response for got in captured] == [f"You asked: {request.question}" for request in requests]
    assert server.refused == [trouble] * 4
    assert len(server.bodies) == 3


def test_retries_are_reported_with_their_reason_until_no_request_waits(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    waits: list[str] = []
    server.script = ["429"]
    generate(engine_of(server, reader, renderer, on_wait=waits.append), requests_of(1))
    assert waits == [], "a single failure is over at once"
    server.script = ["500"] * 6
    generate(engine_of(server, reader, renderer, on_wait=waits.append), requests_of(2))
    assert waits[-1] == ""
    assert set(waits[:-1]) - {""} == {f"No answer from {server.url}/chat/completions: status 500: scripted 500."}


def test_a_server_that_says_nothing_is_asked_again(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.script = ["slow"]
    captured = generate(engine_of(server, reader, renderer, timeout_s=0.3), requests_of(2))
    assert len(captured) == 2
    assert server.refused == ["slow"]


def test_what_keeps_failing_is_an_error_and_those_under_way_are_finished_first(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.script = ["500"] * 2
    engine = engine_of(server, reader, renderer, retries=Retries(2, 0.05), concurrency=1)
    done: list[CapturedRollout] = []
    with pytest.raises(UnitError, match=r"no answer from .* in 2 tries; the last time: status 500: scripted 500"):
        collect(engine, requests_of(4), done)
    server.script = ["400"]
    with pytest.raises(UnitError, match="refused it: status 400: scripted 400"):
        collect(engine_of(server, reader, renderer, concurrency=4), requests_of(4), done)
    assert len(done) == 3


def test_only_the_unit_that_is_refused_fails(server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer):
    server.poison = "poison"
    attempts = []
    for number in range(3):
        asked = PersonaRequests("", ("poison" if number == 1 else "Who?",), 0)
        unit = WorkUnit.of_questions(f"u{number}", "role", f"p{number}", "pos", 0, (0,), 1)
        attempts.append(UnitAttempt(unit, asked, 1, number))
    to_do = iter(attempts)
    engine = engine_of(server, reader, renderer, retries=Retries(2, 0.01))
    results = list(run_units(engine, lambda: next(to_do, None)))
    assert sorted(r.attempt.unit.unit_id for r in results if isinstance(r, UnitResult)) == ["u0", "u2"]
    (failure,) = [r for r in results if isinstance(r, Failure)]
    assert failure.unit_id == "u1"
    assert "refused it: status 400: poisoned" in failure.message


def test_an_empty_response_has_no_vector(server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer):
    server.answer = lambda _: ""
    (captured,) = generate(engine_of(server, reader, renderer), requests_of(1))
    assert not captured.rollout.has_vector
    assert captured.rollout.finish_reason == "stop"
    assert np.isnan(captured.vectors_LD["resid_post", "response_mean"]).all()
    assert np.isfinite(captured.vectors_LD["resid_post", "prompt_mean"]).all()


def test_a_response_that_was_cut_at_full_length_says_so(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.finish_reason = "length"
    (captured,) = generate(engine_of(server, reader, renderer), requests_of(1))
    assert captured.rollout.finish_reason == "length"


REASONING = "reasons before it answers"
NO_RESPONSES: dict[str, tuple[dict[str, Any], str]] = {
    "reasoning in the text": ({"content": "<think>\nLet me see"}, REASONING),
    "reasoning that the prompt opened": ({"content": "The sea is meant.\n</think>\n\nIt is wide."}, REASONING),
    "reasoning of another model": ({"content": "[THINK]The sea[/THINK]It is wide."}, REASONING),
    "reasoning beside no text": ({"content": None, "reasoning_content": "Let me see"}, REASONING),
    "reasoning beside an empty text": ({"content": "", "reasoning": "Let me see"}, REASONING),
    "reasoning beside a text": ({"content": "It is wide.", "reasoning": "Let me see"}, REASONING),
    "no text": ({"content": None}, "answers with no text"),
    "a refusal": ({"content": None, "refusal": "I will not."}, "a refusal: I will not"),
    "parts": ({"content": [{"type": "text", "text": "Wide."}]}, "no text but a JSON list"),
    "a number": ({"content": 7}, "no text but a JSON int"),
    "half a character": ({"content": "\ud83d"}, "no character"),
    "a tool": ({"content": None, "tool_calls": [{"id": "1"}]}, "called a tool"),
    "a tool beside a text": ({"content": "Wait.", "tool_calls": [{"id": "1"}]}, "called a tool"),
}


@pytest.mark.parametrize("case", NO_RESPONSES)
def test_a_message_that_is_no_response_is_refused_in_words(
    case: str, server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.message, message = NO_RESPONSES[case]
    with pytest.raises(UnitError, match=message):
        generate(engine_of(server, reader, renderer), requests_of(1))
    assert len(server.bodies) == 1


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ("content_filter", "a content filter cut"),
        ("tool_calls", "called a tool"),
        ("function_call", "called a function"),
        ("repetition", "repetition detection"),
        ("weather", "unknown finish_reason, 'weather'"),
        (None, "no finish_reason"),
    ],
)
def test_only_a_text_that_ended_or_reached_its_length_is_a_response(
    reason: str | None, message: str, server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.finish_reason = reason
    with pytest.raises(UnitError, match=message):
        generate(engine_of(server, reader, renderer), requests_of(1))


def usage(**counts: object) -> Callable[[Body, str], Body]:
    return lambda _body, _text: {"usage": counts}


@pytest.mark.parametrize(
    ("text", "reason", "more", "message"),
    [
        ("", "length", usage(), "has no text; reasoning that is left out"),
        ("", "stop", usage(completion_tokens=57), "no text, but 57 tokens"),
        ("Wide.", "stop", usage(completion_tokens=81), "answers with 81 tokens, and at most 80"),
        ("Wide.", "length", usage(completion_tokens=5), "cuts responses at 5 tokens, and 80 were asked for"),
        ("Wide.", "stop", usage(completion_tokens_details={"reasoning_tokens": 9}), REASONING),
        ("wide " * 200, "length", usage(), r"answers with \d+ tokens, and at most 80"),
        ("wide " * 200, "length", usage(completion_tokens=80), r"answers with \d+ tokens, and at most 80"),
        ("Wide.", "stop", lambda *_: {"error": {"code": 400, "message": "no such thing"}}, "no such thing"),
        ("Wide.", "stop", lambda *_: {"error": "overloaded"}, "no answer from .* in 5 tries; .*overloaded"),
    ],
)
def test_an_answer_whose_counts_or_errors_show_that_it_is_none_is_refused(
    text: str,
    reason: str,
    more: Callable[[Body, str], Body],
    message: str,
    server: ChatServer,
    reader: BuiltinEngine,
    renderer: ConversationRenderer,
):
    server.answer, server.finish_reason, server.more = (lambda _: text), reason, more
    with pytest.raises(UnitError, match=message):
        generate(engine_of(server, reader, renderer), requests_of(1))


def test_several_choices_are_refused(server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer):
    server.num_choices = 2
    with pytest.raises(UnitError, match="answers with 2 choices"):
        generate(engine_of(server, reader, renderer), requests_of(1))


@pytest.mark.parametrize(
    "body", ["", "[]", "7", "null", "<html>", "{}", '{"choices": []}', '{"choices": [7]}', "[" * 9999]
)
def test_a_body_that_is_no_completion_is_worth_another_try(body: str):
    with pytest.raises(TransientFailureError, match="not a chat completion"):
        read_completion(body, 20)


def ids_of(renderer: ConversationRenderer, request: RolloutRequest, text: str) -> tuple[list[int], list[int]]:
    return renderer.answer(request.messages, text)


def test_token_ids_of_the_server_are_stored_and_not_those_that_its_text_becomes(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer, tiny_model_directory: Path
):
    (request,) = requests_of(1)
    text = "Ahoy you there."
    prompt, once = ids_of(renderer, request, text)
    # A special token in the middle, which servers leave out of the text.
    sampled = [*once[:4], SPECIAL.index("<|start|>"), *once[4:]]
    server.answer = lambda _: text
    server.more = lambda *_: {"prompt_token_ids": prompt}
    server.choice = lambda *_: {"token_ids": sampled}
    (captured,) = generate(engine_of(server, reader, renderer), [request])
    assert list(captured.rollout.response_token_ids) == sampled
    assert captured.rollout.num_content_tokens == len(sampled)
    assert captured.rollout.served == Served("exact")
    assert server.bodies[0]["return_token_ids"] is True
    states, _ = PlainModel(tiny_model_directory).run(conversation_ids(captured.rollout))
    expected = pool(states, captured.rollout)["response_mean"]
    assert relative_errors(captured.vectors_LD["resid_post", "response_mean"], expected).max() < 1e-4


def test_the_end_of_turn_token_of_the_server_is_stored_and_is_no_content(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    (request,) = requests_of(1)
    _, sampled = ids_of(renderer, request, "Ahoy.")
    server.answer = lambda _: "Ahoy."
    server.choice = lambda *_: {"token_ids": [*sampled, END_ID]}
    (captured,) = generate(engine_of(server, reader, renderer), [request])
    assert list(captured.rollout.response_token_ids) == [*sampled, END_ID]
    assert captured.rollout.num_content_tokens == len(sampled)


def test_ids_of_another_tokenizer_or_another_prompt_are_refused(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    (request,) = requests_of(1)
    prompt, other = ids_of(renderer, request, "Something else.")
    for ids in (other, [10**9]):
        server.choice = lambda *_, ids=ids: {"token_ids": ids}
        with pytest.raises(UnitError, match="do not spell its text") as caught:
            generate(engine_of(server, reader, renderer), [request])
        assert caught.value.code == "other_tokens"
    server.more = lambda *_: {"prompt_token_ids": [*prompt[:3], 5, *prompt[3:]]}
    with pytest.raises(UnitError, match=rf"\({len(prompt) + 1} instead of {len(prompt)}, the first difference at 3\)"):
        generate(engine_of(server, reader, renderer), [request])
    refused = refusal(renderer, endpoint=server.url)
    assert (refused.field, refused.code) == ("generation.endpoint", "other_prompt")


def test_without_ids_the_server_s_counts_are_compared(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    (request,) = requests_of(1)
    server.answer = lambda _: "Ahoy."
    prompt, once = ids_of(renderer, request, "Ahoy.")
    length = len(once)
    for counts, expected in [
        ({"completion_tokens": length, "prompt_tokens": len(prompt)}, "same_length"),
        ({"completion_tokens": length + 1}, "same_length"),
        ({"completion_tokens": length + 2}, "other_length"),
        ({"completion_tokens": length, "prompt_tokens": len(prompt) + 1}, "other_prompt"),
        ({}, "not_counted"),
    ]:
        server.more = usage(**counts)
        (captured,) = generate(engine_of(server, reader, renderer), [request])
        assert captured.rollout.served == Served(expected), counts


def test_sampling_that_a_spec_does_not_have_is_switched_off_in_the_server(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    generate(engine_of(server, reader, renderer), requests_of(1))
    neutral = {"top_k": -1, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
    assert neutral.items() <= server.bodies[0].items()


def test_a_server_that_refuses_unknown_fields_is_asked_once_without_them_and_the_rollouts_say_so(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    server.unknown = frozenset({"top_k", "return_token_ids"})
    left_out = check_endpoint(GenerationSpec(endpoint=server.url), "tiny", renderer.renderer, Retries(2, 0.01))
    assert {"top_k", "min_p", "repetition_penalty", "return_token_ids"} <= set(left_out)
    assert server.refused == ["return_token_ids"]
    asked = GenerationSpec(endpoint=server.url)
    sampling = engine_settings(Path(), layers=(0,), max_new_tokens=MOST, temperature=0.7, top_p=0.9).sampling
    engine = EndpointResponder(reader, renderer, asked, "tiny", sampling, QUICK, left_out=left_out)
    (captured,) = generate(engine, requests_of(1))
    assert captured.rollout.served == Served("not_counted", left_out)
    assert not set(left_out) & server.bodies[-1].keys()
    assert describe_requests(sampling, left_out) == {
        "sampling": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": MOST},
        "left_out": list(left_out),
    }


def test_a_server_that_refuses_a_field_that_is_needed_is_refused_in_its_words(
    server: ChatServer, renderer: ConversationRenderer
):
    server.unknown = frozenset({"max_tokens"})
    refused = refusal(renderer, endpoint=server.url)
    assert (refused.field, refused.code) == ("generation.endpoint", "endpoint_refused")
    assert "Unrecognized request argument supplied: max_tokens" in str(refused)


def test_a_server_that_reasons_is_found_before_a_model_is_loaded(server: ChatServer, renderer: ConversationRenderer):
    server.message = {"content": None, "reasoning": "The"}
    refused = refusal(renderer, endpoint=server.url)
    assert (refused.field, refused.code) == ("generation.endpoint", "endpoint_refused")
    assert "reasons before it answers" in str(refused)
    server.message, server.finish_reason = {"content": ""}, "length"
    check_endpoint(GenerationSpec(endpoint=server.url), "tiny", renderer.renderer)


def test_a_caller_that_stops_listening_leaves_nothing_behind(
    server: ChatServer, reader: BuiltinEngine, renderer: ConversationRenderer
):
    import threading

    to_do = iter(requests_of(8))
    stream = engine_of(server, reader, renderer, concurrency=2).generate(lambda: next(to_do, None))
    next(stream)
    assert [thread for thread in threading.enumerate() if thread.name == "endpoint"]
    stream.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "endpoint"])


def refusal(renderer: ConversationRenderer, model: str = "tiny", **generation: object) -> InputError:
    with pytest.raises(InputError) as caught:
        check_endpoint(GenerationSpec.model_validate(generation), model, renderer.renderer, Retries(2, 0.01))
    return caught.value


def test_a_server_is_looked_at_before_anything_is_spent(
    server: ChatServer, renderer: ConversationRenderer, monkeypatch: pytest.MonkeyPatch
):
    check_endpoint(GenerationSpec(endpoint=server.url), "tiny", renderer.renderer)
    (body,) = server.bodies
    assert body["max_tokens"] == 1

    wrong_name = refusal(renderer, "huge", endpoint=server.url)
    assert (wrong_name.field, wrong_name.code) == ("generation.model", "endpoint_refused")
    assert "The model `huge` does not exist" in str(wrong_name)

    wrong_path = refusal(renderer, endpoint=f"{server.url}/v2")
    assert wrong_path.field == "generation.endpoint"

    server.key = "secret-7"
    no_key = refusal(renderer, endpoint=server.url)
    assert (no_key.field, no_key.code) == ("generation.api_key_env", "endpoint_unauthorised")
    unset = refusal(renderer, endpoint=server.url, api_key_env="PERSONA_ATLAS_UNSET")
    assert (unset.field, unset.code) == ("generation.api_key_env", "no_api_key")
    monkeypatch.setenv("PERSONA_ATLAS_TINY_KEY", "secret-7")
    check_endpoint(GenerationSpec(endpoint=server.url, api_key_env="PERSONA_ATLAS_TINY_KEY"), "tiny", renderer.renderer)
    monkeypatch.setenv("PERSONA_ATLAS_TINY_KEY", "wrong-8")
    wrong_key = refusal(renderer, endpoint=server.url, api_key_env="PERSONA_ATLAS_TINY_KEY")
    assert "wrong-8" not in str(wrong_key.as_dict())

    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret-7")
    sent = refusal(renderer, endpoint=server.url, api_key_env="AWS_SECRET_ACCESS_KEY")
    assert (sent.field, sent.code) == ("generation.api_key_env", "no_such_key")

    nobody = refusal(renderer, endpoint="http://127.0.0.1:9/v1")
    assert (nobody.field, nobody.code) == ("generation.endpoint", "no_endpoint")


def test_pauses_grow_and_heed_the_server_within_reason():
    retries = Retries(first_pause_s=1.0)
    assert all(0.5 <= retries.pause_s(1, None) <= 1 for _ in range(20))
    assert all(2 <= retries.pause_s(3, None) <= 4 for _ in range(20))
    assert retries.pause_s(20, None) <= 30
    assert retries.pause_s(1, 7.0) == 7
    assert retries.pause_s(1, 7000.0) == 30
