"""A proxy in front of an S3 server that passes everything on as it came, and takes scripted faults.

A request is handed to the server with the headers that the client signed, ``Host`` among them. A fault is a function of
one exchange: it may hold the request, cut the connection, answer by itself, or pass it on and lose the reply.
"""

from __future__ import annotations

import fnmatch
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import unquote, urlsplit

_HOP_BY_HOP = {"connection", "keep-alive", "expect", "transfer-encoding", "content-length"}


class Exchange:
    """One request, and what becomes of it."""

    def __init__(self, handler: BaseHTTPRequestHandler, server: tuple[str, int]) -> None:
        self._handler = handler
        self._server = server
        self._answer: bytes | None = None
        self.is_over = False
        self.method = handler.command
        url = urlsplit(handler.path)
        # Without the bucket.
        self.path = unquote(url.path).lstrip("/").partition("/")[2]
        self.query = url.query
        self.headers = handler.headers
        self.body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))

    def forward(self) -> None:
        """Have the server do it and keep its answer."""
        connection = HTTPConnection(*self._server, timeout=60)
        try:
            connection.putrequest(self.method, self._handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self._handler.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    connection.putheader(name, value)
            if self.body or self.method in ("PUT", "POST"):
                connection.putheader("Content-Length", str(len(self.body)))
            connection.endheaders(self.body or None)
            reply = connection.getresponse()
            body = reply.read()
            headers = [(name, value) for name, value in reply.getheaders() if name.lower() not in _HOP_BY_HOP]
            # The answer to HEAD tells a length and has no body.
            length = reply.getheader("Content-Length") if self.method == "HEAD" else str(len(body))
            self._answer = _http(reply.status, reply.reason, [*headers, ("Content-Length", length or "0")], body)
        finally:
            connection.close()

    def pass_on(self) -> None:
        """Have the server do it, if it has not yet, and give the client its answer."""
        if self._answer is None:
            self.forward()
        self.reply()

    def reply(self) -> None:
        """Give the client the server's answer."""
        assert self._answer is not None
        self._send(self._answer)

    def reply_half(self) -> None:
        """Give the client the first half of the server's answer, then hang up."""
        assert self._answer is not None
        self._send(self._answer[: len(self._answer) // 2])
        self.cut()

    def answer(self, status: int, code: str, **more_headers: str) -> None:
        """Answer in the server's place."""
        body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>scripted</Message></Error>'
        data = b"" if self.method == "HEAD" else body.encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(data)))]
        headers += more_headers.items()
        self._send(_http(status, code, headers, data))

    def cut(self) -> None:
        """Hang up."""
        self.is_over = True
        self._handler.close_connection = True
        with suppress(OSError):
            self._handler.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, data: bytes) -> None:
        self.is_over = True
        # The client may have gone meanwhile.
        with suppress(OSError):
            self._handler.wfile.write(data)


def _http(status: int, reason: str, headers: list[tuple[str, str]], body: bytes) -> bytes:
    head = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} {reason}\r\n{head}\r\n".encode("latin-1") + body


Fault = Callable[[Exchange], None]
"""What happens to an exchange. One that it leaves open is passed on."""


def cut(exchange: Exchange) -> None:
    """The request never arrives."""
    exchange.cut()


def lose_reply(exchange: Exchange) -> None:
    """The server does it, and nobody learns of it."""
    exchange.forward()
    exchange.cut()


def half_answer(exchange: Exchange) -> None:
    """The server does it, and its answer ends in the middle."""
    exchange.forward()
    exchange.reply_half()


def answer(status: int, code: str) -> Fault:
    """The server refuses, and does nothing."""
    return lambda exchange: exchange.answer(status, code)


def answer_after_storing(status: int, code: str) -> Fault:
    """The server does it, and says that it failed."""

    def fault(exchange: Exchange) -> None:
        exchange.forward()
        exchange.answer(status, code)

    return fault


def slowly(seconds: float) -> Fault:
    """The answer comes late."""

    def fault(exchange: Exchange) -> None:
        exchange.forward()
        time.sleep(seconds)
        exchange.reply()

    return fault


class Held:
    """The request hangs in the network until it is let go; then it arrives, whoever sent it."""

    def __init__(self) -> None:
        self._is_here = threading.Event()
        self._may_go = threading.Event()
        self._has_arrived = threading.Event()

    def __call__(self, exchange: Exchange) -> None:
        self._is_here.set()
        assert self._may_go.wait(120)
        exchange.forward()
        self._has_arrived.set()

    def wait_until_held(self) -> None:
        assert self._is_here.wait(60), "no such request came"

    def let_go(self) -> None:
        """Let it arrive, and wait until the server has done it."""
        self._may_go.set()
        assert self._has_arrived.wait(60)


@dataclass
class _Rule:
    fault: Fault
    method: str
    path: str
    skip: int
    times: int
    has_happened: bool = False

    def takes(self, exchange: Exchange) -> bool:
        if not (fnmatch.fnmatch(exchange.method, self.method) and fnmatch.fnmatch(exchange.path, self.path)):
            return False
        if self.skip:
            self.skip -= 1
            return False
        if not self.times:
            return False
        self.times -= 1
        self.has_happened = True
        return True


class FaultProxy:
    """Listens on a port of its own, which stays the same over ``stop`` and ``start``."""

    def __init__(self, endpoint_url: str) -> None:
        self.server_url = endpoint_url
        target = urlsplit(endpoint_url)
        assert target.hostname is not None
        self._target = (target.hostname, target.port or 80)
        self._rules: list[_Rule] = []
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._port = 0
        self.requests: list[tuple[str, str]] = []
        self.start()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def script(self, fault: Fault, method: str = "*", path: str = "*", *, skip: int = 0, times: int = 1) -> None:
        """Have a fault happen to the next requests that fit, after ``skip`` of them.

        Args:
            fault: What happens.
            method: Of the request, as a glob.
            path: In the bucket, as a glob; ``*`` takes slashes, too.
            skip: So many that fit pass unharmed.
            times: So many are harmed.
        """
        with self._lock:
            self._rules.append(_Rule(fault, method, path, skip, times))

    @property
    def untouched(self) -> list[str]:
        """Paths of the faults that have happened to no request so far."""
        return [rule.path for rule in self._rules if not rule.has_happened]

    def clear(self) -> None:
        """Forget all faults and requests."""
        with self._lock:
            self._rules.clear()
            self.requests.clear()

    def start(self) -> None:
        """Accept connections."""
        self._server = _Server(("127.0.0.1", self._port), self._handle, self._connections)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Hang up on everybody and refuse connections."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        for connection in list(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _handle(self, handler: BaseHTTPRequestHandler) -> None:
        exchange = Exchange(handler, self._target)
        with self._lock:
            self.requests.append((exchange.method, exchange.path))
            rule = next((rule for rule in self._rules if rule.takes(exchange)), None)
        if rule is not None:
            rule.fault(exchange)
        if not exchange.is_over:
            exchange.pass_on()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self,
        address: tuple[str, int],
        handle: Callable[[BaseHTTPRequestHandler], None],
        connections: set[socket.socket],
    ) -> None:
        self.handle_exchange = handle
        self.connections = connections
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or a server that is gone: either way the connection is over."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _exchange(self) -> None:
        cast(_Server, self.server).handle_exchange(self)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _exchange

    def log_request(self, code: object = "-", size: object = "-") -> None:
        pass


@contextmanager
def fault_proxy(endpoint_url: str) -> Iterator[FaultProxy]:
    """A proxy for as long as a test."""
    proxy = FaultProxy(endpoint_url)
    try:
        yield proxy
    finally:
        proxy.stop()
