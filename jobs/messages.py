"""The messages of a chat, in the form of chat templates and the OpenAI protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

ChatRole = Literal["system", "developer", "user", "assistant", "tool"]

INSTRUCTING_ROLES = ("system", "developer")
"""Roles whose messages instruct the model; they are not counted as turns."""


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """One message of a chat.

    Attributes:
        role: Author of the message.
        content: Text of the message; ``""`` where the input has null or none, as beside tool calls.
        reasoning: What an assistant's message reasons before its content, where the input has that in a field of its
            own; None for none.
        tool_calls: Tool calls of an assistant's message: a list of objects as JSON text, so that the message stays
            hashable; None for none.
        name: Name of the author or, in a tool's result, of the tool; None for none.
        tool_call_id: Id of the call that a tool's result answers; None for none.
    """

    role: ChatRole
    content: str
    reasoning: str | None = None
    tool_calls: str | None = None
    name: str | None = None
    tool_call_id: str | None = None

    def more(self) -> dict[str, Any]:
        """Return the fields besides role, content and reasoning that are set, as a chat template takes them.

        The arguments of a tool call become an object where they are the JSON text of one: the OpenAI protocol sends
        text, and templates write objects.

        Example:
            >>> ChatMessage("tool", "4", tool_call_id="c1").more()
            {'tool_call_id': 'c1'}
        """
        found: dict[str, Any] = {}
        if self.tool_calls is not None:
            found["tool_calls"] = [_with_parsed_arguments(call) for call in json.loads(self.tool_calls)]
        if self.name is not None:
            found["name"] = self.name
        if self.tool_call_id is not None:
            found["tool_call_id"] = self.tool_call_id
        return found


def _with_parsed_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function")
    if isinstance(function, dict):
        return call | {"function": _with_parsed_arguments(function)}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return call | {"arguments": parsed} if isinstance(parsed, dict) else call
