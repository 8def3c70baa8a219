"""Make what Ray prints and raises readable: no colour codes, no secrets, no dumps, no lists of ids. Knows no Ray."""

from __future__ import annotations

import io
import re
from typing import TextIO

from ..jobs.redaction import without_secrets

_COLOURS = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_OF_RAY = re.compile(r"\((raylet|autoscaler|gcs_server|[\w.]+ pid=)")
"""How what Ray prints begins: the process or the actor that it is about."""

_MAX_CHARS = 500


def plain(text: str) -> str:
    r"""Remove the colour codes of a terminal, and secrets.

    Example:
        >>> plain("\x1b[33m(raylet)\x1b[0m A worker died.")
        '(raylet) A worker died.'
    """
    return without_secrets(_COLOURS.sub("", text))


def one_line(text: str) -> str:
    r"""Reduce the text of an error to one line, without the lists of ids and the tracebacks that Ray puts into it.

    Example:
        >>> one_line("The actor died.\n\tclass_name: X\n\tpid: 7\nIts node is gone.")
        'The actor died. Its node is gone.'
    """
    lines = [line.strip() for line in plain(text).splitlines() if line.strip() and not line.startswith("\t")]
    traceback = next((at for at, line in enumerate(lines) if line.startswith("Traceback") or "ray::" in line), None)
    if traceback is not None and len(lines) > traceback + 1:
        # The last line of a traceback is the error.
        before = lines[traceback].partition("ray::")[0] if "ray::" in lines[traceback] else ""
        lines = [line for line in (*lines[:traceback], before.strip(), lines[-1]) if line]
    joined = " ".join(lines)
    return joined if len(joined) <= _MAX_CHARS else joined[: _MAX_CHARS - 3] + "..."


class PlainStream(io.TextIOBase):
    """A text stream that passes on what Ray prints: without colours, and only the first line of a dump.

    Ray prints each of its messages with a single ``print``, whatever its length.

    Args:
        stream: Where it is passed on to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Pass on a piece of text."""
        shown = plain(text)
        if _OF_RAY.match(shown):
            first = shown.splitlines()[0]
            shown = first[:_MAX_CHARS] + ("\n" if text.endswith("\n") else "")
        self._stream.write(shown)
        return len(text)

    def flush(self) -> None:
        """Flush the stream that it is passed on to."""
        self._stream.flush()
