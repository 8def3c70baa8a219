"""Start and stop Ray in a thread of its own, so that this process keeps its signal handlers.

In the main thread ``ray.init`` would install a handler of SIGTERM that raises, and while it starts its processes an
exception of any handler may strike where Python ignores it and keeps a lock: after a fork, the lock of ``logging``,
for which every thread would then wait for ever. In another thread neither happens, because Python runs handlers in the
main thread only, which waits here.

Two things are left. Ray's C++ part installs handlers that print a stack and abort the process, and ``ray.shutdown``
leaves SIGTERM with its default; the waiting main thread puts its own handlers back at once. And the kernel ends Ray's
processes with the thread that started them, so that thread lives until Ray is shut down.
"""

from __future__ import annotations

import atexit
import signal
import threading
import time
from collections.abc import Callable

_KEPT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_PAUSE_S = 0.02
"""Pause after which handlers that Ray has replaced are put back."""

_SHUTDOWN_S = 30.0
"""Most time that Ray gets to shut down, which takes a second or two, and to finish its start before that. Its processes
end with this one in any case."""


class RayThread:
    """A thread that connects to Ray, and shuts Ray down when it is told to.

    Args:
        connect: Calls ``ray.init``.
    """

    def __init__(self, connect: Callable[[], None]) -> None:
        self._connect = connect
        self._error: BaseException | None = None
        self._is_started = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)
        is_main = threading.current_thread() is threading.main_thread()
        handlers = {number: signal.getsignal(number) for number in _KEPT} if is_main else {}
        # None stands for a handler that was not installed from Python and cannot be installed again from here.
        self._handlers = {number: handler for number, handler in handlers.items() if handler is not None}

    def start(self) -> None:
        """Connect to Ray.

        Raises:
            BaseException: What ``connect`` raises.
        """
        self._thread.start()
        while not self._is_started.wait(_PAUSE_S):
            self._restore_handlers()
        self._restore_handlers()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Shut Ray down, and go on without it when it hangs, as it may when its own processes were stopped as well."""
        self._is_over.set()
        deadline = time.monotonic() + _SHUTDOWN_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            self._thread.join(_PAUSE_S)
            self._restore_handlers()
        if self._thread.is_alive():
            import ray

            # Ray would shut down once more when this process exits, and wait for the first to end.
            atexit.unregister(ray.shutdown)

    def _run(self) -> None:
        try:
            self._connect()
        except BaseException as error:  # noqa: BLE001 - raised by start, in the thread that waits for it
            self._error = error
        self._is_started.set()
        self._is_over.wait()
        import ray

        ray.shutdown()

    def _restore_handlers(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
