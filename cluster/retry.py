"""Retry calls to an object store or a cluster after transient errors, with exponential backoff."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ..jobs.errors import AtlasError

TRIES = 44
"""With waits that double from a quarter of a second up to 15 s: ten minutes in all, not counting the retries that the
store's own client makes within each try."""

_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 15.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff: the number of tries, and waits that double after each failure.

    Attributes:
        tries: Maximum number of calls, the first included.
        first_wait_s: Wait after the first failure, in seconds.
        longest_wait_s: Upper limit of a wait, in seconds.
    """

    tries: int
    first_wait_s: float
    longest_wait_s: float

    def wait_s(self, failures: int) -> float:
        """Return the seconds to wait after a number of failures.

        Example:
            >>> [Backoff(tries=9, first_wait_s=2, longest_wait_s=60).wait_s(failures) for failures in (1, 2, 8)]
            [2.0, 4.0, 60]
        """
        return min(2.0 ** (failures - 1) * self.first_wait_s, self.longest_wait_s)


def with_retries(
    action: Callable[[], T],
    say: Callable[[str], None] = lambda _: None,
    stop: threading.Event | None = None,
    *,
    backoff: Backoff | None = None,
    on_failure: Callable[[AtlasError], None] = lambda _: None,
) -> T:
    """Call an action, and repeat the call after a wait as long as it raises a retryable error.

    Args:
        action: The call; must be safe to repeat.
        say: Called with a line of text for every failure that is retried.
        stop: Once set, ends the wait and prevents further tries; the last error is raised.
        backoff: Number of tries and waits; None: ``TRIES`` tries within about ten minutes.
        on_failure: Called with every error that is retried, before the wait.

    Returns:
        What the action returns.

    Raises:
        AtlasError: The first error that is not retryable, or the error of the last try.
    """
    backoff = backoff or Backoff(TRIES, _FIRST_WAIT_S, _LONGEST_WAIT_S)
    stop = stop or threading.Event()
    failures = 0
    while True:
        try:
            return action()
        except AtlasError as error:
            failures += 1
            if not error.retryable or failures == backoff.tries or stop.is_set():
                raise
            wait_s = backoff.wait_s(failures)
            on_failure(error)
            say(f"{error.message} Trying again in {wait_s:.3g} s.")
            if stop.wait(wait_s):
                raise
