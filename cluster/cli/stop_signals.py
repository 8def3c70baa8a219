"""Signals that stop the command line: Ctrl-C, SIGTERM and SIGHUP raise KeyboardInterrupt in the main thread.

The kernel may deliver a signal to any thread of the process, and libraries such as OpenBLAS start threads when they are
imported. Python runs the handler in the main thread, but does not end a call there that waits, such as the wait for a
worker's next report. So a thread of its own learns of every signal and interrupts the main thread.
"""

from __future__ import annotations

import os
import signal
import stat
import threading
from collections.abc import Callable
from functools import cache
from types import FrameType

from . import output

EXIT_INTERRUPTED = 130

_STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_WAKING = signal.SIGURG
"""Sent to the main thread to interrupt a call that waits. By default it is ignored, so nothing else relies on it."""


def stop_on_signals() -> None:
    """Handle the signals that stop the command line; to be called in the main thread."""
    _handle_with(_on_first_signal)
    _watch_signals()


@cache
def _watch_signals() -> None:
    """Start the thread that interrupts the main thread, once in a process."""
    signal.signal(_WAKING, lambda *_: None)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_interrupt_main_thread, args=(reading,), name="signals", daemon=True).start()


def _interrupt_main_thread(reading: int) -> None:
    """Interrupt the main thread whenever the process has received a signal, whichever thread it was delivered to."""
    while numbers := os.read(reading, 64):
        if any(number != _WAKING for number in numbers):
            signal.pthread_kill(threading.main_thread().ident or 0, _WAKING)


def _on_first_signal(number: int, _frame: FrameType | None) -> None:
    # Where Ray's own handler came first, it has set an alarm that would abort the process in the middle of its end.
    signal.alarm(0)
    if number == signal.SIGHUP:
        _let_go_of_the_terminal()
    # A second Ctrl-C only warns, so that cleaning up is not cut short by accident; a third exits at once.
    _handle_with(_on_second_signal)
    raise KeyboardInterrupt


def _on_second_signal(number: int, _frame: FrameType | None) -> None:
    if number == signal.SIGHUP:
        _let_go_of_the_terminal()
    _handle_with(lambda *_: os._exit(EXIT_INTERRUPTED))
    output.progress().say("Still cleaning up; press Ctrl-C again to exit at once. Committed units are kept either way.")


def _handle_with(handler: Callable[[int, FrameType | None], object]) -> None:
    for each in _STOPPING:
        # nohup starts a process that ignores SIGHUP, and means it.
        if each is not signal.SIGHUP or signal.getsignal(each) is not signal.SIG_IGN:
            signal.signal(each, handler)


def _let_go_of_the_terminal() -> None:
    """Send what is still printed nowhere: the terminal is gone, and writing to it would raise."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        if stat.S_ISCHR(os.fstat(descriptor).st_mode):
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
