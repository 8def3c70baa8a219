"""Progress of a call from Python."""

from __future__ import annotations

from rich.console import Console

from ..run.progress import Progress


def shown_progress(is_shown: bool) -> Progress:
    """Return the progress of a call, on stderr.

    Args:
        is_shown: Whether to print it.
    """
    return Progress(Console(stderr=True, quiet=not is_shown))
