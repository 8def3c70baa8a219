"""Names of units for personas whose names a user chose: they become parts of paths in the store. Pure."""

from __future__ import annotations

import re


def object_name(kind: str, persona: str, taken: dict[str, tuple[str, str]]) -> str:
    """Make a name for objects in the store from the name of a user's persona or file.

    Args:
        kind: Kind of the persona.
        persona: Its name.
        taken: Names given so far, with whose they are; the new one is added.

    Returns:
        The name in plain letters, unique for each persona.

    Example:
        >>> taken = {}
        >>> object_name("role", "a b", taken), object_name("role", "a/b", taken), object_name("role", "a b", taken)
        ('a_b', 'a_b_2', 'a_b')
    """
    plain = re.sub(r"[^A-Za-z0-9_-]+", "_", persona)[:80]
    name, number = plain, 2
    while taken.setdefault(f"{kind}.{name}".lower(), (kind, persona)) != (kind, persona):
        name, number = f"{plain}_{number}", number + 1
    return name
