"""Chat completions from a server that speaks the OpenAI protocol: each request is retried until it is answered.

The only module that uses aiohttp. Transient failures (too many requests, a server error, a lost connection, a timeout)
are retried after a pause; permanent ones (no key, no such model, a prompt that is too long) raise at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from ...jobs.errors import InputError, UnitError
from ...jobs.rollouts import FinishReason
from ...jobs.spec_parts import GenerationSpec, SamplingSpec

_TRANSIENT_STATUSES = {408, 409, 425, 429}
_LONGEST_PAUSE_S = 30.0
_SEED_RANGE = 2**31
"""Servers accept seeds of 31 bits; those of rollouts have 63."""


@dataclass(frozen=True, slots=True)
class Completion:
    """A server's answer: the response's text and how it ended."""

    text: str
    finish_reason: FinishReason


@dataclass(frozen=True, slots=True)
class Retries:
    """How often a request is tried, and how long to pause between tries.

    Attributes:
        tries: Maximum number of tries, the first included.
        first_pause_s: Pause after the first failure, in seconds. It doubles with each failure, up to half a minute,
            with jitter, so that requests that failed together are not all retried at the same moment.
    """

    tries: int = 8
    first_pause_s: float = 0.5

    def pause_s(self, failures: int, asked_for_s: float | None) -> float:
        """Return the pause before the next try, in seconds.

        Args:
            failures: Number of failed tries so far.
            asked_for_s: The server's ``Retry-After`` in seconds, honoured up to half a minute; None where it sent none.
        """
        pause_s = min(_LONGEST_PAUSE_S, self.first_pause_s * 2 ** (failures - 1)) * random.uniform(0.5, 1.0)
        return max(pause_s, min(asked_for_s or 0.0, _LONGEST_PAUSE_S))


RETRIES = Retries()
"""During a run: about a minute in total, enough for a server to restart."""

CHECK_RETRIES = Retries(tries=3)
"""Before a run, while a person waits for the result."""


class _TransientFailureError(Exception):
    """A transient failure; the request is retried."""

    def __init__(self, message: str, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.pause_s = pause_s


class _RefusedError(Exception):
    """A permanent failure; retrying would not help."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ChatClient:
    """Requests chat completions from one server. Use as an asynchronous context manager.

    Args:
        generation: Address of the server, name of the key's variable, timeout and concurrency.
        model: Name of the model on the server.
        options: ``chat_template_kwargs`` of every request; empty for none.
        retries: How often a request is tried.

    Raises:
        InputError: The variable that should hold the key is not set.
    """

    def __init__(
        self, generation: GenerationSpec, model: str, options: Mapping[str, Any], retries: Retries = RETRIES
    ) -> None:
        self._url = f"{generation.endpoint}/chat/completions"
        self._model = model
        self._options = dict(options)
        self._retries = retries
        self._timeout = aiohttp.ClientTimeout(total=generation.timeout_s, sock_connect=min(30.0, generation.timeout_s))
        self._limit = generation.concurrency
        self._headers = _headers(generation)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ChatClient:
        connector = aiohttp.TCPConnector(limit=self._limit)
        self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def complete(
        self, messages: Sequence[Mapping[str, str]], sampling: SamplingSpec, seed: int, what: str
    ) -> Completion:
        """Request one completion, with retries.

        Args:
            messages: The chat, in the form that the model's template accepts.
            sampling: How tokens are sampled, and at most how many.
            seed: Seed of this response; its low 31 bits are sent.
            what: Name of the request in error messages.

        Raises:
            UnitError: The server refused the request, or every try failed.
        """
        body = self._body(messages, sampling, seed)
        for failures in range(1, self._retries.tries + 1):
            try:
                return await self._ask(body)
            except _RefusedError as error:
                raise UnitError(f"{what}: the server at {self._url} refused it: {error}.", code="refused") from None
            except _TransientFailureError as error:
                if failures == self._retries.tries:
                    raise UnitError(
                        f"{what}: no answer from {self._url} in {failures} tries; the last time: {error}.",
                        code="endpoint_failed",
                    ) from None
                await asyncio.sleep(self._retries.pause_s(failures, error.pause_s))
        raise AssertionError

    async def check(self) -> None:
        """Request a single token, so that a wrong address, key or model name is found before a model is loaded.

        Raises:
            InputError: One of them is wrong, or nothing answers at the address.
        """
        body = self._body([{"role": "user", "content": "Hi"}], SamplingSpec(temperature=0, max_new_tokens=1), 0)
        for failures in range(1, self._retries.tries + 1):
            try:
                await self._ask(body)
            except _RefusedError as error:
                raise self._why_refused(error) from None
            except _TransientFailureError as error:
                if failures == self._retries.tries:
                    raise InputError(
                        f"nothing useful answers at {self._url}: {error}.",
                        code="no_endpoint",
                        field="generation.endpoint",
                        hint="Is the server up, and is this its address from the machine that runs the worker?",
                    ) from None
                await asyncio.sleep(self._retries.pause_s(failures, error.pause_s))
            else:
                return

    def _body(self, messages: Sequence[Mapping[str, str]], sampling: SamplingSpec, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed % _SEED_RANGE,
        }
        return body | ({"chat_template_kwargs": self._options} if self._options else {})

    async def _ask(self, body: Mapping[str, Any]) -> Completion:
        assert self._session is not None
        try:
            async with self._session.post(self._url, json=body) as response:
                text = await response.text()
                status, pause_s = response.status, _retry_after(response.headers)
        except TimeoutError as error:
            raise _TransientFailureError(f"no answer in time ({type(error).__name__}, generation.timeout_s)") from None
        except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            raise _TransientFailureError(f"{type(error).__name__}: {error}") from None
        if status in _TRANSIENT_STATUSES or status >= 500:
            raise _TransientFailureError(f"status {status}: {_reason(text)}", pause_s)
        if status != 200:
            raise _RefusedError(status, f"status {status}: {_reason(text)}")
        return _completion(text)

    def _why_refused(self, error: _RefusedError) -> InputError:
        if error.status in (401, 403):
            return InputError(
                f"the server at {self._url} rejects this key: {error}.",
                code="endpoint_unauthorised",
                field="generation.api_key_env",
                hint="Name the environment variable that holds the server's key, and set it where the worker runs.",
            )
        is_path = error.status in (404, 405) and self._model not in str(error)
        return InputError(
            f"the server at {self._url} does not serve {self._model!r}: {error}.",
            code="endpoint_refused",
            field="generation.endpoint" if is_path else "generation.model",
            hint="The address usually ends in /v1, and its /models lists what is served under which name.",
        )


