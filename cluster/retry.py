"""Ask again when the network or the object store had a bad moment. The one place that waits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from ..jobs.errors import AtlasError

TRIES = 44
"""With doubling waits from a quarter of a second to a quarter of a minute: ten minutes in all, besides what the
store's own client waits in each try."""

_LONGEST_WAIT_S = 15.0

T = TypeVar("T")


def with_retries(
    action: Callable[[], T], say: Callable[[str], None] = lambda _: None, stop: threading.Event | None = None
) -> T:
    """Do something, and again after a while when it fails in a way that may pass.

    Args:
        action: Safe to do twice.
        say: Told of each failure that is not the last.
        stop: Once set, nothing is tried again.

    Raises:
        AtlasError: Its last error, or its first that will not pass.
    """
    stop = stop or threading.Event()
    for attempt in range(TRIES):
        try:
            return action()
        except AtlasError as error:
            if not error.retryable or attempt == TRIES - 1 or stop.is_set():
                raise
            say(f"{error.message} Trying again.")
            if stop.wait(min(2.0**attempt / 4, _LONGEST_WAIT_S)):
                raise
    raise AssertionError
