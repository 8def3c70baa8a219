"""The HTTP interface: chat completions, models and health, as a FastAPI application.

The engine runs in a thread of its own; what it tells is handed to the event loop, where each request waits for its
events. A client that goes away cancels its requests.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from ...jobs.errors import AtlasError
from ...jobs.specs.interventions_spec import EditSetting
from ...jobs.version import __version__
from .chat_request import ChatRequest
from .engine_loop import EngineLoop, Event, Failed, Finished, Piece
from .guard import Guard
from .live_model import LiveModel
from .prepared_call import PreparedCall, prepare_call
from .problems import Problem
from .replies import Body, ReplyShape

_MOST_WAITING = 2048
"""Requests that may wait for a place in the batch; further ones are told to come back."""


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """How a server answers.

    Attributes:
        api_key: Key that clients must send; None: everybody is answered.
        edits: What is done along the axis where a request does not say.
        max_tokens: Most tokens of a response where a request does not say.
    """

    api_key: str | None = None
    edits: tuple[EditSetting, ...] = ()
    max_tokens: int = 1024


def create_app(model: LiveModel, loop: EngineLoop, settings: ServerSettings) -> FastAPI:
    """Build the application.

    Args:
        model: The model that answers.
        loop: Runs its engine.
        settings: How it answers.
    """
    app = FastAPI(title="Persona Atlas", version=__version__)
    server = _Server(model, loop, settings)
    app.add_middleware(Guard, api_key=settings.api_key, max_context=model.max_context)
    app.add_api_route("/v1/chat/completions", server.complete, methods=["POST"])
    app.add_api_route("/v1/models", server.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", server.one_model, methods=["GET"])
    app.add_api_route("/health", server.health, methods=["GET"])
    app.add_exception_handler(Problem, _answer)
    app.add_exception_handler(RequestValidationError, _answer)
    # Of the framework itself: an unknown path, a body that is no text.
    app.add_exception_handler(HTTPException, _answer)
    app.add_exception_handler(AtlasError, _answer)
    # A bug: it is answered, and its traceback is logged.
    app.add_exception_handler(Exception, _answer)
    return app


async def _answer(_request: Request, error: Exception) -> Response:
    if isinstance(error, RequestValidationError):
        return Problem.of_fields(error).response()
    if isinstance(error, AtlasError):
        return Problem.of(error).response()
    if isinstance(error, HTTPException):
        return Problem.of_http(error).response()
    if isinstance(error, Problem):
        return error.response()
    return Problem(500, f"Unexpected: {type(error).__name__}.", "internal").response()


class _Server:
    """The routes of the application; see ``create_app``."""

    def __init__(self, model: LiveModel, loop: EngineLoop, settings: ServerSettings) -> None:
        self._model = model
        self._loop = loop
        self._settings = settings
        self._started = int(time.time())

    async def models(self) -> Body:
        """List the model."""
        return {"object": "list", "data": [self._described()]}

    async def one_model(self, name: str) -> Body:
        """Describe the model."""
        self._require_model(name)
        return self._described()

    async def health(self) -> JSONResponse:
        """Say whether requests are answered, and how many there are."""
        end = self._loop.end
        status = "ok" if end is None else str(end)
        body = {"status": status, "model": self._model.name, "requests": asdict(self._loop.counts)}
        return JSONResponse(body, 200 if end is None else 503)

    async def complete(self, body: ChatRequest, request: Request) -> Response:
        """Answer a chat."""
        self._require_model(body.model)
        if self._loop.counts.waiting >= _MOST_WAITING:
            raise Problem(503, f"{_MOST_WAITING} requests wait already; try again later.", "overloaded")
        # In a thread: a percentile may have to be read from the axis's store.
        call = await run_in_threadpool(prepare_call, body, self._model, self._settings.edits, self._settings.max_tokens)
        shape = ReplyShape(call.call_id, self._model.name, int(time.time()), body.stream_options.include_usage)
        answer = _Answer(self._model, self._loop, call)
        if body.stream:
            return _EventStream(answer, shape)
        finished = await answer.whole(request)
        return JSONResponse(shape.completion(finished, answer.places(finished)))

    def _require_model(self, name: str) -> None:
        if name != self._model.name:
            raise Problem(
                404, f"The model {name!r} is not served here; {self._model.name!r} is.", "model_not_found", "model"
            )

    def _described(self) -> Body:
        return {"id": self._model.name, "object": "model", "created": self._started, "owned_by": "persona-atlas"}


class _Answer:
    """The responses to one call, while somebody waits for them."""

    def __init__(self, model: LiveModel, loop: EngineLoop, call: PreparedCall) -> None:
        self._model = model
        self._loop = loop
        self._call = call
        self._here = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._lives = [call.live(model, index, partial(self._tell, index)) for index in range(call.num_choices)]

    def cancel(self) -> None:
        """End what has not ended: nobody waits for it any more."""
        for live in self._lives:
            live.cancel()

    async def whole(self, request: Request) -> list[Finished]:
        """Wait for all responses, unless the client goes away."""
        gathered = asyncio.ensure_future(self._gathered())
        gone = asyncio.ensure_future(_until_gone(request))
        try:
            await asyncio.wait({gathered, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not gathered.done():
                raise Problem(499, "The client went away.", "client_gone")
            return await gathered
        finally:
            self.cancel()
            for task in (gathered, gone):
                task.cancel()
            await asyncio.gather(gathered, gone, return_exceptions=True)

    async def stream(self, shape: ReplyShape) -> AsyncIterator[str]:
        """Yield the lines of a stream of server-sent events."""
        finished: dict[int, Finished] = {}
        try:
            for index in range(self._call.num_choices):
                yield _line(shape.chunk(index, {"role": "assistant", "content": ""}))
            async for index, event in self._told():
                if isinstance(event, Piece):
                    yield _line(shape.chunk(index, {"content": event.text}))
                else:
                    finished[index] = event
                    yield _line(shape.chunk(index, {}, event.finish_reason, self._placed(event)))
            if shape.with_usage:
                ended = [finished[index] for index in sorted(finished)]
                yield _line(shape.usage_chunk(ended, self.places(ended)))
        except AtlasError as error:
            # The status has been sent, so the error is an event, as clients know it.
            yield _line(Problem.of(error).body())
            return
        yield "data: [DONE]\n\n"

    def places(self, finished: Sequence[Finished]) -> list[Body]:
        """Build the ``persona_atlas`` object of each response."""
        return [self._placed(one) for one in finished]

    def _placed(self, finished: Finished) -> Body:
        return self._call.placed(self._model, self._model.placing.place(finished.captured).as_dict())

    async def _gathered(self) -> list[Finished]:
        finished = {index: event async for index, event in self._told() if isinstance(event, Finished)}
        return [finished[index] for index in range(self._call.num_choices)]

    async def _told(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """Submit the requests, and yield what the engine tells of them until all have ended."""
        for live in self._lives:
            self._loop.submit(live)
        left = len(self._lives)
        while left:
            index, event = await self._events.get()
            if isinstance(event, Failed):
                raise event.error
            left -= isinstance(event, Finished)
            yield index, event

    def _tell(self, index: int, event: Event) -> None:
        # In the engine's thread.
        self._here.call_soon_threadsafe(self._events.put_nowait, (index, event))


class _EventStream(StreamingResponse):
    """A stream of server-sent events, whose requests are cancelled however it ends."""

    def __init__(self, answer: _Answer, shape: ReplyShape) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(answer.stream(shape), media_type="text/event-stream", headers=headers)
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.cancel()


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _line(body: Body) -> str:
    return f"data: {json.dumps(body, allow_nan=False)}\n\n"
