"""Read a file of prompts: conversations that the model is to answer, with one or several messages of the user.

A line is ``{"system": ..., "question": ...}``, or ``turns`` instead of ``question`` with what the user says message by
message, or ``messages`` that end with the user's. ``system`` may be left out; ``category`` names the persona of the
rows. Every entry is read before anything is refused. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files.user_paths import is_directory, local_path
from ..messages import ChatMessage
from .dialogue_source import Dialogue
from .reading.entries import Entry, entries_of
from .reading.input_files import persona_name
from .reading.json_values import json_values
from .reading.message_fields import as_json, parse_messages, require_whole_text
from .reading.problems import Problem, Refusal, input_error

_HINT = 'A line is {"system": "...", "question": "..."} or {"turns": ["...", "..."]}; also category and other keys.'
_SAID = ("question", "turns", "messages")
SOURCE_FIELD = "prompts.source"
"""Field of a spec that names the file."""


@dataclass(frozen=True, slots=True)
class _Prompt:
    """The texts of an entry."""

    system: str
    history: tuple[ChatMessage, ...]
    turns: tuple[str, ...]
    category: str | None
    extra: str


def read_prompts(source: str, field: str = SOURCE_FIELD) -> tuple[Dialogue, ...]:
    """Read every prompt of a file as a dialogue, in the order of the file.

    Args:
        source: A file of JSON Lines or JSON.
        field: Field of the spec that names it, for errors.

    Returns:
        The dialogues: kind ``conversation``, persona the category or else the file's name, question_index and
        conversation_index the place in the file.

    Raises:
        InputError: An entry is no prompt, or there is none; names the file, the line and the field.
    """
    path = local_path(source, field)
    if is_directory(path, field):
        raise InputError("is a directory.", code="not_a_file", field=field, file=str(path), hint="Name a file.")
    dialogues: list[Dialogue] = []
    problems: list[Problem] = []
    for position, entry in enumerate(entries_of(json_values(path), str(path))):
        parsed = entry if isinstance(entry, Problem) else _parse(entry, str(path), position)
        (problems if isinstance(parsed, Problem) else dialogues).append(parsed)  # pyright: ignore[reportArgumentType]
    if problems:
        raise input_error(problems, source, may_skip=False)
    if not dialogues:
        raise InputError("holds no prompt.", code="no_prompts", file=source, hint=_HINT)
    return tuple(dialogues)


def _parse(entry: Entry, file: str, position: int) -> Dialogue | Problem:
    try:
        prompt = _prompt(entry.value)
    except Refusal as refusal:
        hint = refusal.hint if refusal.hint.startswith("Write") else _HINT
        return Problem(refusal.reason, file, entry.place, refusal.field, hint, "bad_prompt")
    except RecursionError:
        return Problem("is nested too deep", file, entry.place, None, "Leave the deep key out.", "bad_prompt")
    return Dialogue(
        kind="conversation",
        persona=prompt.category if prompt.category is not None else persona_name(Path(file)),
        prompt_index=0,
        question_index=position,
        conversation_index=position,
        system_prompt=prompt.system,
        turns=prompt.turns,
        history=prompt.history,
        extra=prompt.extra,
        place=entry.place,
    )


def _prompt(value: Any) -> _Prompt:
    if not isinstance(value, dict):
        raise Refusal(f"is not a JSON object but {type(value).__name__}")
    given = [name for name in _SAID if value.get(name) is not None]
    if len(given) != 1:
        found = f"there are {' and '.join(given)}" if given else f"there {_keys(value)}"
        raise Refusal(f"has one of question, turns and messages; {found}")
    system = _text(value, "system") if value.get("system") is not None else ""
    category = _text(value, "category", may_be_blank=False) if value.get("category") is not None else None
    extra = {name: other for name, other in value.items() if name not in ("system", "category", *_SAID)}
    history: tuple[ChatMessage, ...] = ()
    if given == ["question"]:
        turns = (_text(value, "question", may_be_blank=False),)
    elif given == ["turns"]:
        turns = _turns(value["turns"])
    else:
        system, history, question = _of_messages(value["messages"], system)
        turns = (question,)
    return _Prompt(system, history, turns, category, as_json(extra))


def _keys(value: Mapping[str, Any]) -> str:
    names = ", ".join(list(value)[:8])
    return f"are {names}" if names else "are no keys"


def _turns(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise Refusal("is not a list of texts", "turns")
    said = {f"turns[{number}]": text for number, text in enumerate(value)}
    return tuple(_text(said, name, may_be_blank=False) for name in said)


def _text(value: Mapping[str, Any], name: str, *, may_be_blank: bool = True) -> str:
    text = value[name]
    if not isinstance(text, str):
        raise Refusal("is not a text", name)
    if not may_be_blank and not text.strip():
        raise Refusal("is blank", name)
    return require_whole_text(text, name)


def _of_messages(value: Any, system: str) -> tuple[str, tuple[ChatMessage, ...], str]:
    """Parse messages that end with the user's: the system prompt, what was said before, and the last message."""
    messages = [message.chat() for message in parse_messages(value, "messages")]
    if messages[0].role == "system":
        if system:
            raise Refusal("has a system message, and there is system beside it", "messages")
        system, messages = messages[0].content, messages[1:]
    for number, message in enumerate(messages):
        expected = "assistant" if number % 2 else "user"
        if message.role != expected or message.tool_calls is not None:
            raise Refusal(
                "are not the user's and the assistant's in turn", "messages", "Write a user's message first and last."
            )
    if len(messages) % 2 == 0:
        raise Refusal("do not end with the user's", "messages", "Write the message last that the model is to answer.")
    return system, tuple(messages[:-1]), messages[-1].content
