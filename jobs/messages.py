"""The messages of a chat, as chat templates and servers take them. Knows nothing of where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ChatRole = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat.

    Attributes:
        role: Whose message it is.
        content: Its text.
    """

    role: ChatRole
    content: str
