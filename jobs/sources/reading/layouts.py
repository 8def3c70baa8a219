"""The layouts that an entry may have: which are conversations, and how each other is told apart and refused by name.

An entry is read only where its layout leaves nothing to guess. Knows nothing of files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...conversation import Message
from .message_fields import as_json, parse_messages, require_whole_text
from .problems import LAYOUT_HINT, Refusal

MESSAGE_KEYS = ("messages", "conversation", "conversations")
"""Keys of a list of messages, in the order in which they are looked for."""

_SHAREGPT_KEY = "conversations"


@dataclass(frozen=True, slots=True)
class Chat:
    """The texts of an entry.

    Attributes:
        system_prompt: The system message that opens it; ``""`` for none.
        messages: All other messages, in order; at least one.
        extra: Additional keys of the entry, as JSON.
        tools: Descriptions of tools, a list as JSON text; None for none.
        key: Key that holds the messages, for errors.
    """

    system_prompt: str
    messages: tuple[Message, ...]
    extra: str
    tools: str | None
    key: str


def parse_chat(entry: Any, *, prompts_only: bool = False) -> Chat:
    """Parse an entry in any of the layouts that can be read.

    Args:
        entry: A JSON value.
        prompts_only: Whether the layouts of prompts without an answer are read too.

    Raises:
        Refusal: It is no conversation; names the layout where it is a known one, and the field.
    """
    if not isinstance(entry, dict):
        raise Refusal(f"is not a JSON object but {_called(entry)}")
    key = next((name for name in MESSAGE_KEYS if entry.get(name) is not None), None)
    if key is not None:
        return _of_messages(entry, key)
    for layout in (*_LAYOUTS, *_PROMPT_LAYOUTS) if prompts_only else _LAYOUTS:
        if layout.keys <= entry.keys():
            return layout.read(entry)
    raise Refusal(f"is required and missing; there {_keys(entry)}", "messages")


def require_answer(chat: Chat) -> None:
    """Check that a chat has a message of the assistant, whose activations are captured.

    Raises:
        Refusal: It has none.
    """
    if not any(message.role == "assistant" for message in chat.messages):
        raise Refusal(
            "has no message of the assistant, so there is nothing to read",
            chat.key,
            "Add a response, or leave it out. Where no conversation has an answer, extract --prompts-only "
            "(conversations.prompts_only: true) captures the prompts.",
        )


def require_prompt(chat: Chat) -> None:
    """Check that a chat ends where a response would follow: with a message of the user or the result of a tool.

    Raises:
        Refusal: It ends with another message.
    """
    last = chat.messages[-1].role
    if last == "assistant":
        raise Refusal(
            "ends with a message of the assistant, and with prompts_only nothing is read of an answer",
            chat.key,
            "Take that message out. Or leave out --prompts-only (conversations.prompts_only): then each response is a "
            "row, and poolings such as prompt_last are over the prompt before it.",
        )
    if last not in ("user", "tool"):
        raise Refusal(
            f"ends with a message of the role {last}, which no response follows",
            chat.key,
            "Put it before the user's last message, or leave it out.",
        )


def is_message(value: Any) -> bool:
    """Whether a value looks like a message rather than a conversation."""
    return isinstance(value, dict) and ("role" in value or ("from" in value and "value" in value))


def _of_messages(entry: Mapping[str, Any], key: str) -> Chat:
    messages = parse_messages(entry[key], key)
    extra = {name: value for name, value in entry.items() if name != key}
    beside = "system" if key == _SHAREGPT_KEY and "system" in entry else "system_prompt"
    return _chat(messages, key, extra, beside)


def _chat(messages: Sequence[Message], key: str, extra: Mapping[str, Any], beside: str = "system_prompt") -> Chat:
    """Separate the system message that opens a conversation from the rest."""
    system_prompt, following = "", tuple(messages)
    if following[0].role == "system":
        system_prompt, following = following[0].content, following[1:]
    if not following:
        raise Refusal("has only a system message", key, "Add the messages of user and assistant, or leave it out.")
    return Chat(
        system_prompt or _system_beside(extra, beside, following), following, as_json(extra), _tools(extra), key
    )


def _system_beside(extra: Mapping[str, Any], name: str, messages: Sequence[Message]) -> str:
    """Return the system prompt beside the messages; ``""`` when there is none or the first already starts with it."""
    text = extra.get(name)
    if text is None or text == "":
        return ""
    if not isinstance(text, str):
        raise Refusal("is not a text", name)
    require_whole_text(text, name)
    return "" if messages[0].content.startswith(text) else text


def _tools(extra: Mapping[str, Any]) -> str | None:
    """Return the descriptions of tools beside the messages, which the chat template writes into the prompt."""
    tools = extra.get("tools")
    if not isinstance(tools, list) or not tools or not all(isinstance(tool, dict) for tool in tools):
        return None
    # Not sorted: a template writes the keys in the order of the input.
    return require_whole_text(json.dumps(tools, ensure_ascii=False), "tools")


def _of_alpaca(entry: Mapping[str, Any]) -> Chat:
    _refuse_alpaca_input(entry, ', {role: "assistant", content: .output}')
    instruction, output = (_text_of(entry, name) for name in ("instruction", "output"))
    extra = {name: value for name, value in entry.items() if name not in ("instruction", "output")}
    return _chat([Message("user", instruction), Message("assistant", output)], "instruction", extra, "system")


def _refuse_alpaca_input(entry: Mapping[str, Any], answer: str = "") -> None:
    """Refuse an instruction with more beside it; ``answer`` is what the hint's conversion has after the user."""
    if entry.get("input") or entry.get("history"):
        raise Refusal(
            "is an entry in the Alpaca layout whose instruction has an input or a history, and how they are put "
            "together depends on the prompt that the data is meant for",
            hint='jq -c \'{messages: [{role: "user", content: (.instruction + "\\n\\n" + .input)}'
            f"{answer}]}}' FILE > NEW converts it, with an empty line between the two.",
        )


