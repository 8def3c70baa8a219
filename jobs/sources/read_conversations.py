"""Read existing conversations: JSONL, JSON transcripts, or a directory with one file per role.

A line of a JSONL file (or an entry of a JSON file) is an object with ``messages`` or ``conversation``, a list of
``{role, content}``; an entry of a JSON file may also be that list itself. Additional keys are kept. Lines with
``prompt_index`` and ``question_index`` are output of the released pipeline, whose files are named after the role. Every
error names the file, the line and the field. Knows nothing of models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from ..conversation import Conversation, Message
from ..errors import InputError
from ..messages import ChatRole
from ..personas import DEFAULT_PERSONA, Kind, Polarity
from ..user_paths import expand_home
from ..yaml_file import read_text

_LISTS = ("messages", "conversation")
_ADDRESS = ("prompt_index", "question_index")
_DEFAULT_NAMES = ("default", DEFAULT_PERSONA)
_HINT = 'A line is {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}.'


def read_conversations(source: str) -> tuple[Conversation, ...]:
    """Read every conversation of a file or a directory, in order of file name and line.

    Args:
        source: A ``.jsonl`` file, a ``.json`` file, or a directory of such files.

    Raises:
        InputError: Something is not a conversation, or there is none; names the file, the line and the field.
    """
    found: list[Conversation] = []
    for path in _files(Path(expand_home(source, "conversations.source"))):
        found += _read_file(path, len(found))
    if not found:
        raise InputError("holds no conversation.", code="no_conversations", file=source, hint=_HINT)
    return tuple(found)


def parse_conversations(values: Any, name: str = "conversations") -> tuple[Conversation, ...]:
    """Parse conversations that are in memory, in any form that a JSON file may have.

    Args:
        values: A list of messages (one conversation), an object with ``messages`` or ``conversation``, or a list of
            either.
        name: Used instead of a file's name, as the persona of the rows and in errors.

    Returns:
        The conversations, by conversation_index.

    Raises:
        InputError: Something is not a conversation; names the entry and the field.

    Example:
        >>> talk = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Ahoy!"}]
        >>> parse_conversations(talk)[0].num_turns
        1
    """
    try:
        # The same values as from a file: tuples become lists, and keys become strings.
        whole = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(
            f"is not what JSON can hold: {error}.", code="not_json", field="conversations", hint=_HINT
        ) from None
    return tuple(_make_conversations(list(_entries_of(whole, name)), Path(name), 0))


def _files(source: Path) -> list[Path]:
    if not source.is_dir():
        return [source]
    files = sorted(path for path in source.iterdir() if path.suffix in (".jsonl", ".json"))
    if not files:
        raise InputError(
            "is a directory without any .jsonl or .json file.",
            code="no_conversations",
            file=str(source),
            hint="Name a file, or a directory with one JSONL file for each role.",
        )
    return files


@dataclass(frozen=True, slots=True)
class _Entry:
    """One object of a file, with its location for error messages."""

    value: Any
    file: str
    place: str

    def error(self, what: str, field: str | None = None, hint: str = _HINT) -> InputError:
        return InputError(f"{what} ({self.place}).", code="bad_conversation", field=field, file=self.file, hint=hint)


def _entries(path: Path) -> Iterator[_Entry]:
    text = read_text(path, "conversations").removeprefix("\ufeff")
    file = str(path)
    if path.suffix == ".json":
        yield from _entries_of(_parse(text, file, None), file)
        return
    # Not splitlines: JSON texts may hold other line separators, such as U+2028.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _Entry(_parse(line, file, number), file, f"{file}, line {number}")


def _entries_of(whole: Any, file: str) -> Iterator[_Entry]:
    """Yield the entries of a JSON value, which is one conversation or a list of them."""
    is_list_of_conversations = isinstance(whole, list) and bool(whole) and not _is_message(whole[0])
    for number, value in enumerate(whole if is_list_of_conversations else [whole], start=1):
        place = f"{file}, entry {number}" if is_list_of_conversations else file
        yield _Entry(value if not isinstance(value, list) else {"messages": value}, file, place)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value


def _parse(text: str, file: str, line: int | None) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        at = line or getattr(error, "lineno", 1)
        is_lines = line is None and getattr(error, "msg", "") == "Extra data"
        raise InputError(
            f"line {at} is not JSON: {getattr(error, 'msg', error)}.",
            code="not_json",
            file=file,
            hint="A file with one object a line is called .jsonl." if is_lines else _HINT,
        ) from None


def _read_file(path: Path, first_index: int) -> list[Conversation]:
    return _make_conversations(list(_entries(path)), path, first_index)


def _make_conversations(entries: list[_Entry], path: Path, first_index: int) -> list[Conversation]:
    parsed = [_texts(entry) for entry in entries]
    is_released = bool(entries) and all(isinstance(entries[0].value.get(key), int) for key in _ADDRESS)
    kind: Kind = "conversation"
    if is_released:
        is_trait = any(entry.value.get("label") == "neg" for entry in entries)
        kind = "default" if path.stem in _DEFAULT_NAMES else "trait" if is_trait else "role"
    found: list[Conversation] = []
    counted: dict[tuple[Polarity, int, int], int] = {}
    for place, (entry, (system_prompt, messages, extra)) in enumerate(zip(entries, parsed, strict=True)):
        prompt, question = (_index(entry, key) for key in _ADDRESS) if is_released else (0, place)
        polarity: Polarity = "neg" if kind == "trait" and entry.value.get("label") == "neg" else "pos"
        sample = counted.get((polarity, prompt, question), 0)
        counted[polarity, prompt, question] = sample + 1
        found.append(
            Conversation(
                kind=kind,
                persona=DEFAULT_PERSONA if kind == "default" else path.stem,
                polarity=polarity,
                prompt_index=prompt,
                question_index=question,
                sample_index=sample,
                conversation_index=first_index + place,
                system_prompt=system_prompt,
                messages=messages,
                extra=extra,
                place=entry.place,
            )
        )
    return found


def _index(entry: _Entry, key: str) -> int:
    value = entry.value.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**31:
        raise entry.error("is not a number from 0, as in the lines before", key, f"Give every line its {key}, or none.")
    return value


def _texts(entry: _Entry) -> tuple[str, tuple[Message, ...], str]:
    """Parse an entry to its system prompt, its messages, and its additional keys as JSON."""
    if not isinstance(entry.value, dict):
        raise entry.error("is not a JSON object")
    key = next((name for name in _LISTS if name in entry.value), None)
    if key is None:
        raise entry.error("is required and missing", "messages")
    listed = entry.value[key]
    if not isinstance(listed, list) or not listed:
        raise entry.error("is not a list of messages", key)
    system_prompt, messages = "", []
    for number, value in enumerate(listed):
        role, content, extra = _message(entry, f"{key}[{number}]", value)
        if role != "system":
            messages.append(Message(role, content, extra))
        elif number == 0:
            system_prompt = content
        else:
            raise entry.error(
                "is system, which only the first message may be",
                f"{key}[{number}].role",
                "Put what it says into the first message.",
            )
    if not any(message.role == "assistant" for message in messages):
        raise entry.error(
            "has no message of the assistant, so there is nothing to capture", key, "Add a response, or leave it out."
        )
    extra = {name: value for name, value in entry.value.items() if name != key}
    return system_prompt or _system_beside(entry, messages), tuple(messages), _as_json(extra)


def _system_beside(entry: _Entry, messages: list[Message]) -> str:
    """Return the entry's ``system_prompt``; ``""`` when there is none or the first message already starts with it."""
    text = entry.value.get("system_prompt")
    if text is None or text == "":
        return ""
    if not isinstance(text, str):
        raise entry.error("is not a text", "system_prompt")
    _refuse_half_characters(entry, "system_prompt", text)
    return "" if messages[0].content.startswith(text) else text


