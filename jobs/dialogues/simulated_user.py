"""What a simulated user is told, how the chat looks from its side, and how it ends a conversation. Pure.

The user's model sees the chat mirrored: its own messages are those of ``assistant``, and the answers of the model under
study those of ``user``. The instructions are the first message, to which the user's model replies with what the person
says first: a small model heeds them there, and loses the person and the topic where they are a system prompt.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..messages import INSTRUCTING_ROLES, ChatMessage
from .topics import UserPersona

END_MARK = "[END OF CONVERSATION]"
"""What a simulated user writes at the end of a line, or on one of its own, to end the conversation."""

SYSTEM_PROMPT = "You are a person who talks with an AI assistant."
"""System prompt of every simulated user, so that no template puts in that it is an assistant."""

_MARK = re.compile(re.escape(END_MARK) + r"\W*$", re.IGNORECASE | re.MULTILINE)
_SIDES = {"user": "assistant", "assistant": "user"}


@dataclass(frozen=True, slots=True)
class SimulatedUser:
    """Who plays the user of a dialogue, and how long.

    Attributes:
        instructions: First message to the user's model.
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
    """Write the message to which a simulated user replies with the first thing that it says.

    Args:
        persona: The person to play.
        topic: What the conversation is about, in the second person.

    Example:
        >>> ada = UserPersona("ada", "You are Ada, a baker.", "You write briefly.", ("Your oven is too hot.",))
        >>> instructions(ada, ada.topics[0]).splitlines()[0]
        'You are Ada, a baker.'
    """
    return (
        f"{persona.description}\n{persona.manner}\n\n{topic}\n\n"
        "You are talking about this with an AI assistant. Write only what you say to it, in one to five sentences, and "
        "stay who you are. Take up what it answers, and lead the conversation on. When you have nothing more to say, "
        f"write {END_MARK} on a line of its own."
    )


def mirrored(instructed: str, said: Sequence[ChatMessage]) -> tuple[ChatMessage, ...]:
    """Return a chat as the user's model sees it, up to where its next message begins.

    Args:
        instructed: The instructions of the user.
        said: The chat so far; system messages are those of the other side, and left out.

    Example:
        >>> chat = [ChatMessage("user", "Hi"), ChatMessage("assistant", "Hello.")]
        >>> [(message.role, message.content) for message in mirrored("Be Ada.", chat)][1:]
        [('user', 'Be Ada.'), ('assistant', 'Hi'), ('user', 'Hello.')]
    """
    turns = (message for message in said if message.role not in INSTRUCTING_ROLES)
    swapped = (ChatMessage(_SIDES[message.role], message.content) for message in turns)  # pyright: ignore[reportArgumentType]
    return (ChatMessage("system", SYSTEM_PROMPT), ChatMessage("user", instructed), *swapped)


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
