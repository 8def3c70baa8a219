"""Chat completions from a server that speaks the OpenAI protocol: each request is retried until it is answered.

The only module that uses aiohttp. Transient failures (too many requests, a server error, a lost connection, a timeout)
are retried after a pause; permanent ones (no key, no such model, a prompt that is too long) raise at once.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp

from ...jobs.errors import InputError, UnitError
from ...jobs.specs.endpoint_keys import refuse_key
from ...jobs.specs.spec_parts import GenerationSpec, SamplingSpec
from .answers import (
    TRANSIENT_STATUSES,
    Completion,
    RefusedError,
    TransientFailureError,
    read_check,
    read_completion,
    reason_of,
)

NEUTRAL_SAMPLING: Mapping[str, float] = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
"""Sampling that a spec does not have, switched off: a server may take it from the model's generation_config.json."""

_EXTRA_FIELDS: Mapping[str, Any] = {**NEUTRAL_SAMPLING, "return_token_ids": True}
"""Fields that some servers refuse because they do not know them; the others ignore those that they do not know."""

_LONGEST_PAUSE_S = 30.0
_FAILURES_TOLD = 2
"""Failures of a request from which on its wait is reported: many a first failure is over within half a second."""

_SEED_RANGE = 2**31
"""Servers accept seeds of 31 bits; those of rollouts have 63."""


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


@dataclass(frozen=True, slots=True)
class ServerCheck:
    """What a first request found out about a server.

    Attributes:
        prompt_token_ids: Ids of the request's prompt at the server; None where it does not return them.
        left_out: Fields of a request that it does not take.
    """

    prompt_token_ids: tuple[int, ...] | None = None
    left_out: tuple[str, ...] = ()