def _message(entry: _Entry, field: str, value: Any) -> tuple[ChatRole, str, str]:
    if not isinstance(value, dict):
        raise entry.error("is not an object with role and content", field)
    role, content = value.get("role"), value.get("content")
    if role not in ("system", "user", "assistant"):
        shown = f", not {role!r}" if isinstance(role, str) else ""
        raise entry.error(f"is system, user or assistant{shown}", f"{field}.role", "Rename it, or leave it out.")
    if isinstance(content, list):
        content = _joined(entry, f"{field}.content", content)
    if not isinstance(content, str):
        raise entry.error(f"is not a text but {_called(content)}", f"{field}.content")
    _refuse_half_characters(entry, f"{field}.content", content)
    others = {name: other for name, other in value.items() if name not in ("role", "content")}
    return cast("ChatRole", role), content, _as_json(others) if others else ""


def _joined(entry: _Entry, field: str, parts: list[Any]) -> str:
    """Join a content that is a list of parts, all of which must be of type text."""
    texts: list[str] = []
    for number, part in enumerate(parts):
        text = part.get("text") if isinstance(part, dict) and part.get("type", "text") == "text" else None
        if not isinstance(text, str):
            raise entry.error("is not a part of type text", f"{field}[{number}]", "Only texts can be read.")
        texts.append(text)
    return "".join(texts)


def _called(value: Any) -> str:
    return "missing" if value is None else f"{type(value).__name__} {json.dumps(value)[:40]}"


def _refuse_half_characters(entry: _Entry, field: str, text: str) -> None:
    """Refuse a lone surrogate, which JSON can express but UTF-8 and tokenizers cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise entry.error(
            f"holds half a character at place {error.start}", field, "Remove the lone \\ud800 to \\udfff escape."
        ) from None


def _as_json(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
