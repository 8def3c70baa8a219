"""Conversations that exist already, as frozen values. Knows nothing of the files they came from beyond a name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from .messages import ChatMessage
from .personas import Kind, Polarity

Role = Literal["user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Who speaks; the system prompt stands beside the messages, not among them.
        content: Its text.
        extra: The message's other keys as the text of a JSON object; ``""`` for none.
    """

    role: Role
    content: str
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation with its place in the design and in the input.

    Attributes:
        kind: ``conversation``, or what the released pipeline's file stands for.
        persona: The name of the role or trait, or of the file.
        polarity: ``pos`` but for a trait's opposite.
        prompt_index: Of the released pipeline's line; else 0.
        question_index: Of the released pipeline's line; else the conversation's place in its file.
        sample_index: Tells conversations of the same question apart.
        conversation_index: Its place in the whole input.
        system_prompt: ``""`` for none.
        messages: User and assistant, in order; at least one assistant.
        extra: The input's other keys as the text of a JSON object.
        place: Where it was read, for errors: ``talks.jsonl, line 3``.
    """

    kind: Kind
    persona: str
    polarity: Polarity
    prompt_index: int
    question_index: int
    sample_index: int
    conversation_index: int
    system_prompt: str
    messages: tuple[Message, ...]
    extra: str
    place: str

    def chat(self) -> tuple[ChatMessage, ...]:
        """Return the whole conversation as a chat: its system prompt, if it has one, and then its messages."""
        system = (ChatMessage("system", self.system_prompt),) if self.system_prompt else ()
        return (*system, *(ChatMessage(message.role, message.content) for message in self.messages))

    def turn_indices(self) -> Iterator[int]:
        """Yield the places of the assistant's messages, the system prompt not counted: each is a row."""
        for index, message in enumerate(self.messages):
            if message.role == "assistant":
                yield index

    @property
    def num_turns(self) -> int:
        """Messages of the assistant."""
        return sum(message.role == "assistant" for message in self.messages)

    def extra_of(self, turn_index: int) -> str:
        """Return the input's other keys as JSON: the conversation's and, under ``message``, those of one message.

        Args:
            turn_index: Place of the message.
        """
        own = self.messages[turn_index].extra
        if not own:
            return self.extra
        return json.dumps(json.loads(self.extra) | {"message": json.loads(own)}, sort_keys=True)
