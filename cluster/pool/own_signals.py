"""Keep this process's signal handlers while Ray, which installs handlers of its own, starts and stops in it.

``ray.init`` replaces the handler of SIGTERM by one that exits, and puts one beneath it that prints a stack and aborts
the process three seconds later; ``ray.shutdown`` leaves SIGTERM with its default, which ends the process at once.
Does not import Ray.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_KEPT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class OwnSignals:
    """The handlers that this process had when this object was made; does nothing outside the main thread."""

    def __init__(self) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        handlers = {number: signal.getsignal(number) for number in _KEPT} if is_main else {}
        # None stands for a handler that was not installed from Python and cannot be installed again from here.
        self._handlers = {number: handler for number, handler in handlers.items() if handler is not None}

    def restore(self) -> None:
        """Install the handlers again."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Restore the handlers at the end of a block in which Ray may replace them, and pass on what Ray has caught."""
        try:
            yield
        except SystemExit as error:
            if not self._handlers or error.code != signal.SIGTERM:
                raise
            # Ray's handler raised it. The process would be aborted by an alarm that Ray has set.
            signal.alarm(0)
            self.restore()
            signal.raise_signal(signal.SIGTERM)
            raise
        finally:
            self.restore()
