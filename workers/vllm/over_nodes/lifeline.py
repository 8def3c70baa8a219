"""A connection between the processes of a replica over several nodes: when one of them is gone, the others end.

Ranks that wait for a dead one on another machine do not hear of it in time, and hold their GPUs meanwhile. A process
that was killed closes its connections, which is heard at once. Of a machine that has lost its power nothing is heard,
so each side sends a beat every second, and takes silence for the end of the other. Knows neither vLLM nor Ray.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import wait

BEAT_S = 1.0
SILENCE_S = 8.0
"""Silence that is taken for the end of a process that runs the model."""

LOADING_SILENCE_S = 60.0
"""The same of one that loads it: importing and compiling may hold its interpreter for long."""

SECRET_BYTES = 32
_GREETING_S = 10.0
_LOADING, _RUNNING = b"l", b"r"


class Lifeline:
    """One end of a process's connections to the others of its replica.

    Args:
        on_lost: Called in a thread, with the reason, when another process is gone; at most once.
    """

    def __init__(self, on_lost: Callable[[str], None]) -> None:
        self._on_lost = on_lost
        self._state = _LOADING
        self._is_closed = threading.Event()
        self._is_lost = threading.Lock()

    def loaded(self) -> None:
        """Tell the others that this process has loaded the model, and is to be heard from every second now."""
        self._state = _RUNNING

    def close(self) -> None:
        """Close the connections, for which the others take this process for gone."""
        self._is_closed.set()

    def _keep(self, connection: socket.socket, peer: str) -> None:
        """Send beats over a connection and listen to those of the other side, until one of them is gone."""
        reason = self._listen(connection, peer)
        connection.close()
        # The first reason is the one; the lock is never released.
        if reason is not None and self._is_lost.acquire(blocking=False):
            self._on_lost(reason)

    def _listen(self, connection: socket.socket, peer: str) -> str | None:
        heard_at, next_beat, state = time.monotonic(), 0.0, _LOADING
        connection.setblocking(False)
        while not self._is_closed.is_set():
            now = time.monotonic()
            try:
                if now >= next_beat:
                    next_beat = now + BEAT_S
                    # A full buffer of a peer that reads nothing: its silence decides.
                    with suppress(BlockingIOError):
                        connection.send(self._state)
                if wait([connection], BEAT_S / 4):
                    data = connection.recv(4096)
                    if not data:
                        return f"{peer} is gone"
                    heard_at, state = time.monotonic(), data[-1:]
            except OSError as error:
                return f"{peer} is gone: {error}"
            silent_s = time.monotonic() - heard_at
            if silent_s > (SILENCE_S if state == _RUNNING else LOADING_SILENCE_S):
                return f"{peer} was silent for {silent_s:.0f} s"
        return None


class LeaderLifeline(Lifeline):
    """The end of the process that leads: listens for the others.

    Args:
        address: Address of this machine.
        num_followers: Processes that will connect; further connections are refused.
        on_lost: As for :class:`Lifeline`.

    Attributes:
        port: Port to connect to.
        secret: What the others must say.
    """

    def __init__(self, address: str, num_followers: int, on_lost: Callable[[str], None]) -> None:
        super().__init__(on_lost)
        self.secret = secrets.token_bytes(SECRET_BYTES)
        self._num_followers = num_followers
        self._server = socket.create_server((address, 0), family=_family(address), backlog=num_followers + 1)
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name="lifeline", daemon=True).start()

    def close(self) -> None:
        """Close the connections; see :meth:`Lifeline.close`."""
        super().close()
        self._server.close()

    def _accept(self) -> None:
        num_known = 0
        while num_known < self._num_followers:
            try:
                connection, peer = self._server.accept()
            except OSError:
                # It was closed.
                return
            if not _greets(connection, self.secret):
                connection.close()
                continue
            num_known += 1
            who = f"a part of the replica, on {peer[0]},"
            threading.Thread(target=self._keep, args=(connection, who), name="lifeline", daemon=True).start()
        self._server.close()


class FollowerLifeline(Lifeline):
    """The end of a process that follows.

    Args:
        address: Address of the machine of the process that leads.
        port: Its port.
        secret: Its secret.
        on_lost: As for :class:`Lifeline`.

    Raises:
        OSError: There is nobody at the address.
    """

    def __init__(self, address: str, port: int, secret: bytes, on_lost: Callable[[str], None]) -> None:
        super().__init__(on_lost)
        connection = socket.create_connection((address, port), timeout=_GREETING_S)
        connection.sendall(secret)
        peer = f"the first part of the replica, on {address},"
        threading.Thread(target=self._keep, args=(connection, peer), name="lifeline", daemon=True).start()


def _greets(connection: socket.socket, secret: bytes) -> bool:
    """Read what the other side says first; whether it is the secret."""
    connection.settimeout(_GREETING_S)
    said = b""
    with suppress(OSError):
        while len(said) < len(secret) and (more := connection.recv(len(secret) - len(said))):
            said += more
    return hmac.compare_digest(said, secret)


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
