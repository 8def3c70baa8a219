"""Existing conversations as frozen values. Knows nothing of their files except a name for error messages."""

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
        role: ``user`` or ``assistant``; the system prompt is a field of the conversation.
        content: Text of the message.
        extra: Additional keys of the message in the input, as a JSON object in text form; ``""`` for none.
    """

    role: Role
    content: str
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One conversation with its address and its index in the input.

    Attributes:
        kind: ``conversation``; for files of the released pipeline role, trait or default.
        persona: Name of the role or trait, or of the file.
        polarity: ``neg`` for the opposite of a trait, else ``pos``.
        prompt_index: That of the released pipeline's line; else 0.
        question_index: That of the released pipeline's line; else the index of the conversation in its file.
        sample_index: Counts conversations with the same prompt and question.
        conversation_index: Index in the whole input.
        system_prompt: The system prompt; ``""`` for none.
        messages: Messages of user and assistant, in order; at least one is the assistant's.
        extra: Additional keys of the conversation in the input, as a JSON object in text form.
        place: Where it was read, for error messages, such as ``talks.jsonl, line 3``.
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
        """Yield the index of each assistant message, the system prompt not counted; each is a row of the run."""
        for index, message in enumerate(self.messages):
            if message.role == "assistant":
                yield index

    @property
    def num_turns(self) -> int:
        """Number of assistant messages."""
        return sum(message.role == "assistant" for message in self.messages)

    def extra_of(self, turn_index: int) -> str:
        """Return the additional keys as JSON: the conversation's and, under ``message``, those of one message.

        Args:
            turn_index: Index of the message.
        """
        own = self.messages[turn_index].extra
        if not own:
            return self.extra
        return json.dumps(json.loads(self.extra) | {"message": json.loads(own)}, sort_keys=True)
