"""Existing conversations as frozen values. Knows nothing of their files except a name for error messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .messages import INSTRUCTING_ROLES, ChatMessage, ChatRole
from .personas import Kind, Polarity


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: Author of the message. A system message that opens the conversation is a field of the conversation;
            further ones, and those of the developer, are messages.
        content: Text of the message; ``""`` where the input has null or none, as beside tool calls.
        extra: Additional keys of the message in the input, all but role and content, as a JSON object in text form;
            ``""`` for none. Those that the next four attributes were read from are among them.
        reasoning: See ``ChatMessage``, as for the rest.
        tool_calls: A list of objects as JSON text; None for none.
        name: Name of the author or of the tool; None for none.
        tool_call_id: Id of the call that a tool's result answers; None for none.
    """

    role: ChatRole
    content: str
    extra: str = ""
    reasoning: str | None = None
    tool_calls: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def chat(self) -> ChatMessage:
        """Return the message without its additional keys."""
        return ChatMessage(self.role, self.content, self.reasoning, self.tool_calls, self.name, self.tool_call_id)


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
        system_prompt: The system message that opens it; ``""`` for none.
        messages: All other messages, in order; at least one is the assistant's, unless it is a prompt.
        extra: Additional keys of the conversation in the input, as a JSON object in text form.
        place: Where it was read, for error messages, such as ``talks.jsonl, line 3``.
        tools: Descriptions of the tools that the model may call, a list as JSON text; None for none. The key is among
            ``extra`` too.
        is_prompt: Whether it is a prompt without an answer: it is read with the header of the response that would come
            next, and that place is its only row.
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
    tools: str | None = None
    is_prompt: bool = False

    def chat(self) -> tuple[ChatMessage, ...]:
        """Return the whole conversation as a chat: its system prompt, if it has one, and then its messages."""
        system = (ChatMessage("system", self.system_prompt),) if self.system_prompt else ()
        return (*system, *(message.chat() for message in self.messages))

    def tool_descriptions(self) -> list[Any] | None:
        """Return the descriptions of the tools as JSON values; None for none."""
        return None if self.tools is None else json.loads(self.tools)

    def turns(self) -> tuple[Message, ...]:
        """Return the messages that are counted as turns: all but those of system and developer."""
        return tuple(message for message in self.messages if message.role not in INSTRUCTING_ROLES)

    def turn_indices(self) -> Iterator[int]:
        """Yield the index of each assistant message among the turns, or of the one after a prompt; each is a row."""
        if self.is_prompt:
            yield len(self.turns())
            return
        for index, message in enumerate(self.turns()):
            if message.role == "assistant":
                yield index

    def prompts(self) -> Iterator[tuple[int, tuple[ChatMessage, ...]]]:
        """Yield each of ``turn_indices`` with the chat before that turn, system messages included."""
        # Made once: a conversation of hundreds of turns has as many prompts, each nearly as long as the whole.
        chat = self.chat()
        places = [place for place, message in enumerate(chat) if message.role not in INSTRUCTING_ROLES]
        for turn_index in self.turn_indices():
            yield turn_index, chat[: [*places, len(chat)][turn_index]]

    @property
    def num_turns(self) -> int:
        """Number of ``turn_indices``: of assistant messages; 1 for a prompt."""
        return 1 if self.is_prompt else sum(message.role == "assistant" for message in self.messages)

    def response(self, turn_index: int) -> str:
        """Return the text of one of ``turn_indices``; ``""`` for that of a prompt.

        Args:
            turn_index: Index of the message among the turns.
        """
        return "" if self.is_prompt else self.turns()[turn_index].content

    def extra_of(self, turn_index: int) -> str:
        """Return the additional keys as JSON: the conversation's and, under ``message``, those of one message.

        Args:
            turn_index: Index of the message among the turns; for a prompt, the message is its last.
        """
        own = self.turns()[-1 if self.is_prompt else turn_index].extra
        if not own:
            return self.extra
        return json.dumps(json.loads(self.extra) | {"message": json.loads(own)}, sort_keys=True)
