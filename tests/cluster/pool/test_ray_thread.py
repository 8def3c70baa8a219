"""The thread that starts and stops Ray: its errors, and a signal that arrives while Ray starts."""

from __future__ import annotations

import logging
import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest
from persona_atlas.cluster.pool.ray_thread import RayThread


@pytest.fixture
def stopping_signal() -> Iterator[signal.Signals]:
    """A signal whose handler raises KeyboardInterrupt, as the command line's does."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    yield signal.SIGTERM
    signal.signal(signal.SIGTERM, before)


def test_an_error_of_the_start_is_raised_where_it_is_waited_for():
    def connect() -> None:
        raise ValueError("there is no cluster")

    thread = RayThread(connect)
    with pytest.raises(ValueError, match="no cluster"):
        thread.start()
    thread.stop()


def test_a_signal_during_the_start_ends_the_wait_and_the_start_is_finished_before_the_end(
    stopping_signal: signal.Signals,
):
    main = threading.get_ident()
    finished: list[float] = []

    def connect() -> None:
        signal.pthread_kill(main, stopping_signal)
        # Processes are forked here. A handler that raised in this thread would leave the lock of logging taken.
        for _ in range(20):
            subprocess.run(["true"], check=True, preexec_fn=lambda: None)
        finished.append(time.monotonic())

    thread = RayThread(connect)
    with pytest.raises(KeyboardInterrupt):
        thread.start()
    thread.stop()
    assert finished
    logged = threading.Thread(target=logging.getLogger("after").debug, args=("the lock is free",), daemon=True)
    logged.start()
    logged.join(10)
    assert not logged.is_alive()
