"""The messages of a chat, in the form of chat templates and the OpenAI protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ChatRole = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat.

    Attributes:
        role: Author of the message.
        content: Text of the message.
    """

    role: ChatRole
    content: str
