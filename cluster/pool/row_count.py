"""How many rollouts a worker has finished of the units that it holds, told every few seconds. Knows no Ray.

A unit of conversations takes minutes, and so do large units of a large model. Without this nobody would see that they
get on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

TELL_EVERY_S = 10.0
"""A report is sent for a count at most so often, however many rollouts are finished."""


class RowCount:
    """The count of one worker. Its methods may be called from several threads.

    Args:
        clock: Returns the time in seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._in_model = 0
        self._to_write = 0
        self._was_told = False
        self._next_at = clock() + TELL_EVERY_S

    def in_model(self, rows: int) -> int | None:
        """Note how many rollouts are finished of the units that the model works on.

        Args:
            rows: Their number.

        Returns:
            The count to tell; None where it is not time for one.
        """
        with self._lock:
            self._in_model = rows
            now = self._clock()
            if now < self._next_at:
                return None
            self._next_at, self._was_told = now + TELL_EVERY_S, True
            return self._in_model + self._to_write

    def to_write(self, rows: int) -> None:
        """Note that the model has finished a unit of so many rollouts, which is written next."""
        with self._lock:
            self._in_model = max(0, self._in_model - rows)
            self._to_write += rows

    def failed(self) -> int | None:
        """Note that units failed in the model; those that go on there are counted again with the next rollout.

        Returns:
            The count to tell with it; None where none was told.
        """
        with self._lock:
            self._in_model = 0
            return self._to_write if self._was_told else None

    def written(self, rows: int) -> int | None:
        """Note that a unit was written, or could not be; whoever hears of that counts its rollouts.

        Args:
            rows: Number of its rollouts.

        Returns:
            The count to tell with it, so that no rollout is counted twice; None where none was told.
        """
        with self._lock:
            self._to_write -= rows
            return self._in_model + self._to_write if self._was_told else None
