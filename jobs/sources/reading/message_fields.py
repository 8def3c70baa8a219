"""Parse the messages of a conversation: roles, contents in parts, reasoning and tool calls. Knows nothing of files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ...conversation import Message
from ...messages import ChatRole
from .problems import LAYOUT_HINT, Refusal

_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT_PARTS = ("text", "input_text", "output_text")
_REASONING_PARTS = ("reasoning", "thinking")
_REASONING_FIELDS = ("reasoning_content", "reasoning", "thinking")

_SHAREGPT_ROLES: Mapping[str, ChatRole] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bard": "assistant",
    "bing": "assistant",
}

_CALLS_HINT = "Write the calls as the OpenAI protocol does."
_RENAME = "Rename it, or leave it out."


@dataclass(frozen=True, slots=True)
class _Content:
    """The texts of a content: what is said, and what was reasoned before it."""

    text: str
    reasoning: str | None = None


def parse_messages(listed: Any, field: str) -> list[Message]:
    """Parse a list of messages, in the form of chat templates or in that of ShareGPT.

    Args:
        listed: The value in the input: a list, or a list as JSON text.
        field: Name of its key, for errors.

    Raises:
        Refusal: It is no list of messages, or an empty one; names the field.
    """
    if isinstance(listed, str):
        listed = _list_in_text(listed, field, "messages")
    if not isinstance(listed, list):
        raise Refusal("is not a list of messages", field)
    if not listed:
        raise Refusal("is an empty list, and must have messages", field)
    return [_message(value, f"{field}[{number}]") for number, value in enumerate(listed)]


def require_whole_text(text: str, field: str) -> str:
    """Return a text, unless it has a lone surrogate, which JSON can express but UTF-8 and tokenizers cannot.

    Raises:
        Refusal: It has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Refusal(
            f"holds half a character at place {error.start}", field, "Remove the lone \\ud800 to \\udfff escape."
        ) from None
    return text


def as_json(value: Mapping[str, Any]) -> str:
    """Format additional keys as they are stored."""
    return json.dumps(value, sort_keys=True)


def _list_in_text(text: str, field: str, what: str) -> Any:
    """Parse a list that is given as JSON text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        if text.lstrip().startswith("[{'"):
            raise Refusal("is a list written by Python's repr, not JSON", field, "Write it with json.dumps.") from None
        hint = _CALLS_HINT if what == "calls" else LAYOUT_HINT
        raise Refusal(f"is not a list of {what} but a text", field, hint) from None


def _message(value: Any, field: str) -> Message:
    if not isinstance(value, dict):
        raise Refusal("is not an object with role and content", field)
    if "role" not in value and "from" in value:
        return _of_sharegpt(value, field)
    role = _role(value.get("role"), field)
    content = _content(value.get("content"), f"{field}.content", may_be_missing=_may_lack_content(value, role))
    others = {name: other for name, other in value.items() if name not in ("role", "content")}
    return Message(
        role,
        content.text,
        as_json(others) if others else "",
        content.reasoning if content.reasoning is not None else _reasoning(value, role, field),
        _tool_calls(value, role, field),
        _text_or_none(value, "name", field),
        _text_or_none(value, "tool_call_id", field) if role == "tool" else None,
    )


def _role(role: Any, field: str) -> ChatRole:
    if role in _ROLES and isinstance(role, str):
        return cast("ChatRole", role)
    shown = f", not {role[:40]!r}" if isinstance(role, str) else ""
    raise Refusal(f"is system, developer, user, assistant or tool{shown}", f"{field}.role", _RENAME)


def _may_lack_content(value: Mapping[str, Any], role: str) -> bool:
    """Whether a message is complete without a content: one that calls tools."""
    return role == "assistant" and bool(value.get("tool_calls"))


def _of_sharegpt(value: Mapping[str, Any], field: str) -> Message:
    author = value.get("from")
    role = _SHAREGPT_ROLES.get(author) if isinstance(author, str) else None
    if role is None:
        shown = f", not {author[:40]!r}" if isinstance(author, str) else ""
        raise Refusal(
            f"is system, human or gpt{shown}",
            f"{field}.from",
            "Calls of tools and their results are read as messages with the role assistant and tool_calls, or tool.",
        )
    others = {name: other for name, other in value.items() if name not in ("from", "value")}
    content = _content(value.get("value"), f"{field}.value", may_be_missing=False)
    return Message(role, content.text, as_json(others) if others else "", content.reasoning)


def _content(content: Any, field: str, *, may_be_missing: bool) -> _Content:
    if content is None and may_be_missing:
        return _Content("")
    if isinstance(content, list):
        return _joined(content, field)
    if not isinstance(content, str):
        raise Refusal(f"is not a text but {_called(content)}", field)
    return _Content(require_whole_text(content, field))


def _joined(parts: Sequence[Any], field: str) -> _Content:
    """Join the parts of a content: the texts, and separately the reasoning; other parts are refused by their type."""
    texts: list[str] = []
    reasoning: list[str] = []
    for number, part in enumerate(parts):
        place = f"{field}[{number}]"
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if isinstance(part, dict) and kind in _REASONING_PARTS:
            text = next((part[key] for key in ("text", *_REASONING_PARTS) if isinstance(part.get(key), str)), None)
            into = reasoning
        else:
            text = part.get("text") if isinstance(part, dict) and kind in _TEXT_PARTS else None
            into = texts
        if not isinstance(text, str):
            raise Refusal(f"is not a part of type text{_named(kind)}", place, "Only texts can be read.")
        into.append(require_whole_text(text, place))
    return _Content("".join(texts), "".join(reasoning) if reasoning else None)


def _named(kind: Any) -> str:
    return f" but of type {kind[:40]}" if isinstance(kind, str) and kind not in _TEXT_PARTS else ""


def reasoning_beside(keys: Mapping[str, Any]) -> tuple[str, str] | None:
    """Find the reasoning that a message has in a key of its own, and not as a part of its content.

    Args:
        keys: The keys of the message in the input.

    Returns:
        The key and the text; None for none.

    Example:
        >>> reasoning_beside({"thinking": "Hm."})
        ('thinking', 'Hm.')
    """
    for name in _REASONING_FIELDS:
        text = keys.get(name)
        if isinstance(text, str) and text:
            return name, text
    return None


def _reasoning(value: Mapping[str, Any], role: str, field: str) -> str | None:
    """Return the reasoning that an assistant's message has in a field of its own; None for none."""
    found = reasoning_beside(value) if role == "assistant" else None
    return require_whole_text(found[1], f"{field}.{found[0]}") if found else None


def _tool_calls(value: Mapping[str, Any], role: str, field: str) -> str | None:
    calls = value.get("tool_calls")
    if role != "assistant" or calls is None or calls == []:
        return None
    if isinstance(calls, str):
        calls = _list_in_text(calls, f"{field}.tool_calls", "calls")
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        raise Refusal("is not a list of objects", f"{field}.tool_calls", _CALLS_HINT)
    return require_whole_text(json.dumps(calls, ensure_ascii=False), f"{field}.tool_calls")


def _text_or_none(value: Mapping[str, Any], name: str, field: str) -> str | None:
    text = value.get(name)
    return require_whole_text(text, f"{field}.{name}") if isinstance(text, str) else None


def _called(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {json.dumps(value)[:40]}"
