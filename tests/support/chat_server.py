"""A real HTTP server on this machine that speaks the chat completions protocol, and fails when told to."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Body = dict[str, Any]


def echo(body: Body) -> str:
    """Answer with what was asked, so that a rollout that was mixed up shows."""
    return f"You asked: {body['messages'][-1]['content']}"


@dataclass
class ChatServer:
    """What the server does, and what it saw. Changed by tests while it runs.

    Attributes:
        model: The one that is served.
        key: Asked for in the header; None lets everybody in.
        answer: The response to a request.
        finish_reason: Of every response.
        script: What to do with the next requests: ``429``, ``500``, ``cut``, ``slow``, ``garbage``, ``abort``,
            ``error``.
        message: More fields of every message; may replace its content.
        more: More fields of every answer, from its request and its text: ``usage``, ``error``, ``prompt_token_ids``.
        choice: More fields of every choice, from the same.
        num_choices: Choices of every answer.
        unknown: Names of request fields that it refuses, with status 400.
        names_model: Whether it names its model in doing so.
        poison: Prompts with this text are refused for good; "" refuses none.
        delay_s: Of every answer.
        bodies: Requests that were answered, in order.
        refused: Requests that were not.
        most_at_once: Requests that were open at a time, at most.
    """

    model: str = "tiny"
    key: str | None = None
    answer: Callable[[Body], str] = echo
    finish_reason: str | None = "stop"
    script: list[str] = field(default_factory=list)
    message: Body = field(default_factory=dict)
    more: Callable[[Body, str], Body] = lambda _body, _text: {}
    choice: Callable[[Body, str], Body] = lambda _body, _text: {}
    num_choices: int = 1
    unknown: frozenset[str] = frozenset()
    names_model: bool = False
    poison: str = ""
    delay_s: float = 0.0
    bodies: list[Body] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _open: int = 0

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return not self._open

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self._open += 1
        self.most_at_once = max(self.most_at_once, self._open)
        try:
            return await self._handle(request)
        finally:
            self._open -= 1

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": {"message": "Invalid API key"}}, status=401)
        body: Body = await request.json()
        if body["model"] != self.model:
            message = f"The model `{body['model']}` does not exist."
            return web.json_response({"error": {"message": message}}, status=404)
        if self.poison and any(self.poison in message["content"] for message in body["messages"]):
            return web.json_response({"error": {"message": "poisoned"}}, status=400)
        if unknown := sorted(self.unknown & body.keys()):
            self.refused.append(unknown[0])
            message = f"Unrecognized request argument supplied: {unknown[0]}"
            message += f" for the model {self.model}" if self.names_model else ""
            return web.json_response({"error": {"message": message, "code": None}}, status=400)
        step = self.script.pop(0) if self.script else ""
        if step:
            self.refused.append(step)
        if step == "cut":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if step == "slow":
            await asyncio.sleep(30)
        if step == "429":
            return web.json_response({"error": "too many"}, status=429, headers={"Retry-After": "0"})
        if step == "garbage":
            return web.Response(text='{"choices": [{"mess')
        if step == "error":
            return web.json_response({"error": {"code": 502, "message": "the provider returned an error"}})
        if step == "abort":
            message = {"role": "assistant", "content": "You ask"}
            return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "abort"}]})
        if step.isdecimal():
            return web.json_response({"detail": f"scripted {step}"}, status=int(step))
        await asyncio.sleep(self.delay_s)
        self.bodies.append(body)
        text = self.answer(body)
        message = {"role": "assistant", "content": text} | self.message
        choice = {"index": 0, "message": message, "finish_reason": self.finish_reason} | self.choice(body, text)
        whole = {"object": "chat.completion", "model": self.model, "choices": [choice] * self.num_choices}
        return web.json_response(whole | self.more(body, text))


@contextmanager
def serving(server: ChatServer) -> Iterator[ChatServer]:
    """Run a server in a thread while the block lasts; ``server.url`` is what a spec's endpoint is."""
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def wait_until(what: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