def _headers(generation: GenerationSpec) -> dict[str, str]:
    if generation.api_key_env is None:
        return {}
    key = os.environ.get(generation.api_key_env)
    if not key:
        raise InputError(
            f"the environment variable {generation.api_key_env} is not set where the worker runs.",
            code="no_api_key",
            field="generation.api_key_env",
            hint="Set it there, or leave the field out for a server that asks for no key.",
        )
    return {"Authorization": f"Bearer {key}"}


def _retry_after(headers: Mapping[str, str]) -> float | None:
    try:
        return max(0.0, float(headers.get("Retry-After", "")))
    except ValueError:
        return None


def _reason(text: str) -> str:
    """Extract the error message from a server's reply, on one line."""
    try:
        detail = json.loads(text)
    except ValueError:
        detail = text
    if isinstance(detail, dict):
        detail = detail.get("error") or detail.get("message") or detail.get("detail") or detail
    if isinstance(detail, dict):
        detail = detail.get("message", detail)
    return " ".join(str(detail).split())[:300].rstrip(".") or "no reason given"


def _completion(text: str) -> Completion:
    try:
        choice = json.loads(text)["choices"][0]
        message = choice["message"]
        content, reason = message.get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _TransientFailureError(f"its answer is not a chat completion ({error!r})") from None
    if not isinstance(content, str) or content.lstrip().startswith("<think>"):
        reasoned = content or message.get("reasoning_content") or message.get("reasoning")
        what = "it reasons before it answers; switch that off in the server" if reasoned else "it answers with no text"
        # An empty string is a valid response without content; a missing one, or one that starts with reasoning, is not.
        raise _RefusedError(200, what)
    return Completion(content, "length" if reason == "length" else "stop")
