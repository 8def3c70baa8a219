"""Wording that messages share. Knows nothing of what the messages are about."""

from __future__ import annotations


def count_of(number: int, noun: str) -> str:
    """Format a count with its noun, which is in the plural unless the number is 1.

    Args:
        number: The count.
        noun: A singular noun that forms its plural with ``s``.

    Example:
        >>> count_of(1, "unit"), count_of(2500, "unit")
        ('1 unit', '2,500 units')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
