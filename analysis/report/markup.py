"""Pieces of HTML that the sections of the page share."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

DASH = "\N{EN DASH}"
"""What stands where there is no number."""


def section(title: str, body: str) -> str:
    """Write a section with its heading; the body is HTML."""
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def absent(text: str) -> str:
    """Write the sentence that stands where there is nothing to draw."""
    return f"<p class='absent'>{escape(text)}</p>"


def buttons(group: str, options: Sequence[tuple[str, str]], pressed: str) -> str:
    """Write buttons of which one is pressed: value and text of each."""
    shown = "".join(
        f"<button type='button' data-group='{group}' data-value='{value}' "
        f"aria-pressed='{str(value == pressed).lower()}'>{escape(name)}</button>"
        for value, name in options
    )
    return f"<span role='group' aria-label='{group}'>{shown}</span>"


def stroke(colour: str, dash: str, text: str) -> str:
    """Write an entry of a legend with the line that it explains."""
    return (
        "<li><svg width='28' height='8' aria-hidden='true'><line x1='0' x2='28' y1='4' y2='4' stroke-width='2.5' "
        f"stroke='var(--{colour})' stroke-dasharray='{dash}'/></svg>{escape(text)}</li>"
    )
