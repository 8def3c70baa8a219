"""Read the JSON values of a file, with the line of each: JSON Lines, one document, or documents one after another.

The first bytes and not the name decide what a file is. Lines are read one at a time. Knows nothing of conversations.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, cast

from ...errors import InputError
from ...files.text_files import UTF8_BOM, refuse_other_encoding, refuse_special_file
from ...machine_faults import refuse_machine_fault
from .input_files import is_json_document
from .problems import LAYOUT_HINT, Problem

_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 16

_OTHER_FORMATS = (
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "zstd -d FILE decompresses it."),
    (b"\xfd7zXZ\x00", "compressed with xz", "xz -d FILE decompresses it."),
    (b"BZh", "compressed with bzip2", "bzip2 -d FILE decompresses it."),
    (b"PK\x03\x04", "a zip archive", "unzip FILE unpacks it."),
    (
        b"PAR1",
        "a Parquet file",
        "datasets.load_dataset('parquet', data_files=FILE)['train'].to_json(NEW) writes it as JSON Lines.",
    ),
    (b"ARROW1", "an Arrow file", "datasets.Dataset.from_file(FILE).to_json(NEW) writes it as JSON Lines."),
    (b"SQLite format 3", "an SQLite database", "Write its conversations as JSON Lines first."),
    (b"%PDF", "a PDF", "Write its conversations as JSON Lines first."),
)

_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class JsonValue:
    """One value of a file.

    Attributes:
        value: The parsed value.
        line: 1-based line where it begins; None if it is the whole file.
    """

    value: Any
    line: int | None


def json_values(path: Path) -> Iterator[JsonValue | Problem]:
    """Read the values of a file, in order.

    Args:
        path: A file of JSON Lines, or of JSON documents of any number of lines; may be compressed with gzip.

    Yields:
        Each value, or the reason why a line or (as the last) the rest of the file cannot be read.
    """
    file = str(path)
    try:
        refuse_special_file(path)
        with _opened(path) as stream:
            yield from _values(stream, file, whole_first=is_json_document(path))
    except InputError as error:
        yield Problem(error.message.rstrip("."), file, file, None, error.hint or LAYOUT_HINT, error.code, True)


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file at its first byte of text, and report errors of the file system and of gzip."""
    try:
        with path.open("rb") as plain:
            head = plain.read(_HEAD_BYTES)
            plain.seek(0)
            if not head.startswith(_GZIP):
                _start_of_text(head, plain, str(path))
                yield plain
                return
            with gzip.GzipFile(fileobj=plain) as unpacked:
                head = unpacked.read(_HEAD_BYTES)
                unpacked.seek(0)
                _start_of_text(head, cast("IO[bytes]", unpacked), str(path))
                yield cast("IO[bytes]", unpacked)
    except (OSError, EOFError, zlib.error) as error:
        refuse_machine_fault(error)
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"cannot be read as conversations: {reason}.",
            code="unreadable_file",
            file=str(path),
            hint="Check the path and its permissions, and that the file is whole.",
        ) from None


def _start_of_text(head: bytes, stream: IO[bytes], file: str) -> None:
    """Refuse what is no UTF-8 text by its first bytes, and go past a byte order mark."""
    refuse_other_encoding(head, file)
    for mark, name, hint in _OTHER_FORMATS:
        if head.startswith(mark):
            raise InputError(f"is {name}, not a text of JSON.", code="not_text", hint=hint)
    if head.startswith(UTF8_BOM):
        stream.seek(len(UTF8_BOM))


def _values(stream: IO[bytes], file: str, *, whole_first: bool) -> Iterator[JsonValue | Problem]:
    """Yield values line by line, unless the first line shows that a value goes on over several lines."""
    number = 0
    for number, line in enumerate(stream, start=1):
        if not line.strip():
            continue
        if whole_first or _goes_on(line):
            yield from _several_lines(line + stream.read(), number, file)
            return
        yield from _line(line, number, file)
        break
    yield from _lines(iter(stream), number + 1, file)


def _several_lines(data: bytes, first: int, file: str) -> Iterator[JsonValue | Problem]:
    """Yield the values of a document of several lines, or of JSON Lines whose first line is broken."""
    lines = [line for line in data.split(b"\n", 8)[:8] if line.strip()]
    is_lines = len(lines) > 1 and _is_value(lines[0])
    if not is_lines:
        documents = _documents(data, first, file)
        head = next(documents, None)
        is_lines = isinstance(head, Problem) and len(lines) > 1 and _is_value(lines[1])
        if not is_lines and head is not None:
            yield head
            yield from documents
    if is_lines:
        yield from _lines(iter(data.split(b"\n")), first, file)


def _is_value(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _lines(lines: Iterator[bytes], first: int, file: str) -> Iterator[JsonValue | Problem]:
    for number, line in enumerate(lines, start=first):
        if line.strip():
            yield from _line(line, number, file)


def _line(line: bytes, number: int, file: str) -> Iterator[JsonValue | Problem]:
    place = f"{file}, line {number}"
    try:
        # Without the end of the line, which would be blamed in place of the text that it cuts short.
        yield JsonValue(json.loads(line.decode().rstrip()), number)
    except UnicodeDecodeError as error:
        yield _not_utf8(error, file, place)
    except (ValueError, RecursionError) as error:
        # Beside syntax, json refuses numbers of thousands of digits and what is nested a thousand levels deep.
        yield Problem(f"is not JSON: {getattr(error, 'msg', error)}", file, place, code="not_json")


def _goes_on(line: bytes) -> bool:
    """Whether a line is the beginning of a value that ends on a later line, or holds several values."""
    try:
        text = line.decode().rstrip()
        json.loads(text)
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc) or error.msg == "Extra data"
    except (ValueError, RecursionError):
        return False
    return False


def _documents(data: bytes, first: int, file: str) -> Iterator[JsonValue | Problem]:
    """Parse values that may go over several lines, one after another."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = first + data.count(b"\n", 0, error.start)
        yield replace(_not_utf8(error, file, f"{file}, line {line}"), is_of_file=True)
        return
    line, counted, position = first, 0, _blank_until(text, 0)
    while position < len(text):
        line += text.count("\n", counted, position)
        counted = position
        try:
            value, stop = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            at = line + text.count("\n", position, getattr(error, "pos", position))
            reason = f"is not JSON: {getattr(error, 'msg', error)}"
            yield Problem(reason, file, f"{file}, line {at}", code="not_json", is_of_file=True)
            return
        following = _blank_until(text, stop)
        yield JsonValue(value, None if position == 0 and following == len(text) else line)
        position = following


def _blank_until(text: str, position: int) -> int:
    """Return the position of the first character that is not blank, from a position on."""
    found = _BLANK.match(text, position)
    return found.end() if found else position


def _not_utf8(error: UnicodeDecodeError, file: str, place: str) -> Problem:
    return Problem(
        f"is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}",
        file,
        place,
        hint="iconv -f WINDOWS-1252 -t UTF-8 FILE > NEW converts it, if that is its encoding.",
        code="not_utf8",
    )
