"""An S3 server to measure against, and what goes over the wire to it.

``ATLAS_TEST_S3`` names one that runs already (with AWS credentials in the environment); else moto's is started.
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
    """Give the URL of an empty bucket's prefix; the endpoint stands in the environment meanwhile."""
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
    """Say which server is measured against."""
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
    raise RuntimeError("moto's server did not answer; is moto[server] installed?")


def _bucket(endpoint: str) -> str:
    import boto3

    name = f"atlas-{uuid.uuid4().hex[:8]}"
    boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}"


class Wire:
    """Counts the HTTP requests of this process to S3, retries too, and the bytes of the bodies that come back.

    Counted where s3fs hands a request to its HTTP session, under every retry and under Zarr. Use as a context manager.

    Attributes:
        requests: Sent.
        received_bytes: Of answers' bodies, as their lengths say.
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
            answer = await self._send(this, request)
            body = int(answer.headers.get("Content-Length", 0)) if request.method != "HEAD" else 0
            with self._lock:
                self.requests += 1
                self.received_bytes += body
            return answer

        session.send = send
        return self

    def __exit__(self, *_: object) -> None:
        from aiobotocore.httpsession import AIOHTTPSession

        session: Any = AIOHTTPSession
        session.send = self._send