class ChatClient:
    """Requests chat completions from one server. Use as an asynchronous context manager.

    Args:
        generation: Address of the server, name of the key's variable, timeout and concurrency.
        model: Name of the model on the server.
        options: ``chat_template_kwargs`` of every request; empty for none.
        retries: How often a request is tried.
        left_out: Fields that the server does not take, as ``check`` found.
        on_wait: Called with a sentence that says why, when a request has failed twice and is retried after a pause,
            and with ``""`` once no request waits any more.

    Raises:
        InputError: The variable that should hold the key is not set, or may not be sent to a server.
    """

    def __init__(
        self,
        generation: GenerationSpec,
        model: str,
        options: Mapping[str, Any],
        retries: Retries = RETRIES,
        left_out: Sequence[str] = (),
        on_wait: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._on_wait = on_wait
        self._num_waiting = 0
        self._url = f"{generation.endpoint}/chat/completions"
        self._model = model
        self._options = dict(options)
        self._extra = {name: value for name, value in _EXTRA_FIELDS.items() if name not in left_out}
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
        with ExitStack() as waiting:
            for failures in range(1, self._retries.tries + 1):
                try:
                    return read_completion(await self._ask(body), sampling.max_new_tokens)
                except RefusedError as error:
                    raise UnitError(f"{what}: the server at {self._url} refused it: {error}.", code="refused") from None
                except TransientFailureError as error:
                    if failures == self._retries.tries:
                        raise UnitError(
                            f"{what}: no answer from {self._url} in {failures} tries; the last time: {error}.",
                            code="endpoint_failed",
                        ) from None
                    if failures == _FAILURES_TOLD:
                        waiting.enter_context(self._waiting(f"No answer from {self._url}: {error}."))
                    await asyncio.sleep(self._retries.pause_s(failures, error.pause_s))
        raise AssertionError

    @contextmanager
    def _waiting(self, reason: str) -> Iterator[None]:
        """Report that a request waits, and afterwards, when it is the last that does, that none waits any more."""
        self._num_waiting += 1
        self._on_wait(reason)
        try:
            yield
        finally:
            self._num_waiting -= 1
            if not self._num_waiting:
                self._on_wait("")

    async def check(self, messages: Sequence[Mapping[str, str]]) -> ServerCheck:
        """Request a single token, so that a wrong address, key or model name is found before a model is loaded.

        A server that refuses the request with fields that it does not know is asked once more without them.

        Args:
            messages: Any chat, in the form that the model's template accepts.

        Raises:
            InputError: One of them is wrong, nothing answers at the address, or the server reasons before it answers.
        """
        sampling = SamplingSpec(temperature=0, max_new_tokens=1)
        try:
            return ServerCheck(await self._one_token(self._body(messages, sampling, 0)))
        except RefusedError as error:
            if error.status not in (400, 422) or not self._extra:
                raise self._why_refused(error) from None
        left_out, self._extra = tuple(self._extra), {}
        try:
            return ServerCheck(await self._one_token(self._body(messages, sampling, 0)), left_out)
        except RefusedError as error:
            raise self._why_refused(error) from None

    async def _one_token(self, body: Mapping[str, Any]) -> tuple[int, ...] | None:
        """Ask until there is an answer; return the ids of the prompt, None where the server does not return them."""
        for failures in range(1, self._retries.tries + 1):
            try:
                return read_check(await self._ask(body))
            except TransientFailureError as error:
                if failures == self._retries.tries:
                    raise InputError(
                        f"nothing useful answers at {self._url}: {error}.",
                        code="no_endpoint",
                        field="generation.endpoint",
                        hint="Is the server up, and is this its address from the machine that runs the worker?",
                    ) from None
                await asyncio.sleep(self._retries.pause_s(failures, error.pause_s))
        raise AssertionError

    def _body(self, messages: Sequence[Mapping[str, str]], sampling: SamplingSpec, seed: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "messages": list(messages),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
            "seed": seed % _SEED_RANGE,
            **self._extra,
        }
        return body | ({"chat_template_kwargs": self._options} if self._options else {})

    async def _ask(self, body: Mapping[str, Any]) -> str:
        """Send a request once and return the body of an answer with status 200."""
        assert self._session is not None
        try:
            async with self._session.post(self._url, json=body) as response:
                text = await response.text()
                status, pause_s = response.status, _retry_after(response.headers)
        except TimeoutError as error:
            raise TransientFailureError(f"no answer in time ({type(error).__name__}, generation.timeout_s)") from None
        except (aiohttp.ClientError, OSError, UnicodeDecodeError) as error:
            raise TransientFailureError(f"{type(error).__name__}: {error}") from None
        if status in TRANSIENT_STATUSES or status >= 500:
            raise TransientFailureError(f"status {status}: {reason_of(text)}", pause_s)
        if status != 200:
            raise RefusedError(status, f"status {status}: {reason_of(text)}")
        return text

    def _why_refused(self, error: RefusedError) -> InputError:
        if error.status in (401, 403):
            return InputError(
                f"the server at {self._url} rejects this key: {error}.",
                code="endpoint_unauthorised",
                field="generation.api_key_env",
                hint="Name the environment variable that holds the server's key, and set it where the worker runs.",
            )
        if error.status == 200 or (error.status in (400, 422) and self._model not in str(error)):
            return InputError(
                f"the server at {self._url} does not answer as this needs: {error}.",
                code="endpoint_refused",
                field="generation.endpoint",
                hint="docs/given.md lists what a server is sent; vLLM, SGLang and transformers serve take it.",
            )
        is_path = error.status in (404, 405) and self._model not in str(error)
        return InputError(
            f"the server at {self._url} does not serve {self._model!r}: {error}.",
            code="endpoint_refused",
            field="generation.endpoint" if is_path else "generation.model",
            hint="The address usually ends in /v1, and its /models lists what is served under which name.",
        )


def _headers(generation: GenerationSpec) -> dict[str, str]:
    # Checked here too, where the key is read: the names that are allowed hold on every path to a worker.
    refuse_key(generation)
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
