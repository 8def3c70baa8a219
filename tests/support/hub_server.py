"""A small Hugging Face hub on this machine: it serves directories as repositories and notes what was fetched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from unittest.mock import patch

COMMIT = "a" * 40


class HubServer:
    """Repositories by id, and the files of which more than the first bytes were sent."""

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.fetched: list[str] = []
        self.url = ""

    def model_info(self, source: str) -> dict[str, Any]:
        """Describe a repository as the hub's API does."""
        root = self.repositories[source]
        files = sorted(path for path in root.rglob("*") if path.is_file())
        siblings = [{"rfilename": str(path.relative_to(root)), "size": path.stat().st_size} for path in files]
        return {"id": source, "modelId": source, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}

    def tree(self, source: str) -> list[dict[str, Any]]:
        """List a repository's files as the hub's API does."""
        listed = self.model_info(source)["siblings"]
        return [
            {"type": "file", "path": entry["rfilename"], "size": entry["size"], "oid": f"{number:040x}"}
            for number, entry in enumerate(listed)
        ]


def _handler(hub: HubServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Print nothing."""

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.split("?")[0]
            info = re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/.+)?", path)
            tree = re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/.+", path)
            file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path)
            known = next((found.group(1) for found in (tree, info, file) if found), None)
            if known not in hub.repositories:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
            elif tree or info:
                answer: Any = hub.tree(known) if tree else hub.model_info(known)
                self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body=body)
            elif file:
                self._send_file(hub.repositories[known] / file.group(2), file.group(2), body=body)

        def _send_file(self, path: Path, name: str, *, body: bool) -> None:
            data = path.read_bytes()
            headers = {"ETag": f'"{hash(data) & 0xFFFFFFFF:08x}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if asked:
                start, stop = int(asked.group(1)), min(int(asked.group(2)) + 1, len(data))
                headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
                self._send(206, data[start:stop], headers, body=body)
                return
            if body:
                hub.fetched.append(name)
            self._send(200, data, headers, body=body)

        def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    return Handler


@contextmanager
def running_hub(cache: Path) -> Iterator[HubServer]:
    """Serve a hub, and make the hub's client in this process use it, with an empty cache."""
    from huggingface_hub import constants

    hub = HubServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    try:
        with (
            patch.object(constants, "ENDPOINT", hub.url),
            patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
            patch.object(constants, "HF_HUB_CACHE", str(cache)),
            patch.object(constants, "HF_HUB_OFFLINE", False),
        ):
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
