"""Who plays the user of a dialogue: an engine of its own, or the engine that answers; ``served_user`` has a server.

A user takes the requests whose chats lack a message of the user and returns what it says to each. It works beside the
model under study, so that no conversation waits for another. Knows no dialogues: who ends one is decided elsewhere.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from ...jobs.errors import UnitError
from ...jobs.specs.spec_parts import SamplingSpec
from ...jobs.work.addresses import RolloutAddress
from ...jobs.work.units import RolloutRequest
from ..engine import CapturedRollout, Responder, StreamedRequest, StreamingResponder

_MOST_WAITING = 64
"""Requests that an engine of the user's own has at a time, those that wait for room in its batch included."""


@dataclass(frozen=True, slots=True)
class Said:
    """What the user said to a request.

    Attributes:
        request: The request, whose ``user`` was asked.
        text: The message; ``""`` where there is none.
        error: Why there is none; None where there is one.
    """

    request: RolloutRequest
    text: str = ""
    error: BaseException | None = None


class User(Protocol):
    """Plays the user."""

    @property
    def num_asked(self) -> int:
        """Number of requests whose messages were not taken yet."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether it has as many requests as it can work on at a time."""
        ...

    def ask(self, request: RolloutRequest) -> None:
        """Ask for the message that a request lacks; returns at once."""
        ...

    def answers(self, *, wait: bool) -> list[Said]:
        """Return what was said since; with ``wait``, wait for something unless that would be in vain."""
        ...

    def rows(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Answer complete requests with the model under study, see ``Responder.generate``, and work beside it."""
        ...


class OwnEngineUser:
    """An engine of the user's own plays the user, in a thread of its own.

    Args:
        responder: The model under study.
        engine: The user's engine, whose settings say how messages are sampled. What it captures is dropped.
    """

    def __init__(self, responder: Responder, engine: Responder) -> None:
        self._responder = responder
        self._engine = engine
        self._asked: queue.SimpleQueue[RolloutRequest] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[Said] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.num_asked = 0

    @property
    def is_busy(self) -> bool:
        """Whether its queue is full."""
        return self.num_asked >= _MOST_WAITING

    def ask(self, request: RolloutRequest) -> None:
        """Queue the request for a message of the user."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="user", daemon=True)
            self._thread.start()
        self.num_asked += 1
        self._asked.put(request)

    def answers(self, *, wait: bool) -> list[Said]:
        """Return what was said since; see ``User.answers``."""
        found = [self._said.get()] if wait and self.num_asked else []
        while not self._said.empty():
            found.append(self._said.get())
        self.num_asked -= len(found)
        return found

    def rows(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Answer complete requests; see ``User.rows``. What is asked when they end is waited for and dropped."""
        try:
            yield from self._responder.generate(next_request)
        finally:
            while self.num_asked:
                self.answers(wait=True)

    def _work(self) -> None:
        """Answer for ever what is asked; the body of the thread."""
        while True:
            first = self._asked.get()
            flying: dict[RolloutAddress, RolloutRequest] = {}
            waiting = deque([first])

            def following(
                flying: dict[RolloutAddress, RolloutRequest] = flying, waiting: deque[RolloutRequest] = waiting
            ) -> RolloutRequest | None:
                while not self._asked.empty():
                    waiting.append(self._asked.get())
                if not waiting:
                    return None
                request = waiting.popleft()
                asked = as_request(request)
                flying[asked.address] = request
                return asked

            try:
                for row in self._engine.generate(following):
                    self._said.put(Said(flying.pop(row.rollout.address), row.rollout.response))
                if flying:
                    raise UnitError("the user's engine ended before its last message.", code="rows_missing")
            except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for an answer must get one
                for request in (*flying.values(), *waiting):
                    self._said.put(Said(request, error=error))


class SameEngineUser:
    """The engine that answers plays the user too: messages and responses share its running batch.

    Args:
        responder: The model under study, whose engine takes requests that are sampled in different ways.
        answering: How responses are sampled.
        sampling: How the user's messages are sampled.
    """

    def __init__(self, responder: StreamingResponder, answering: SamplingSpec, sampling: SamplingSpec) -> None:
        self._responder = responder
        self._answering = answering
        self._sampling = sampling
        self._waiting: deque[RolloutRequest] = deque()
        self._flying: dict[RolloutAddress, RolloutRequest] = {}
        self._said: list[Said] = []

    @property
    def num_asked(self) -> int:
        """Number of requests whose messages were not taken yet."""
        return len(self._waiting) + len(self._flying) + len(self._said)

    @property
    def is_busy(self) -> bool:
        """Whether a request waits for the batch to have room."""
        return bool(self._waiting)

    def ask(self, request: RolloutRequest) -> None:
        """Queue the request for a message of the user, which joins the batch before other responses."""
        self._waiting.append(request)

    def answers(self, *, wait: bool) -> list[Said]:
        """Return what was said since. It cannot wait, because the batch goes on when this returns."""
        said, self._said = self._said, []
        return said

    def rows(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Answer complete requests and write the user's messages in one stream; see ``User.rows``."""
        self._waiting.clear()
        self._flying.clear()
        self._said.clear()
        for row in self._responder.stream(lambda: self._next(next_request)):
            request = self._flying.pop(row.rollout.address, None)
            if request is None:
                yield row
            else:
                self._said.append(Said(request, row.rollout.response))

    def _next(self, next_request: Callable[[], RolloutRequest | None]) -> StreamedRequest | None:
        complete = None if self._waiting else next_request()
        if complete is not None:
            return StreamedRequest(complete, self._answering)
        if not self._waiting:
            return None
        request = self._waiting.popleft()
        asked = as_request(request)
        self._flying[asked.address] = request
        return StreamedRequest(asked, self._sampling)


def as_request(request: RolloutRequest) -> RolloutRequest:
    """Make the request that asks a model for the user's message.

    Args:
        request: A request whose chat lacks that message.

    Returns:
        A request without intervention, whose address is the place of the message, which no response has.
    """
    turn = request.user
    assert turn is not None
    assert request.address.turn_index is not None
    address = replace(request.address, turn_index=request.address.turn_index - 1)
    return RolloutRequest(address, turn.messages, turn.seed, goes_on=request.goes_on)
