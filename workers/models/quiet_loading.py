"""Load a model with transformers without its progress bar, which would run into a command's own output."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing progress bars; afterwards it does as before."""
    from transformers.utils import logging

    was_drawn = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_drawn:
            logging.enable_progress_bar()
