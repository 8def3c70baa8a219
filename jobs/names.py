"""Match names against patterns: a name given exactly, or a glob."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase


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
