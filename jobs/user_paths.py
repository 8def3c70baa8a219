"""Expand ``~`` in paths that a user wrote where no shell expands it: in a spec, after ``--set``, in Python."""

from __future__ import annotations

import os

from .errors import InputError


def expand_home(path: str | os.PathLike[str], field: str) -> str:
    """Replace a leading ``~`` or ``~user`` by that home directory; ``./~`` is a directory of that name.

    Args:
        path: A path, or a URL, which is returned as it is.
        field: Field of the spec or option that holds it, for the error.

    Raises:
        InputError: The path begins with ``~``, but there is no such home directory.

    Example:
        >>> expand_home("~/runs/mine", "store.url") == os.path.expanduser("~") + "/runs/mine"
        True
    """
    # Not Path.expanduser: a Path drops a leading "./", so that the directory ./~ could not be named.
    text = os.fspath(path)
    expanded = os.path.expanduser(text)  # noqa: PTH111
    if expanded.startswith("~"):
        raise InputError(
            f"{text!r} begins with ~, but this machine has no such home directory.",
            code="no_home",
            field=field,
            hint=f"Give the whole path, or ./{text} for a directory of that name.",
        )
    return expanded
