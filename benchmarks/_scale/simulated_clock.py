"""Simulated time: it passes as real time does, except where it is skipped or stopped."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Simulated time in seconds: real time, plus what was skipped, less what was stopped."""

    def __init__(self) -> None:
        self.restart(0.0)

    def restart(self, at_s: float) -> None:
        """Begin again.

        Args:
            at_s: The time from which it goes on; may be negative.
        """
        self._zero = time.perf_counter() - at_s
        self.skipped_s = 0.0
        self.stopped_s = 0.0

    @property
    def now(self) -> float:
        """The time, seconds."""
        return time.perf_counter() - self._zero + self.skipped_s - self.stopped_s

    def skip(self, seconds: float) -> None:
        """Let time pass at once.

        Args:
            seconds: How much.
        """
        self.skipped_s += seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Take no time for what a real driver would not have to do."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stopped_s += time.perf_counter() - began
