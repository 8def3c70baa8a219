"""Names of personas: which can be stored, which are the same, and which a pattern stands for."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from fnmatch import fnmatchcase

MAX_NAME_BYTES = 175
"""Most bytes of UTF-8 of a persona's name, which is part of the names of objects in a store. File systems allow 255 for
a name, and it also holds the rest of the unit's id, a row block and, while a file is written, a random part."""


def names_matching(known: Iterable[str], pattern: str) -> list[str]:
    """Select the names that a pattern stands for.

    A name may hold ``[``, ``*`` or ``?``, since it is that of a file. So the pattern is compared as a name first.

    Args:
        known: The names there are.
        pattern: A name, or a glob such as ``p*``.

    Returns:
        The name alone if the pattern is exactly a known name; otherwise the names that the glob matches, in order.

    Example:
        >>> names_matching(["chat[1]", "chat1"], "chat[1]"), names_matching(["poet", "pirate", "cook"], "p*")
        (['chat[1]'], ['poet', 'pirate'])
    """
    names = list(known)
    return [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]


def name_problem(name: str) -> str | None:
    """Return why a name cannot be part of the names of files and objects; None if it can.

    Args:
        name: Name of a persona.

    Example:
        >>> name_problem("star*"), name_problem(".."), name_problem("a/b")
        (None, 'is . or ..', 'holds a slash')
    """
    try:
        num_bytes = len(name.encode())
    except UnicodeEncodeError:
        return "is not UTF-8"
    problems = (
        (not name, "is empty"),
        (name in (".", ".."), "is . or .."),
        ("/" in name or "\\" in name, "holds a slash"),
        (any(unicodedata.category(c) in ("Cc", "Zl", "Zp") for c in name), "holds a control character"),
        (name != name.strip(), "begins or ends with a space"),
        (name.endswith("."), "ends with a dot"),
        (num_bytes > MAX_NAME_BYTES, f"has {num_bytes} bytes, and the most is {MAX_NAME_BYTES}"),
    )
    return next((problem for holds, problem in problems if holds), None)


def folded(name: str) -> str:
    """Return what two names have in common if a file system may not tell them apart: by case, or by composed letters.

    Example:
        >>> folded("Pirate") == folded("pirate"), folded("e\u0301") == folded("\u00e9")
        (True, True)
    """
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def equal_names(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the first two different names that a file system may not tell apart; None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(folded(name), name)
        if other != name:
            return other, name
    return None
