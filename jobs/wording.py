"""Wording that messages share. Knows nothing of what the messages are about."""

from __future__ import annotations


def count_of(number: int, noun: str, plural: str = "") -> str:
    """Format a count with its noun, which is in the plural unless the number is 1.

    Args:
        number: The count.
        noun: A singular noun.
        plural: Its plural; empty where that is the noun with ``s``.

    Example:
        >>> count_of(1, "unit"), count_of(2500, "unit"), count_of(2, "reply", "replies")
        ('1 unit', '2,500 units', '2 replies')
    """
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {plural or noun + 's'}"


def extra_hint(extra: str) -> str:
    """Return the commands that install an extra, from an index and in a checkout.

    Args:
        extra: Name of the extra, as in pyproject.toml.

    Example:
        >>> extra_hint("serve")
        "pip install 'persona-atlas[serve]', or in a checkout pip install '.[serve]'"
    """
    return f"pip install 'persona-atlas[{extra}]', or in a checkout pip install '.[{extra}]'"


def on_one_line(text: str) -> str:
    r"""Write a text of somebody else's on one line of a terminal.

    Runs of white space become one space. Control characters, with which a text could move the cursor or rename the
    window, become the replacement character.

    Args:
        text: The text.

    Example:
        >>> on_one_line("two\nlines and \x1b[31mred")
        'two lines and �[31mred'
    """
    return without_controls(" ".join(text.split()))


def without_controls(text: str) -> str:
    r"""Replace control characters other than line breaks and tabs by the replacement character.

    Args:
        text: The text.

    Example:
        >>> without_controls("\x1b[2Jgone\n")
        '�[2Jgone\n'
    """
    return text.translate(_SHOWN)


_SHOWN = dict.fromkeys((code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"), "\ufffd")
