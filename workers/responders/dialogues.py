"""A responder for dialogues: it has a simulated user say what a chat lacks, and ends those that outgrow the context.

A dialogue ends before the turn to which the simulated user said nothing or its end mark, and before one whose prompt
and longest response are beyond the model's context, or, where an engine plays the user, whose user's message would be.
The rest of its rows is not reached. A first turn is never cut off like that: one that does not fit is refused. Wraps
any responder, which sees complete requests only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ...jobs.dialogues.simulated_user import said_before_end
from ...jobs.errors import UnitError
from ...jobs.messages import ChatMessage
from ...jobs.poolings import keeps_tokens
from ...jobs.work.rollouts import ArrayName
from ...jobs.work.units import RolloutRequest
from ..chat.renderer import ChatRenderer
from ..engine import CapturedRollout, EngineSettings, Reader, Responder
from ..not_reached import not_reached
from .users import Said, User


@dataclass(frozen=True, slots=True)
class ChatRoom:
    """Whether a chat and what is to be written in it fit the context of a model.

    Attributes:
        renderer: Renders chats for that model.
        max_context: Longest sequence that it takes, in tokens.
        max_new_tokens: Most tokens that are to be written.
    """

    renderer: ChatRenderer
    max_context: int
    max_new_tokens: int

    def fits(self, messages: Sequence[ChatMessage]) -> bool:
        """Return whether there is room after a chat.

        Args:
            messages: The chat up to where the model goes on.
        """
        return self._prompt_tokens(messages) + self.max_new_tokens <= self.max_context

    def refusal_of_user(self, request: RolloutRequest) -> UnitError:
        """Make the error of a first message of the user for which there is no room.

        Args:
            request: The request that lacks the message.
        """
        assert request.user is not None
        prompt = self._prompt_tokens(request.user.messages)
        room = self.max_context - prompt
        shorter = "shorten the description, the manner or the topic"
        return UnitError(
            f"{request.address}: {prompt} prompt tokens and {self.max_new_tokens} new ones of the user's first message "
            f"exceed the context of {self.max_context} of the user's model.",
            code="too_long",
            hint=f"Set drift.user.max_new_tokens to at most {room}, or {shorter}."
            if room > 0
            else f"{shorter.capitalize()} to fewer than {self.max_context} tokens together.",
        )

    def _prompt_tokens(self, messages: Sequence[ChatMessage]) -> int:
        return len(self.renderer.render(messages))


@dataclass(frozen=True, slots=True)
class RowShape:
    """The arrays of a run's rows, from which one without values is made.

    Attributes:
        settings: Which layers and poolings are captured.
        d_model: Width of the residual stream.
    """

    settings: EngineSettings
    d_model: int

    def not_reached(self, request: RolloutRequest) -> CapturedRollout:
        """Make the row of a turn that its dialogue did not reach; see ``workers/not_reached``."""
        capture, num_layers = self.settings.capture, len(self.settings.layers)
        vectors: dict[ArrayName, np.ndarray] = {}
        tokens: dict[ArrayName, np.ndarray] = {}
        for point in capture.hook_points:
            for pooling in capture.poolings:
                if keeps_tokens(pooling):
                    shape = (len(self.settings.token_layers), 0, self.d_model)
                    tokens[point, pooling] = np.empty(shape, np.float32)
                else:
                    vectors[point, pooling] = np.full((num_layers, self.d_model), np.nan, np.float32)
        return not_reached(request, vectors, tokens)


class DialogueResponder:
    """Has dialogues with the model behind another responder.

    Args:
        responder: Answers complete requests.
        shape: Arrays of the rows.
        room: Whether a chat and its response fit the model's context.
        user: Plays the user; None where all turns are scripted.
        user_room: Whether a chat and the user's message fit the context of the user's model; None where that is not
            known here.

    Attributes:
        prefetch: That of the responder.
    """

    def __init__(
        self,
        responder: Responder,
        shape: RowShape,
        room: ChatRoom,
        user: User | None = None,
        user_room: ChatRoom | None = None,
    ) -> None:
        self._responder = responder
        self._shape = shape
        self._room = room
        self._user = user
        self._user_room = user_room
        self.prefetch = responder.prefetch

    @property
    def reader(self) -> Reader:
        """The reader of the responder."""
        return self._responder.reader

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        """Answer the requests of dialogues; see ``Responder.generate``."""
        talk = _Talk(self._shape, self._room, self._user, self._user_room, next_request)
        make_rows = self._responder.generate if self._user is None else self._user.rows
        for row in make_rows(talk.next_complete):
            talk.num_running -= 1
            yield row
            yield from talk.take_ended()
        yield from talk.take_ended()
        talk.raise_refusal()


class _Talk:
    """One call of ``generate``: what waits between the user and the model.

    Attributes:
        num_running: Complete requests that the model has.
    """

    def __init__(
        self,
        shape: RowShape,
        room: ChatRoom,
        user: User | None,
        user_room: ChatRoom | None,
        next_request: Callable[[], RolloutRequest | None],
    ) -> None:
        self._shape = shape
        self._room = room
        self._user = user
        self._user_room = user_room
        self._pull = next_request
        self._complete: deque[RolloutRequest] = deque()
        self._ended: deque[CapturedRollout] = deque()
        self._refusal: BaseException | None = None
        self.num_running = 0

    def next_complete(self) -> RolloutRequest | None:
        """Return the next request that the model can answer; None when there is none at the moment."""
        while True:
            self._take_messages(wait=False)
            if self._complete:
                self.num_running += 1
                return self._complete.popleft()
            if self._refusal is not None or (self._user is not None and self._user.is_busy):
                request = None
            else:
                request = self._pull()
            if request is not None:
                self._begin(request)
            elif self.num_running or not self._take_messages(wait=True):
                return None

    def take_ended(self) -> Iterator[CapturedRollout]:
        """Yield the rows at which dialogues have ended."""
        while self._ended:
            yield self._ended.popleft()

    def raise_refusal(self) -> None:
        """Raise the error of a message of the user, now that nothing else is in flight that did not cause it."""
        if self._refusal is not None:
            raise self._refusal

    def _begin(self, request: RolloutRequest) -> None:
        """Ask the user for what a request lacks; a complete one is ready, unless it is beyond the context."""
        if request.user is None:
            self._add(request)
        elif self._user_room is None or self._user_room.fits(request.user.messages):
            assert self._user is not None, "a request for a simulated user, and there is none"
            self._user.ask(request)
        elif request.is_follow_up:
            self._ended.append(self._shape.not_reached(request))
        else:
            self._refusal = self._refusal or self._user_room.refusal_of_user(request)

    def _take_messages(self, *, wait: bool) -> bool:
        """Take what the user has said since; return whether there was anything."""
        said = [] if self._user is None else self._user.answers(wait=wait)
        for one in said:
            self._hear(one)
        return bool(said)

    def _hear(self, said: Said) -> None:
        if said.error is not None:
            self._refusal = self._refusal or said.error
            return
        text, is_over = said_before_end(said.text)
        messages = (*said.request.messages, ChatMessage("user", text))
        request = replace(said.request, messages=messages, user=None)
        if is_over:
            # What was said before the mark stays with the row that has no answer.
            self._ended.append(self._shape.not_reached(request if text else said.request))
        else:
            self._add(request)

    def _add(self, request: RolloutRequest) -> None:
        # The first turn of a dialogue is not cut off: where it does not fit, the engine says what would.
        if not request.is_follow_up or self._room.fits(request.messages):
            self._complete.append(request)
        else:
            self._ended.append(self._shape.not_reached(request))
