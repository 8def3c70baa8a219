"""A conversation with a model beside its axis: one reply after another, and what it would have said without edits."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from ...jobs.errors import InputError
from ...jobs.messages import ChatMessage
from ...jobs.specs.interventions_spec import EditSetting
from ...jobs.specs.spec_parts import SamplingSpec
from .engine_loop import EngineLoop, Event, Failed, Finished, Piece
from .live_model import LiveModel
from .placed_reply import Place
from .prepared_call import PreparedCall


@dataclass(frozen=True, slots=True)
class Said:
    """A reply that has ended.

    Attributes:
        text: Its text.
        place: Where it lies on the axis; None for a reply that was stopped.
        is_plain: Whether nothing was done along the axis, for comparison.
        is_stopped: Whether it was stopped before its end.
    """

    text: str
    place: Place | None
    is_plain: bool
    is_stopped: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        place = {} if self.place is None else self.place.as_dict()
        return {"reply": self.text, "is_stopped": self.is_stopped} | place


@dataclass(frozen=True, slots=True)
class _Stopped:
    """Whoever reads a turn wants no more of it."""


class Turn:
    """The reply to one message while it comes, and beside it the plain reply where that is asked for.

    Args:
        model: The model that answers.
        loop: Runs its engine.
        calls: The chat, once with the edits and, to compare, once without.
    """

    def __init__(self, model: LiveModel, loop: EngineLoop, calls: list[PreparedCall]) -> None:
        self._model = model
        self._loop = loop
        # Simple queues may be written to by a signal's handler in the middle of a read.
        self._events: list[SimpleQueue[Event | _Stopped]] = [SimpleQueue() for _ in calls]
        self._lives = [call.live(model, 0, queue.put) for call, queue in zip(calls, self._events, strict=True)]

    def stop(self) -> None:
        """End the replies where they are; also from a signal's handler."""
        for live, queue in zip(self._lives, self._events, strict=True):
            live.cancel()
            queue.put(_Stopped())

    def replies(self) -> Iterator[str | Said]:
        """Yield the text of the reply as it comes, then its end; then the same of the plain reply.

        Both are generated at the same time.

        Raises:
            AtlasError: The model failed.
        """
        for live in self._lives:
            self._loop.submit(live)
        try:
            for number in range(len(self._lives)):
                yield from self._reply(number)
        finally:
            for live in self._lives:
                live.cancel()

    def _reply(self, number: int) -> Iterator[str | Said]:
        text = ""
        while True:
            event = self._events[number].get()
            if isinstance(event, Piece):
                text += event.text
                yield event.text
            elif isinstance(event, Finished):
                yield Said(event.text, self._model.placing.place(event.captured), is_plain=number > 0)
                return
            elif isinstance(event, Failed):
                raise event.error
            else:
                yield Said(text, None, is_plain=number > 0, is_stopped=True)
                return


class Conversation:
    """A conversation that goes on with the replies under the edits.

    Args:
        model: The model that answers.
        loop: Runs its engine.
        settings: What is done along the axis.
        sampling: How replies are sampled, and their most tokens.
        system_prompt: The system prompt; empty for none.
        compare: Whether each message is answered without the edits, too.
        seed: Decides the replies, together with the number of the turn; None: other ones each time.
    """

    def __init__(
        self,
        model: LiveModel,
        loop: EngineLoop,
        settings: tuple[EditSetting, ...],
        sampling: SamplingSpec,
        *,
        system_prompt: str = "",
        compare: bool = False,
        seed: int | None = None,
    ) -> None:
        self._model = model
        self._loop = loop
        self._settings = settings
        self._sampling = sampling
        self._compare = compare
        self._seed = secrets.randbits(62) if seed is None else seed
        self._messages = [ChatMessage("system", system_prompt)] if system_prompt else []
        self._num_turns = 0

    def turn(self, message: str) -> Turn:
        """Begin the reply to a message; ``answered`` ends it.

        Args:
            message: What the user says.

        Raises:
            InputError: The conversation has become as long as the model's context.
        """
        messages = (*self._messages, ChatMessage("user", message))
        room = self._model.max_context - self._model.prompt_length(messages)
        if room < 1:
            raise InputError(
                f"the conversation is as long as the model's context of {self._model.max_context} tokens.",
                code="too_long",
                hint="Begin another one.",
            )
        sampling = self._sampling.model_copy(update={"max_new_tokens": min(room, self._sampling.max_new_tokens)})
        self._num_turns += 1
        intervention = self._model.intervention(self._settings)
        return Turn(
            self._model,
            self._loop,
            [
                PreparedCall(
                    f"chat{self._num_turns}{name}", messages, sampling, self._seed + self._num_turns, edits, done
                )
                for name, edits, done in [
                    ("", self._settings, intervention),
                    *([("plain", (), None)] if self._compare else []),
                ]
            ],
        )

    def answered(self, message: str, said: Said) -> None:
        """Go on from a reply; one that was stopped is kept as far as it came.

        Args:
            message: What the user said.
            said: The reply to it.
        """
        self._messages += [ChatMessage("user", message), ChatMessage("assistant", said.text)]