def _text_of(entry: Mapping[str, Any], name: str) -> str:
    text = entry[name]
    if not isinstance(text, str):
        raise Refusal("is not a text, as the Alpaca layout has it", name)
    return require_whole_text(text, name)


def _of_prompt_and_completion(entry: Mapping[str, Any]) -> Chat:
    prompt, completion = entry["prompt"], entry["completion"]
    if not isinstance(prompt, list) or not isinstance(completion, list):
        raise Refusal(
            "is a prompt and a completion as texts, which may be meant without a chat template",
            hint=_conversion("prompt", "completion"),
        )
    messages = [*parse_messages(prompt, "prompt"), *parse_messages(completion, "completion")]
    extra = {name: value for name, value in entry.items() if name not in ("prompt", "completion")}
    return _chat(messages, "prompt", extra)


def _of_prompt(entry: Mapping[str, Any]) -> Chat:
    if not isinstance(entry["prompt"], list):
        raise Refusal("is a prompt as text, which may be meant without a chat template", hint=_prompt_from("prompt"))
    extra = {name: value for name, value in entry.items() if name != "prompt"}
    return _chat(parse_messages(entry["prompt"], "prompt"), "prompt", extra)


def _of_instruction(entry: Mapping[str, Any]) -> Chat:
    _refuse_alpaca_input(entry)
    extra = {name: value for name, value in entry.items() if name != "instruction"}
    return _chat([Message("user", _text_of(entry, "instruction"))], "instruction", extra, "system")


def _refused(what: str, hint: str) -> Callable[[Mapping[str, Any]], Chat]:
    """Make the reader of a layout that cannot be read without guessing."""

    def refuse(_entry: Mapping[str, Any]) -> Chat:
        raise Refusal(f"is {what}, and must have messages", hint=hint)

    return refuse


def _pair(question: str, answer: str) -> _Layout:
    """Make the layout of a question and an answer under two keys."""
    reader = _refused(f"a pair of {question} and {answer}", _conversion(question, answer))
    return _Layout(frozenset({question, answer}), reader)


def _conversion(question: str, answer: str) -> str:
    """Return the hint that converts two texts to messages."""
    return (
        f'If they are question and answer, jq -c \'{{messages: [{{role: "user", content: .{question}}}, '
        f'{{role: "assistant", content: .{answer}}}]}}\' FILE > NEW converts them.'
    )


def _prompt_from(key: str) -> str:
    """Return the hint that converts a text to a prompt."""
    converted = f'{{messages: [{{role: "user", content: .{key}}}]}}'
    return f"If it is the user's message, jq -c '{converted}' FILE > NEW converts it."


@dataclass(frozen=True, slots=True)
class _Layout:
    """A layout other than a list of messages: the keys that it is recognised by, and its reader."""

    keys: frozenset[str]
    read: Callable[[Mapping[str, Any]], Chat]


_LAYOUTS = (
    _Layout(
        frozenset({"chosen", "rejected"}),
        _refused(
            "a preference pair (chosen and rejected)",
            "Choose one: jq -c '{messages: .chosen}' FILE > NEW does, where chosen holds the whole conversation.",
        ),
    ),
    _Layout(frozenset({"instruction", "output"}), _of_alpaca),
    _Layout(frozenset({"prompt", "completion"}), _of_prompt_and_completion),
    _pair("prompt", "response"),
    _pair("question", "answer"),
    _pair("question", "response"),
    _pair("input", "output"),
    _Layout(
        frozenset({"mapping"}),
        _refused(
            "a ChatGPT export, in which a conversation is a tree", "Write one branch of it as a list of messages."
        ),
    ),
    _Layout(
        frozenset({"chat_messages"}),
        _refused("a Claude export", "Write chat_messages as messages, with role (human is user) and content."),
    ),
    _Layout(
        frozenset({"choices"}),
        _refused("a server's answer (choices)", "Write the request's messages with choices[0].message after them."),
    ),
    _Layout(frozenset({"text"}), _refused("a text without turns", LAYOUT_HINT)),
)

_PROMPT_LAYOUTS = (
    _Layout(frozenset({"prompt"}), _of_prompt),
    _Layout(frozenset({"instruction"}), _of_instruction),
    _Layout(frozenset({"question"}), _refused("a question as text", _prompt_from("question"))),
)
"""Layouts of prompts without an answer, tried after the others."""


def _keys(entry: Mapping[str, Any]) -> str:
    """List the keys of an entry, for an error."""
    names = [repr(name[:40]) for name in list(entry)[:6]]
    if not names:
        return "are no keys"
    return f"{'are' if len(entry) > 1 else 'is'} {', '.join(names)}{' ...' if len(entry) > len(names) else ''}"


def _called(value: Any) -> str:
    names = {bool: "true or false", int: "a number", float: "a number", str: "a text", list: "a list"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
