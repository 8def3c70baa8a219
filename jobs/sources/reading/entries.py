"""The entries of a file of JSON values: one conversation or prompt each, with its place for errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from .json_values import JsonValue
from .layouts import is_message
from .problems import Problem


@dataclass(frozen=True, slots=True)
class Entry:
    """One conversation or prompt, not parsed yet.

    Attributes:
        value: The JSON value; a bare list of messages is an object with the key ``messages``.
        place: File, line and number of the entry, for errors.
    """

    value: Any
    place: str


def entries_of(values: Iterable[JsonValue | Problem], file: str) -> Iterator[Entry | Problem]:
    """Yield the entries of a file's values, each of which is one entry or a list of them.

    Args:
        values: The values; a problem among them is passed on.
        file: Name of the file, for errors.

    Example:
        >>> talk = [{"role": "user", "content": "Hi"}]
        >>> [(entry.value, entry.place) for entry in entries_of([JsonValue([talk], 3)], "talks.jsonl")]
        [({'messages': [{'role': 'user', 'content': 'Hi'}]}, 'talks.jsonl, line 3, entry 1')]
    """
    for found in values:
        if isinstance(found, Problem):
            yield found
            continue
        place = file if found.line is None else f"{file}, line {found.line}"
        value = found.value
        if not isinstance(value, list):
            yield Entry(value, place)
        elif not value or is_message(value[0]):
            yield Entry({"messages": value}, place)
        else:
            for number, entry in enumerate(value, start=1):
                messages = {"messages": entry} if isinstance(entry, list) else entry
                yield Entry(messages, f"{place}, entry {number}")
