"""How every command prints: JSON or text on stdout, errors and progress on stderr.

Results are printed as they are: a prompt that reads ``token=abc`` is one. Secrets are removed from what libraries,
servers and Ray say, where it becomes part of an error, a failure, a status or a line of progress.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from ...jobs.errors import error_lines
from ...jobs.redaction import value_without_secrets
from ..run.progress import Progress


def progress() -> Progress:
    """Make a progress printer on stderr."""
    return Progress(Console(stderr=True))


def document(value: Mapping[str, Any]) -> None:
    """Print one JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False) + "\n")


def table(title: str, columns: list[str], lines: list[list[str]], *, keep_first: bool = False) -> None:
    """Print a table on stdout; columns in which every cell looks like a number are aligned to the right.

    Args:
        title: Line above the table.
        columns: Headings; all empty for a table without a header.
        lines: Cells of each line.
        keep_first: Never break the first column over lines, so that users can copy from it.
    """
    console = Console(markup=False, highlight=False)
    shown = Table(show_header=any(columns))
    for position, column in enumerate(columns):
        cells = [line[position] for line in lines if line[position].strip(".")]
        numeric = bool(cells) and all(_is_number(cell) for cell in cells)
        shown.add_column(
            column, justify="right" if numeric else "left", overflow="fold", no_wrap=keep_first and not position
        )
    for line in lines:
        shown.add_row(*line)
    console.print(title, style="bold", soft_wrap=True)
    console.print(shown)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").lstrip("+-").isdigit()


def text(line: str) -> None:
    """Print one line on stdout."""
    sys.stdout.write(line + "\n")


def error(fields: Mapping[str, str], *, as_json: bool) -> None:
    """Print an error on stderr, as one JSON object or as text.

    Args:
        fields: The error in the shape of ``AtlasError.as_dict``.
        as_json: Whether to print JSON.
    """
    fields = value_without_secrets(fields)
    if as_json:
        sys.stderr.write(json.dumps(fields) + "\n")
        return
    sys.stderr.write("\n".join(error_lines(fields)) + "\n")


def size(num_bytes: float) -> str:
    """Format a number of bytes for people.

    Example:
        >>> size(812), size(1.24e9)
        ('812 B', '1.2 GB')
    """
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    raise AssertionError
