"""Check and expand the paths that a user wrote: in a spec, on the command line, in Python."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import InputError
from ..machine_faults import refuse_machine_fault

_LONGEST_NAME = 255
"""Bytes of a file's name on Linux, macOS and nearly every file system."""

_LONGEST_PATH = 4095


def expand_home(path: str | os.PathLike[str], field: str) -> str:
    """Replace a leading ``~`` or ``~user`` by that home directory; ``./~`` is a directory of that name.

    Args:
        path: A path, or a URL, which is returned as it is.
        field: Field of the spec or option that holds it, for the error.

    Raises:
        InputError: The path begins with ``~``, but there is no such home directory; or it is blank, holds a null
            character, or is longer than a path can be.

    Example:
        >>> expand_home("~/runs/mine", "store.url") == os.path.expanduser("~") + "/runs/mine"
        True
    """
    # Not Path.expanduser: a Path drops a leading "./", so that the directory ./~ could not be named.
    text = os.fspath(path)
    refuse_impossible_path(text, field)
    expanded = os.path.expanduser(text)  # noqa: PTH111
    if expanded.startswith("~"):
        raise InputError(
            f"{text!r} begins with ~, but this machine has no such home directory.",
            code="no_home",
            field=field,
            hint=f"Give the whole path, or ./{text} for a directory of that name.",
        )
    return expanded


def local_path(path: str | os.PathLike[str], field: str) -> Path:
    """Return a path of the user's that must be on this machine, with its ``~`` expanded.

    Args:
        path: The path.
        field: Field of the spec or option that holds it, for the error.

    Raises:
        InputError: It is a URL, or ``expand_home`` refuses it.
    """
    text = os.fspath(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise InputError(
            f"{text!r} is a URL, and must be a path on this machine.",
            code="not_a_path",
            field=field,
            hint="Copy it to this machine first.",
        )
    return Path(expand_home(text, field))


def is_directory(path: Path, field: str) -> bool:
    """Whether a path of the user's is a directory.

    Args:
        path: The path.
        field: Field of the spec or option that holds it, for the error.

    Raises:
        InputError: The file system does not say, because a folder on the way may not be entered, for instance.
        TransientError: The machine failed, a disk for instance.
    """
    try:
        return path.is_dir()
    except OSError as error:
        refuse_machine_fault(error)
        raise InputError(
            f"{str(path)!r} cannot be opened: {error.strerror or error}.",
            code="unreadable_file",
            field=field,
            hint="Check the path and its permissions.",
        ) from None


def refuse_impossible_path(text: str, field: str) -> None:
    """Refuse what no file can be called, so that it is not taken for another path.

    Args:
        text: The path.
        field: Field of the spec or option that holds it, for the error.

    Raises:
        InputError: It is blank, holds a null or half a character, or is longer than a path can be.
    """
    if not text.strip():
        problem, hint = "is blank.", "Name a file or directory; . is this directory."
    elif not _can_encode(text):
        problem, hint = "holds half a character (a lone surrogate), which no path can.", "Remove it."
    elif "\0" in text:
        problem, hint = "holds a null character, which no path can.", "Remove it."
    elif len(os.fsencode(text)) > _LONGEST_PATH or any(
        len(part) > _LONGEST_NAME for part in os.fsencode(text).split(b"/")
    ):
        problem, hint = f"is longer than a path can be: {text[:40]!r} ...", f"A name has at most {_LONGEST_NAME} bytes."
    else:
        return
    raise InputError(problem, code="bad_path", field=field, hint=hint)


def _can_encode(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True
