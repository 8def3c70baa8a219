"""An S3 server for benchmarks, and a counter of the requests to it.

``ATLAS_TEST_S3`` is the URL of a running server, with AWS credentials in the environment; without it moto is started.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def s3_server() -> Iterator[str]:
    """Yield the URL of a new bucket; ``AWS_ENDPOINT_URL`` points to the server meanwhile."""
    given = os.environ.get("ATLAS_TEST_S3")
    if given:
        os.environ["AWS_ENDPOINT_URL"] = given
        yield _bucket(given)
        return
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        os.environ[name] = value
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    endpoint = f"http://127.0.0.1:{port}"
    os.environ["AWS_ENDPOINT_URL"] = endpoint
    try:
        _wait_for(server, endpoint)
        yield _bucket(endpoint)
    finally:
        server.terminate()
        server.wait(10)


def server_name() -> str:
    """Name the server: its URL, or ``moto``."""
    return os.environ.get("ATLAS_TEST_S3", "moto")


def _wait_for(server: subprocess.Popen[bytes], endpoint: str) -> None:
    for _ in range(100):
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
            return
        except (urllib.error.URLError, ConnectionError):
            if server.poll() is not None:
                break
            time.sleep(0.2)
    raise RuntimeError("moto's server did not answer within 20 s; is moto[server] installed?")


def _bucket(endpoint: str) -> str:
    import boto3

    name = f"atlas-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


class Wire:
    """Counts HTTP requests of this process to S3, including retries. A context manager.

    Patches the HTTP session of s3fs, which is below all retries and below Zarr.

    Attributes:
        requests: Number of requests sent.
        received_bytes: Bytes of the response bodies, by their ``Content-Length``.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.received_bytes = 0
        self._lock = threading.Lock()

    def __enter__(self) -> Wire:
        from aiobotocore.httpsession import AIOHTTPSession

        session: Any = AIOHTTPSession
        self._send = session.send

        async def send(this: Any, request: Any) -> Any:
            response = await self._send(this, request)
            body = int(response.headers.get("Content-Length", 0)) if request.method != "HEAD" else 0
            with self._lock:
                self.requests += 1
                self.received_bytes += body
            return response

        session.send = send
        return self

    def __exit__(self, *_: object) -> None:
        from aiobotocore.httpsession import AIOHTTPSession

        session: Any = AIOHTTPSession
        session.send = self._send
