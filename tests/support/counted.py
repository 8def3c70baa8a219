"""A location that records its calls, a proxy that records requests to S3, and a server that refuses them."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from persona_atlas.storage.locations.location import Location
from zarr.abc.store import Store


@dataclass(frozen=True)
class Asked:
    """One call of a location.

    Attributes:
        method: Name of the method.
        path: Path of the object or folder.
        start: First byte of a ranged read.
        num_bytes: Bytes read or written, or requested by a ranged read.
    """

    method: str
    path: str
    start: int = 0
    num_bytes: int = 0


@dataclass
class Counted:
    """A location that records every call.

    Attributes:
        inner: The location that does the work.
        asked: The calls, oldest first.
    """

    inner: Location
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return self.inner.url

    @property
    def endpoint_url(self) -> str | None:
        return self.inner.endpoint_url

    def of(self, method: str) -> list[Asked]:
        """List the calls of one method."""
        return [asked for asked in self.asked if asked.method == method]

    def read(self, path: str) -> bytes | None:
        data = self.inner.read(path)
        self.asked.append(Asked("read", path, 0, len(data or b"")))
        return data

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes | None:
        self.asked.append(Asked("read_range", path, start, num_bytes))
        return self.inner.read_range(path, start, num_bytes)

    def size(self, path: str) -> int | None:
        self.asked.append(Asked("size", path))
        return self.inner.size(path)

    def write(self, path: str, data: bytes) -> None:
        self.asked.append(Asked("write", path, 0, len(data)))
        self.inner.write(path, data)

    def create(self, path: str, data: bytes, *, flush: bool = True) -> bool:
        self.asked.append(Asked("create", path, 0, len(data)))
        return self.inner.create(path, data, flush=flush)

    def names(self, folder: str) -> list[str]:
        self.asked.append(Asked("names", folder))
        return self.inner.names(folder)

    def names_between(self, folder: str, ranges: Sequence[tuple[str, str]]) -> list[str]:
        self.asked.extend(Asked("names_between", folder) for _ in ranges)
        return self.inner.names_between(folder, ranges)

    def sizes(self, folder: str) -> dict[str, int]:
        self.asked.append(Asked("sizes", folder))
        return self.inner.sizes(folder)

    def delete(self, paths: Iterable[str]) -> None:
        paths = list(paths)
        self.asked.extend(Asked("delete", path) for path in paths)
        self.inner.delete(paths)

    def remove_empty_folder(self) -> None:
        self.inner.remove_empty_folder()

    def is_empty(self) -> bool:
        self.asked.append(Asked("is_empty", ""))
        return self.inner.is_empty()

    def zarr(self, *, read_only: bool) -> Store:
        self.asked.append(Asked("zarr", ""))
        return self.inner.zarr(read_only=read_only)

    def errors(self) -> AbstractContextManager[None]:
        return self.inner.errors()


@contextmanager
def counting_server(endpoint: str) -> Iterator[tuple[str, list[str]]]:
    """Run a proxy before a server; yields its endpoint and the growing list of ``METHOD path`` of its requests."""
    behind = urlsplit(endpoint).netloc
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            requests.append(f"{self.command} {self.path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            connection = http.client.HTTPConnection(behind, timeout=30)
            connection.request(self.command, self.path, body, dict(self.headers.items()))
            answer = connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                    self.send_header(name, value)
            length = answer.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            self.send_header("Content-Length", length or "0")
            self.end_headers()
            self.wfile.write(data)
            connection.close()

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = pass_on

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with _serving(Handler) as endpoint_between:
        yield endpoint_between, requests


_REFUSAL = "<?xml version='1.0' encoding='UTF-8'?><Error><Code>{code}</Code><Message>No.</Message></Error>"


@contextmanager
def refusing_server(code: str) -> Iterator[str]:
    """Run an S3 server that refuses every request with an error code; yields its endpoint."""
    refusal = _REFUSAL.format(code=code).encode()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(403)
            self.send_header("Content-Type", "application/xml")
            self.send_header("Content-Length", str(len(refusal)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(refusal)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = refuse

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with _serving(Handler) as endpoint:
        yield endpoint


@contextmanager
def _serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
