"""What a simulated user is told, how the chat looks from its side, and how it ends a conversation. Pure.

The user's model sees the chat mirrored: its own messages are those of ``assistant``, and the answers of the model under
study those of ``user``. So that the chat begins with a message of ``user``, as chat templates require, a fixed request
for the first message precedes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..messages import INSTRUCTING_ROLES, ChatMessage
from .topics import UserPersona

END_MARK = "[END OF CONVERSATION]"
"""What a simulated user writes at the end of a line, or on one of its own, to end the conversation."""

OPENING_REQUEST = "Write the first message."
"""What the user's model is asked at the beginning, in place of an answer."""

_MARK = re.compile(re.escape(END_MARK) + r"\W*$", re.IGNORECASE | re.MULTILINE)
_SIDES = {"user": "assistant", "assistant": "user"}


@dataclass(frozen=True, slots=True)
class SimulatedUser:
    """Who plays the user of a dialogue, and how long.

    Attributes:
        instructions: System prompt of the user's model.
        exchanges: Most exchanges, each a message of the user and an answer.
    """

    instructions: str
    exchanges: int


@dataclass(frozen=True, slots=True)
class UserTurn:
    """What a simulated user is asked before the model can answer.

    Attributes:
        messages: The chat from the user's side; ends with a message of ``user``.
        seed: 63-bit seed of the user's message.
    """

    messages: tuple[ChatMessage, ...]
    seed: int


def instructions(persona: UserPersona, topic: str) -> str:
    """Write the system prompt of a simulated user.

    Args:
        persona: The person to play.
        topic: What the conversation is about, in the second person.

    Example:
        >>> ada = UserPersona("ada", "You are Ada, a baker.", "You write briefly.", ("Your oven is too hot.",))
        >>> instructions(ada, ada.topics[0]).splitlines()[2]
        'You are Ada, a baker.'
    """
    return (
        "You play a person who talks with an AI assistant. Stay this person throughout, and never answer as the "
        "assistant.\n\n"
        f"{persona.description}\n{persona.manner}\n\n"
        f"What you talk about: {topic}\n\n"
        "Write only the person's next message, of one to five sentences: no name before it, no quotation marks and no "
        "remarks about your part. Take up what the assistant said, and lead the conversation on. When the person would "
        f"end it, write {END_MARK} on a line of its own."
    )


def mirrored(system_prompt: str, said: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Return a chat as the user's model sees it, up to where its next message begins.

    Args:
        system_prompt: The instructions of the user.
        said: The chat so far; system messages are those of the other side, and left out.

    Example:
        >>> chat = [ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello.")]
        >>> [(message.role, message.content) for message in mirrored("Be Ada.", chat)][1:]
        [('user', 'Write the first message.'), ('assistant', 'Hi'), ('user', 'Hello.')]
    """
    turns = (message for message in said if message.role not in INSTRUCTING_ROLES)
    swapped = (ChatMessage(_SIDES[message.role], message.content) for message in turns)  # pyright: ignore[reportArgumentType]
    return (ChatMessage("system", system_prompt), ChatMessage("user", OPENING_REQUEST), *swapped)


def said_before_end(text: str) -> tuple[str, bool]:
    r"""Divide a simulated user's message at the end mark.

    Args:
        text: What the user's model wrote.

    Returns:
        The text before the first mark at the end of a line, without space around; and whether the conversation is over:
        there is such a mark, or nothing was said.

    Example:
        >>> said_before_end("Thank you!\n[END OF CONVERSATION]\nBye"), said_before_end(" Why? "), said_before_end(" ")
        (('Thank you!', True), ('Why?', False), ('', True))
    """
    found = _MARK.search(text)
    said = (text if found is None else text[: found.start()]).strip()
    return said, found is not None or not said
