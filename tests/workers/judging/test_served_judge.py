"""A judge on a server, against a real one that fails in every way: what is retried, refused, set aside, and sent."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.judging.answers import Answer
from persona_atlas.jobs.judging.forms import SCORE_FORMS
from persona_atlas.jobs.judging.requests import Judged, JudgeRequest
from persona_atlas.jobs.specs.spec_parts import GenerationSpec
from persona_atlas.workers.judging.completions import read_answer
from persona_atlas.workers.judging.served_judge import ServedJudge

from chat_server import ChatServer, serving
from free_port import free_port


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer(answer=lambda _: "3")) as running:
        yield running


@contextmanager
def judge_at(url: str, requests_per_s: float | None = None, retries: int = 3, **more: Any) -> Iterator[ServedJudge]:
    settings: dict[str, Any] = {"endpoint": url, "model": "tiny", "concurrency": 4, "timeout_s": 20.0} | more
    judge = ServedJudge(GenerationSpec(**settings), 16, requests_per_s, retries)
    try:
        yield judge
    finally:
        judge.close()


def requests(count: int) -> list[JudgeRequest]:
    return [JudgeRequest(Judged(row, "u", SCORE_FORMS["role"], f"rate {row}")) for row in range(count)]


def ask(judge: ServedJudge, count: int = 1) -> list[Answer]:
    to_do = iter(requests(count))
    return list(judge.answers(lambda: next(to_do, None)))


def test_replies_reach_their_requests_and_no_more_are_open_than_allowed(server: ChatServer):
    server.delay_s = 0.02
    server.answer = lambda body: body["messages"][-1]["content"].removeprefix("rate ")
    with judge_at(server.url) as judge:
        judge.check()
        answers = ask(judge, 20)
    assert sorted((one.request.judged.row, one.reply) for one in answers) == [(row, str(row)) for row in range(20)]
    assert server.most_at_once == 4
    assert {body["temperature"] for body in server.bodies} == {0}
    assert {body["max_tokens"] for body in server.bodies} == {16}


@pytest.mark.parametrize("script", [["429", "500", "cut"], ["503"]])
def test_what_may_pass_is_retried_by_the_client(server: ChatServer, script: list[str]):
    with judge_at(server.url) as judge:
        judge.check()
        server.script = list(script)
        assert [one.reply for one in ask(judge)] == ["3"]
    assert server.refused == script


def test_the_pause_that_a_server_asks_for_is_kept():
    asked_at: list[float] = []

    async def handle(request: web.Request) -> web.Response:
        asked_at.append(time.monotonic())
        if len(asked_at) == 1:
            return web.json_response({"error": "slow down"}, status=429, headers={"Retry-After": "1"})
        message = {"role": "assistant", "content": "3"}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    with _serving(handle) as url, judge_at(url) as judge:
        assert ask(judge)[0].reply == "3"
    assert asked_at[1] - asked_at[0] >= 1


@pytest.mark.parametrize(
    ("script", "says"),
    [
        (["500", "500"], "status 500: scripted 500"),
        (["429", "429"], "status 429"),
        (["cut", "cut"], "no answer from"),
        (["slow", "slow"], "no answer from"),
        (["garbage"], "not a chat completion"),
        (["abort"], "gave the request up"),
        (["error"], "the provider returned an error"),
    ],
)
def test_what_does_not_pass_is_a_failure_and_no_score(server: ChatServer, script: list[str], says: str):
    with judge_at(server.url, retries=len(script) - 1, timeout_s=0.3 if "slow" in script else 20.0) as judge:
        server.script = list(script)
        (answer,) = ask(judge)
    assert says in answer.failure
    assert (answer.reply, answer.refused) == (None, None)


def test_a_request_that_the_server_does_not_take_is_refused_and_the_others_go_on(server: ChatServer):
    server.poison = "rate 1"
    with judge_at(server.url) as judge:
        found = {one.request.judged.row: one for one in ask(judge, 3)}
    assert (found[1].refused, found[1].failure) == ("request_refused", "")
    assert "poisoned" in found[1].detail
    assert (found[0].reply, found[2].reply) == ("3", "3")


@pytest.mark.parametrize(
    ("model", "key_env", "code", "field"),
    [
        ("other", "PERSONA_ATLAS_KEY", "endpoint_refused", "--model"),
        ("tiny", None, "endpoint_unauthorised", "--api-key-env"),
    ],
)
def test_a_judge_that_can_not_work_is_refused_at_the_start_by_the_option_at_fault(
    server: ChatServer, monkeypatch: pytest.MonkeyPatch, model: str, key_env: str | None, code: str, field: str
):
    monkeypatch.setenv("PERSONA_ATLAS_KEY", "right-key")
    server.key = "right-key"
    with judge_at(server.url, model=model, api_key_env=key_env) as judge, pytest.raises(InputError) as caught:
        judge.check()
    assert (caught.value.code, caught.value.field) == (code, field)
    assert caught.value.hint
    assert not server.bodies


def test_a_key_that_is_refused_later_ends_the_judging(server: ChatServer):
    with judge_at(server.url) as judge:
        judge.check()
        server.key = "changed"
        with pytest.raises(InputError) as caught:
            ask(judge, 6)
    assert caught.value.code == "endpoint_unauthorised"


def test_an_address_where_nothing_answers_is_refused():
    with judge_at(f"http://127.0.0.1:{free_port()}/v1") as judge, pytest.raises(InputError) as caught:
        judge.check()
    assert (caught.value.code, caught.value.field) == ("no_endpoint", "--endpoint")


@pytest.mark.parametrize("names_model", [False, True])
def test_fields_that_a_server_does_not_take_are_left_out(server: ChatServer, names_model: bool):
    server.unknown, server.names_model = frozenset({"max_tokens", "temperature"}), names_model
    with judge_at(server.url) as judge:
        judge.check()
        assert ask(judge)[0].reply == "3"
    assert server.bodies[-1].keys() == {"model", "messages", "max_completion_tokens"}


def test_requests_are_spread_by_the_rate_limit(server: ChatServer):
    with judge_at(server.url, requests_per_s=20.0) as judge:
        began = time.monotonic()
        ask(judge, 8)
    assert time.monotonic() - began >= 7 / 20


def test_the_named_key_is_sent_and_nothing_else_of_the_environment(monkeypatch: pytest.MonkeyPatch):
    seen: list[dict[str, str]] = []

    async def handle(request: web.Request) -> web.Response:
        seen.append({name.lower(): value for name, value in request.headers.items()})
        return web.json_response({"error": {"message": f"no {request.headers.get('Authorization')}"}}, status=401)

    for name in ("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, f"ambient-{name}")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gateway-Key: ambient-gateway\nAuthorization: Bearer ambient-header")
    monkeypatch.setenv("PERSONA_ATLAS_KEY", "my-own")
    with _serving(handle) as url:
        for key_env in (None, "PERSONA_ATLAS_KEY"):
            with judge_at(url, api_key_env=key_env) as judge, pytest.raises(InputError) as caught:
                judge.check()
            assert "my-own" not in str(caught.value)
    assert [headers.get("authorization") for headers in seen] == [None, "Bearer my-own"]
    assert not [value for headers in seen for value in headers.values() if "ambient" in value]


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "PATH", "HF_TOKEN"])
def test_a_variable_that_is_no_key_of_a_server_is_not_sent(server: ChatServer, name: str):
    with pytest.raises(InputError) as caught:
        ServedJudge(GenerationSpec(endpoint=server.url, model="tiny", api_key_env=name), 16)
    assert (caught.value.code, caught.value.field) == ("no_such_key", "--api-key-env")


def test_a_redirect_is_not_followed(server: ChatServer):
    async def handle(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": f"{server.url}/chat/completions"})

    with _serving(handle) as url, judge_at(url) as judge, pytest.raises(InputError) as caught:
        judge.check()
    assert caught.value.field == "--endpoint"
    assert not server.bodies


def test_closing_gives_up_what_is_in_flight_and_ends_the_thread(server: ChatServer):
    server.delay_s = 15
    to_do = iter(requests(2))

    def next_request() -> JudgeRequest | None:
        request = next(to_do, None)
        if request is None:
            raise KeyboardInterrupt
        return request

    began = time.monotonic()
    with judge_at(server.url) as judge, pytest.raises(KeyboardInterrupt):
        list(judge.answers(next_request))
    assert time.monotonic() - began < 10
    assert not [thread for thread in threading.enumerate() if thread.name == "judge"]


def completion(**message: Any) -> str:
    reason = message.pop("finish_reason", "stop")
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": reason}]})


@pytest.mark.parametrize(
    ("body", "reply", "refused"),
    [
        (completion(content=""), "", None),
        (completion(content=None), "", None),
        (completion(content=None, reasoning_content="It is a 2, then."), "", None),
        (completion(content=[{"type": "text", "text": "2"}]), "2", None),
        (completion(content=None, refusal="I cannot rate this."), "I cannot rate this.", "judge_refused"),
        (completion(content="", finish_reason="content_filter"), "", "content_filter"),
        (completion(content="\ud800 3"), "? 3", None),
        ('{"error": {"code": 400, "message": "Blocked by content_filter"}}', None, "content_filter"),
        ('{"error": {"code": 413, "message": "too long"}}', None, "request_refused"),
    ],
)
def test_what_is_said_with_status_200_is_told_apart(body: str, reply: str | None, refused: str | None):
    found = read_answer(requests(1)[0], body)
    assert (found.reply, found.refused, found.failure) == (reply, refused, "")


@pytest.mark.parametrize("body", ["", "<html>", "[]", "{}", '{"choices": []}', '{"choices": [{"message": 3}]}', "3"])
def test_what_is_no_completion_is_a_failure(body: str):
    assert read_answer(requests(1)[0], body).failure


def test_a_cut_reply_is_marked_and_tokens_are_counted():
    body = completion(content="3", finish_reason="length").replace(
        '"choices"', '"usage": {"prompt_tokens": 9, "completion_tokens": 16}, "choices"'
    )
    found = read_answer(requests(1)[0], body)
    assert (found.is_cut, found.num_prompt_tokens, found.num_reply_tokens) == (True, 9, 16)


@contextmanager
def _serving(handle: Any) -> Iterator[str]:
    """Serve one handler in a thread while the block lasts."""
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", 0).start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
