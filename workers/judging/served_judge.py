"""A judge on a server that speaks the OpenAI protocol, through the ``openai`` client and its retries.

The only module that uses ``openai``. Requests run on an event loop in a separate thread; the caller's thread takes the
answers, so that Ctrl-C reaches it.
"""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import openai

from ...jobs.errors import InputError
from ...jobs.judging.answers import Answer
from ...jobs.judging.requests import JudgeRequest
from ...jobs.specs.endpoint_keys import refuse_key
from ...jobs.specs.spec_parts import GenerationSpec
from ..responders.answers import TRANSIENT_STATUSES, reason_of
from .completions import read_answer, refusal

_RETRIES = 7
"""Retries of a request by the client, with growing pauses or those that the server asks for: about half a minute."""

_CHECK_RETRIES = 2
_WAIT_S = 0.2
"""Longest wait for an answer in one piece: Python handles a signal that arrives just before a wait only after it."""

_CHECK = "Answer with the digit 3 and nothing else."
_OPENAI_HOST = "api.openai.com"


class ServedJudge:
    """Asks a model on a server. Its thread ends with ``close``.

    Args:
        server: Address and model of the server, name of the key's variable, timeout and number of requests at a time.
        max_tokens: Most tokens of a reply.
        requests_per_s: Limit on the requests that are started per second, retries not counted; None for none.
        retries: Retries of a request by the client.

    Raises:
        InputError: The key is not set, or may not be sent.
    """

    def __init__(
        self, server: GenerationSpec, max_tokens: int, requests_per_s: float | None = None, retries: int = _RETRIES
    ) -> None:
        self._server = server
        self._parameters: dict[str, Any] = {}
        self._max_tokens = max_tokens
        self._interval_s = 1 / requests_per_s if requests_per_s else 0.0
        self._next_start = 0.0
        self._retries = retries
        self._key = _key(server)
        self._loop = asyncio.new_event_loop()
        self._client = self._make_client()
        self._thread = threading.Thread(target=self._loop.run_forever, name="judge", daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Ask for one reply, so that a wrong address, key or model name is found before anything is written.

        Raises:
            InputError: One of them is wrong, or nothing answers at the address.
        """
        # Models that reason take neither a temperature nor the older name of the limit; most servers only the latter.
        few = ({"seed": 0}, {})
        usual = [{"temperature": 0, "max_tokens": self._max_tokens} | more for more in few]
        refused: openai.APIStatusError | None = None
        for parameters in (*usual, {"max_completion_tokens": self._max_tokens}):
            self._parameters = parameters
            try:
                self._wait_for(self._send(_CHECK, _CHECK_RETRIES))
            except openai.APIStatusError as error:
                is_last = "max_tokens" not in parameters
                # Some name the model where they refuse a parameter, so the others are tried before it is blamed.
                refused = error if refused is None or self._names_model(error) else refused
                if error.status_code in (400, 422) and not is_last:
                    continue
                raise self._why_refused(refused if is_last else error) from None
            except (openai.APIConnectionError, openai.APIResponseValidationError) as error:
                raise self._no_answer(str(error)) from None
            return

    def answers(self, next_request: Callable[[], JudgeRequest | None]) -> Iterator[Answer]:
        """Answer requests concurrently; see ``Judge.answers``."""
        done: queue.SimpleQueue[Answer | BaseException] = queue.SimpleQueue()
        in_flight = 0
        while True:
            while in_flight < self._server.concurrency and (request := next_request()) is not None:
                asyncio.run_coroutine_threadsafe(self._answer(request, done), self._loop)
                in_flight += 1
            if not in_flight:
                return
            answer = _next_of(done)
            in_flight -= 1
            if isinstance(answer, BaseException):
                raise answer
            yield answer

    def close(self) -> None:
        """Give up the requests in flight, close the connections and end the thread."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()

    def _make_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            # Without one it would look for a key in the environment; what is sent is in ``_headers``.
            api_key=self._key or "none",
            base_url=self._server.endpoint,
            timeout=self._server.timeout_s,
            max_retries=self._retries,
            # A redirect would take the texts to a server that was not named.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, timeout=self._server.timeout_s),
        )

    def _headers(self) -> dict[str, Any]:
        """Return headers by which a request carries this key or none, whatever the environment has for other servers.

        The client takes an organisation, a project and further headers from the environment, and sends them anywhere.
        """
        headers: dict[str, Any] = {}
        if self._server.host != _OPENAI_HOST:
            lines = os.environ.get("OPENAI_CUSTOM_HEADERS", "").split("\n")
            names = [line.partition(":")[0].strip() for line in lines if ":" in line]
            headers = dict.fromkeys([*names, "OpenAI-Organization", "OpenAI-Project"], openai.Omit())
        return headers | {"Authorization": f"Bearer {self._key}" if self._key else openai.Omit()}

    async def _answer(self, request: JudgeRequest, done: queue.SimpleQueue[Answer | BaseException]) -> None:
        try:
            done.put(await self._ask(request))
        except Exception as error:  # noqa: BLE001 - raised again in the thread that waits for it
            done.put(error)

    async def _ask(self, request: JudgeRequest) -> Answer:
        await self._turn()
        try:
            return read_answer(request, await self._send(request.prompt, self._retries))
        except openai.APIStatusError as error:
            status = error.status_code
            if status in TRANSIENT_STATUSES or status >= 500:
                return Answer(request, failure=f"{self._server.endpoint} answers with status {self._said(error)}.")
            if status in (401, 403, 404, 405) or status < 400:
                raise self._why_refused(error) from None
            return refusal(request, f"status {self._said(error)}")
        except openai.APIError as error:
            return Answer(request, failure=f"no answer from {self._server.endpoint}: {_words(str(error))}.")

    async def _turn(self) -> None:
        """Wait until the next request may be started."""
        if self._interval_s:
            now = self._loop.time()
            start = max(now, self._next_start)
            self._next_start = start + self._interval_s
            await asyncio.sleep(start - now)

    async def _send(self, prompt: str, retries: int) -> str:
        """Send one request, with the client's retries, and return the body of an answer with status 200."""
        client = self._client.with_options(max_retries=retries)
        message: Any = {"role": "user", "content": prompt}
        model = self._server.model or ""
        raw = await client.chat.completions.with_raw_response.create(
            model=model, messages=[message], extra_headers=self._headers(), **self._parameters
        )
        return raw.http_response.text

    async def _end(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.close()

    def _wait_for(self, sending: Coroutine[Any, Any, str]) -> str:
        future = asyncio.run_coroutine_threadsafe(sending, self._loop)
        while True:
            try:
                return future.result(_WAIT_S)
            except TimeoutError:
                if future.done():
                    raise

    def _names_model(self, error: openai.APIStatusError) -> bool:
        return bool(self._server.model) and str(self._server.model) in self._said(error)

    def _said(self, error: openai.APIStatusError) -> str:
        """Return the status and what the server said, without the key, which some servers repeat."""
        said = reason_of(error.response.text)
        return f"{error.status_code}: {said.replace(self._key, '***') if self._key else said}"

    def _no_answer(self, why: str) -> InputError:
        return InputError(
            f"nothing useful answers at {self._server.endpoint}: {_words(why)}.",
            code="no_endpoint",
            field="--endpoint",
            hint="Is the server up, and does its address end in /v1?",
        )

    def _why_refused(self, error: openai.APIStatusError) -> InputError:
        status, endpoint = error.status_code, self._server.endpoint
        if status in (401, 403):
            sent = f"the key in {self._server.api_key_env}" if self._key else "a request without a key"
            return InputError(
                f"the server at {endpoint} rejects {sent}: status {self._said(error)}.",
                code="endpoint_unauthorised",
                field="--api-key-env",
                hint="Name the environment variable that holds the server's key, and set it.",
            )
        if status == 429 or status >= 500:
            return self._no_answer(f"status {self._said(error)}")
        is_model = self._names_model(error) or status == 404
        if is_model:
            return InputError(
                f"the server at {endpoint} does not serve {self._server.model!r}: status {self._said(error)}.",
                code="endpoint_refused",
                field="--model" if self._names_model(error) else "--endpoint",
                hint="The address usually ends in /v1, and its /models lists what is served under which name.",
            )
        return InputError(
            f"the server at {endpoint} does not take the requests: status {self._said(error)}.",
            code="endpoint_refused",
            field="--endpoint",
            hint="Name the address itself, without a redirect, of a server for chat completions.",
        )


def _key(server: GenerationSpec) -> str | None:
    """Read the key from the environment; None where none is named."""
    refuse_key(server, "--api-key-env")
    if server.api_key_env is None:
        return None
    key = os.environ.get(server.api_key_env)
    if not key:
        raise InputError(
            f"the environment variable {server.api_key_env} is not set.",
            code="no_api_key",
            field="--api-key-env",
            hint="Set it, or leave the option out for a server that asks for no key.",
        )
    return key


def _next_of(done: queue.SimpleQueue[Answer | BaseException]) -> Answer | BaseException:
    while True:
        try:
            return done.get(timeout=_WAIT_S)
        except queue.Empty:
            continue


def _words(text: str) -> str:
    return " ".join(text.split()).rstrip(".")
