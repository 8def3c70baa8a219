"""The server, as the official client sees it: a random model with an axis, behind a real socket."""

from __future__ import annotations

import http.client
import json
import random
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
from persona_atlas.cluster.serving.app import ServerSettings
from persona_atlas.cluster.serving.edit_options import edit_settings
from persona_atlas.cluster.serving.live_model import LiveModel

from chat_server import wait_until
from live_models import LAYER, NORM, serving_model, tiny_live_model
from plain_forward import PlainModel

KEY = "a key"
QUESTION: Any = [{"role": "user", "content": "Who are you?"}]
EDITS: tuple[dict[str, Any], ...] = (
    {},
    {"cap": "p0.25"},
    {"cap": 3.5, "layers": [1, 2], "positions": "response"},
    {"steer": -0.5},
    {"steer": {"absolute": 9.0}, "layers": "0:3"},
    {"ablate": "axis", "layers": "all"},
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("llama")


@pytest.fixture(scope="module")
def model(directory: Path) -> LiveModel:
    return tiny_live_model(directory)


@pytest.fixture(scope="module")
def url(model: LiveModel) -> Iterator[str]:
    with serving_model(model, ServerSettings(max_tokens=40)) as (base, _):
        yield base


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def health(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/health", timeout=10) as answer:
        return json.load(answer)


Ask = Callable[..., Any]


@pytest.fixture
def ask(client: openai.OpenAI) -> Ask:
    def call(**more: Any) -> Any:
        given: dict[str, Any] = {"model": "llama", "messages": QUESTION, "max_tokens": 20, "seed": 1}
        edits = {name: more.pop(name) for name in ("cap", "steer", "ablate", "layers", "positions") if name in more}
        return client.chat.completions.create(**(given | more), extra_body=edits)

    return call


def test_the_model_is_listed(client: openai.OpenAI):
    assert [model.id for model in client.models.list()] == ["llama"]
    assert client.models.retrieve("llama").owned_by == "persona-atlas"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")


def test_a_completion_has_text_usage_and_its_place_on_the_axis(ask: Ask, model: LiveModel, directory: Path):
    answer = ask(temperature=0)
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    prompt = model.renderer.render(tuple_of(QUESTION))
    assert answer.usage.prompt_tokens == len(prompt)
    assert 0 < answer.usage.completion_tokens <= 20
    assert answer.usage.total_tokens == len(prompt) + answer.usage.completion_tokens
    # Greedy, so a plain model says the same; the mean of its residual stream over the response is projected.
    plain = PlainModel(directory)
    ids = list(prompt)
    stops = model.responder.loaded.stop_ids  # pyright: ignore[reportAttributeAccessIssue]
    while len(ids) < len(prompt) + 20 and (token := int(plain.logits(ids).argmax())) not in stops:
        ids.append(token)
    assert choice.message.content == model.decode(ids[len(prompt) :])
    states_LTD, _ = plain.run(ids)
    expected = float(states_LTD[LAYER, len(prompt) :].mean(axis=0) @ model.axis.unit_D(LAYER))
    placed = answer.persona_atlas
    assert placed["layer"] == LAYER
    assert placed["projection"] == pytest.approx(expected, rel=1e-3)
    others = model.axis.distribution(LAYER)
    assert placed["z_score"] == pytest.approx((placed["projection"] - others.mean) / others.std)
    assert placed["percentile"] == pytest.approx(others.percentile(placed["projection"]))
    assert (placed["compared_with"], placed["interventions"]) == ("rollouts", [])


def tuple_of(messages: list[dict[str, str]]) -> Any:
    from persona_atlas.jobs.messages import ChatMessage

    return tuple(ChatMessage(one["role"], one["content"]) for one in messages)  # pyright: ignore[reportArgumentType]


def test_a_stream_has_the_text_of_the_completion_and_its_place_in_the_last_chunk(ask: Ask):
    whole = ask(temperature=1.2)
    chunks = list(ask(temperature=1.2, stream=True, stream_options={"include_usage": True}))
    said = [choice.delta.content for chunk in chunks for choice in chunk.choices if choice.delta.content]
    assert len(said) > 1
    assert "".join(said) == whole.choices[0].message.content
    *_, ended, last = chunks
    assert ended.choices[0].finish_reason == whole.choices[0].finish_reason
    assert ended.persona_atlas == last.persona_atlas == whole.persona_atlas
    assert (last.choices, last.usage) == ([], whole.usage)
    assert chunks[0].choices[0].delta.role == "assistant"
    # Without being asked, a stream has no usage, and the chunk that ends it is the last.
    assert list(ask(temperature=1.2, stream=True))[-1].persona_atlas == whole.persona_atlas


def test_a_seed_repeats_a_response_and_choices_differ(ask: Ask):
    first, again, other = ask(n=3), ask(n=3), ask(n=3, seed=2)
    texts = [[choice.message.content for choice in answer.choices] for answer in (first, again, other)]
    assert texts[0] == texts[1] != texts[2]
    assert len(set(texts[0])) == 3
    assert first.choices[1].persona_atlas == again.choices[1].persona_atlas != first.persona_atlas
    assert first.choices[0].persona_atlas == first.persona_atlas
    assert texts[0][0] == ask().choices[0].message.content
    assert len({ask(seed=None).choices[0].message.content for _ in range(4)}) > 1


def test_a_stop_string_ends_a_response_before_it(ask: Ask):
    free = ask(temperature=1.2, max_tokens=40)
    text = free.choices[0].message.content
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    stopped = ask(temperature=1.2, max_tokens=40, stop=["not in it", stop])
    assert stopped.choices[0].message.content == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    assert stopped.usage.completion_tokens < free.usage.completion_tokens
    streamed = list(ask(temperature=1.2, max_tokens=40, stop=stop, stream=True))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert said == stopped.choices[0].message.content


def test_the_length_is_limited_by_either_name(ask: Ask):
    for limits in ({"max_tokens": 2}, {"max_completion_tokens": 2, "max_tokens": None}):
        answer = ask(temperature=1.2, **limits)
        assert (answer.usage.completion_tokens, answer.choices[0].finish_reason) == (2, "length")


def test_a_cap_and_a_strength_act_on_the_reply(ask: Ask, model: LiveModel):
    free, capped = ask(), ask(cap="p0.25", layers=[LAYER])
    floor = model.axis.floor(LAYER, "p0.25")
    assert capped.persona_atlas["projection"] >= floor - 1e-3
    assert free.persona_atlas["projection"] < floor
    assert capped.persona_atlas["interventions"] == [{"cap": "p0.25", "layers": [LAYER]}]
    (edit,) = capped.persona_atlas["edits"]
    assert (edit["layer"], free.persona_atlas["edits"]) == (LAYER, [])
    assert 0 < edit["share_changed"] <= 1
    assert edit["mean_correction"] > 0
    # Edited in the response alone, both begin with the same token, and differ by the strength.
    given = {"layers": [LAYER], "positions": "response", "max_tokens": 1, "temperature": 0}
    toward, away = (ask(steer=steer, **given).persona_atlas["projection"] for steer in (0.5, {"absolute": -10.0}))
    assert toward - away == pytest.approx(0.5 * NORM + 10, rel=1e-3)


def test_64_requests_of_mixed_interventions_are_each_answered_as_alone(url: str, ask: Ask):
    def asked(index: int) -> dict[str, Any]:
        return {
            "messages": [{"role": "user", "content": "Why? " * (1 + index % 5) + str(index)}],
            "temperature": (0, 0.8, 1.3)[index % 3],
            "top_p": (1, 0.9)[index % 2],
            "max_tokens": 6 + index % 11,
            "seed": index,
            **EDITS[index % len(EDITS)],
        }

    def answer(index: int) -> tuple[str, dict[str, Any], int]:
        if index % 4 == 3:
            chunks = list(ask(**asked(index), stream=True, stream_options={"include_usage": True}))
            text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
            return text, chunks[-1].persona_atlas, chunks[-1].usage.completion_tokens
        got = ask(**asked(index))
        return got.choices[0].message.content, got.persona_atlas, got.usage.completion_tokens

    most = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.02):
            most = max(most, health(url)["requests"]["running"])

    watching = threading.Thread(target=watch)
    watching.start()
    order = random.Random(3).sample(range(64), 64)
    try:
        with ThreadPoolExecutor(64) as pool:
            together = dict(zip(order, pool.map(answer, order), strict=True))
    finally:
        done.set()
        watching.join()
    assert most > 8, "they did not share a batch"
    for index in range(64):
        text, placed, tokens = answer(index)
        assert (together[index][0], together[index][2]) == (text, tokens)
        np.testing.assert_allclose(
            [together[index][1][name] or 0 for name in ("projection", "z_score")],
            [placed[name] or 0 for name in ("projection", "z_score")],
            rtol=1e-3,
            atol=1e-3,
        )
        assert together[index][1]["interventions"] == placed["interventions"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "temperature": ({"temperature": -1}, "temperature"),
    "top_p": ({"top_p": 0}, "top_p"),
    "tokens": ({"max_tokens": 0}, "max_tokens"),
    "too many tokens": ({"max_tokens": 100_000}, "max_tokens"),
    "no messages": ({"messages": []}, "messages"),
    "role": ({"messages": [{"role": "pirate", "content": "Arr"}]}, "messages.0.role"),
    "answered already": ({"messages": [*QUESTION, {"role": "assistant", "content": "Me."}]}, "messages"),
    "too long": ({"messages": [{"role": "user", "content": "x" * 3000}]}, "messages"),
    "picture": ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
    "empty stop": ({"stop": ""}, "stop"),
    "n": ({"n": 0}, "n"),
    "tools": ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    "logprobs": ({"logprobs": True}, "logprobs"),
    "cap": ({"cap": "p0.3"}, "cap"),
    "no percentile": ({"cap": "high"}, "cap"),
    "no layer": ({"cap": "p0.25", "layers": "46:54"}, "layers"),
    "layers of nothing": ({"layers": [1]}, "layers"),
    "beyond any norm": ({"steer": 1000}, "steer"),
    "not a number": ({"steer": "much"}, "steer"),
    "positions": ({"cap": 1, "positions": "prompt"}, "positions"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_field_is_named(ask: Ask, case: str):
    fields, name = BAD[case]
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        ask(**fields)
    assert (caught.value.param or "").startswith(name)
    assert caught.value.type == "invalid_request_error"
    assert caught.value.code
    assert name.split(".")[0] in caught.value.message


def test_an_unknown_field_and_a_body_that_is_no_json_are_refused(client: openai.OpenAI, ask: Ask, url: str):
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        client.chat.completions.create(model="llama", messages=QUESTION, extra_body={"stear": 0.3})
    assert (caught.value.param, caught.value.code) == ("stear", "unknown_field")
    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="gpt-4")
    assert (missing.value.param, "llama" in missing.value.message) == ("model", True)
    # Brackets too deep for the parser, and bytes that are no UTF-8, are found by other parts of the framework.
    for body in (b"{", b'{"model": "\xff"}', b"[" * 100_000):
        assert refused(url, body) == (400, "bad_json")
    assert refused(url, None, "no/such/path") == (404, "not_found")
    assert refused(url, None) == (405, "method_not_allowed")


def test_a_body_that_no_chat_can_need_is_refused_unread(url: str):
    # Tokenising it would take half a minute, in which no other chat is rendered.
    assert refused_before_its_end(url, "Content-Length", "2000000", [])
    # Of one that does not tell its length, what came is counted.
    assert refused_before_its_end(url, "Transfer-Encoding", "chunked", [b" " * 50_000] * 40)


def refused_before_its_end(url: str, header: str, value: str, chunks: Sequence[bytes]) -> bool:
    """Send a part of a body, and return whether the server refuses it without waiting for the rest."""
    place = urllib.parse.urlsplit(url)
    with closing(http.client.HTTPConnection(str(place.hostname), place.port, timeout=20)) as connection:
        connection.putrequest("POST", "/v1/chat/completions")
        connection.putheader("Content-Type", "application/json")
        connection.putheader(header, value)
        connection.endheaders()
        try:
            for chunk in chunks:
                connection.send(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            answer = connection.getresponse()
        except ConnectionError:
            # A client that is still sending may see the end of the connection before it sees the answer.
            return bool(chunks)
        return (answer.status, json.load(answer)["error"]["code"]) == (413, "too_large")


def refused(url: str, body: Any, path: str = "chat/completions", **more: str) -> tuple[int, str]:
    headers = {"Content-Type": "application/json"} | more
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(f"{url}/v1/{path}", body, headers), timeout=10)
    with caught.value:
        return caught.value.code, json.load(caught.value)["error"]["code"]


def test_what_asks_for_nothing_is_taken(ask: Ask):
    neutral: dict[str, Any] = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logprobs": False,
        "user": "me",
        "response_format": {"type": "text"},
        "tools": [],
        "stop": None,
        "top_p": None,
    }
    assert ask(**neutral).choices == ask().choices


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_slot(directory: Path, stream: bool, monkeypatch: pytest.MonkeyPatch):
    # There is room for one long request at a time, so the second is answered once the first has left the batch.
    model = tiny_live_model(directory, batch_tokens=600, endless=True)
    lengths = lengths_of_responses(model, monkeypatch)
    long: Any = {"model": "llama", "messages": QUESTION, "max_tokens": 460, "temperature": 0}
    with serving_model(model, ServerSettings()) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        if stream:
            with client.chat.completions.create(**long, stream=True) as events:
                assert next(iter(events)).choices
                wait_until(lambda: health(url)["requests"]["running"] == 1)
        else:
            with pytest.raises(openai.APITimeoutError):
                client.with_options(timeout=0.2, max_retries=0).chat.completions.create(**long)
        wait_until(lambda: health(url)["requests"]["running"] == 0)
        assert health(url)["requests"] == {"running": 0, "waiting": 0, "finished": 0, "cancelled": 1, "failed": 0}
        short = client.chat.completions.create(**(long | {"max_tokens": 3}))
        assert short.usage is not None
        assert short.usage.completion_tokens == 3
        assert health(url)["requests"]["finished"] == 1
    assert lengths[0] < 460


def lengths_of_responses(model: LiveModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many tokens the engine sampled for each request."""
    lengths: list[int] = []
    stream = model.responder.stream

    def noted(next_request: Any) -> Iterator[Any]:
        for captured in stream(next_request):
            lengths.append(len(captured.rollout.response_token_ids))
            yield captured

    monkeypatch.setattr(model.responder, "stream", noted)
    return lengths


def test_a_request_at_which_the_model_fails_fails_alone(directory: Path):
    model = tiny_live_model(directory)
    poison = model.renderer.render(tuple_of([{"role": "user", "content": "\x07"}]))
    (bell,) = set(poison) - set(model.renderer.render(tuple_of([{"role": "user", "content": "a"}])))

    def fail(_module: Any, inputs: tuple[Any, ...]) -> None:
        if bool((inputs[0] == bell).any()):
            raise RuntimeError("the device is on fire")

    engine: Any = model.responder
    engine.model.get_input_embeddings().register_forward_pre_hook(fail)

    with serving_model(model, ServerSettings()) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:

        def said(index: int) -> str | None:
            text = "\x07" if index == 3 else "Why? " * index
            options = client.with_options(max_retries=0)
            messages: Any = [{"role": "user", "content": text}]
            streamed = options.chat.completions.create(
                model="llama", messages=messages, seed=index, max_tokens=30, stream=True
            )
            try:
                return "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
            except openai.APIError as error:
                assert "on fire" in error.message  # noqa: PT017 - the others have none
                return None

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(said, range(8)))
        assert together == [said(index) for index in range(8)]
        assert [index for index, text in enumerate(together) if text is None] == [3]
        assert health(url)["requests"]["failed"] == 2
        with pytest.raises(openai.InternalServerError, match="on fire"):
            client.with_options(max_retries=0).chat.completions.create(
                model="llama", messages=[{"role": "user", "content": "\x07"}]
            )


def test_a_key_is_asked_for_where_one_is_set_and_defaults_act(model: LiveModel):
    edits = edit_settings({"cap": "p0.25", "layers": [LAYER]})
    settings = ServerSettings(api_key=KEY, edits=edits, max_tokens=4)
    with serving_model(model, settings) as (url, _), openai.OpenAI(base_url=f"{url}/v1", api_key=KEY) as client:
        for key in ("another", "a key 2"):
            stranger = client.with_options(api_key=key)
            with pytest.raises(openai.AuthenticationError) as caught:
                stranger.chat.completions.create(model="llama", messages=QUESTION)
            assert caught.value.code == "invalid_api_key"
            with pytest.raises(openai.AuthenticationError):
                stranger.models.list()
        # Not even whether it is JSON is told to a stranger, and headers may hold any byte.
        assert refused(url, b"{", Authorization="Bearer \xe4") == (401, "invalid_api_key")
        assert health(url)["status"] == "ok"
        capped: Any = client.chat.completions.create(model="llama", messages=QUESTION, seed=1)
        assert capped.persona_atlas["interventions"] == [{"cap": "p0.25", "layers": [LAYER]}]
        assert capped.usage.completion_tokens <= 4
        # A request that says what it wants has that alone, also nothing.
        for own in ({"cap": None}, {"steer": 0.1}):
            answer: Any = client.chat.completions.create(
                model="llama",
                messages=QUESTION,
                seed=1,
                extra_body=own,
            )
            assert answer.persona_atlas["interventions"] == [own for value in own.values() if value is not None]


def test_a_server_that_stops_ends_what_is_running_and_says_so(directory: Path):
    model = tiny_live_model(directory, endless=True)
    with (
        serving_model(model, ServerSettings()) as (url, server),
        openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client,
    ):
        streamed = iter(client.chat.completions.create(model="llama", messages=QUESTION, max_tokens=460, stream=True))
        assert next(streamed).choices
        wait_until(lambda: health(url)["requests"]["running"] == 1)
        server.should_exit = True
        with pytest.raises(openai.APIError, match="was stopped"):
            list(streamed)
