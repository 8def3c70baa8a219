"""A stand-in of the Hugging Face Hub's protocol for datasets: listings, reads, commits, large files, tokens."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_writer"
_SMALL = (".json", ".md", ".jsonl", ".gitattributes")


@dataclass
class Dataset:
    """A repository: whether it is private, and every commit with all of its files."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes | None]) -> str:
        """Add files, or replace them; None deletes one."""
        changed = {**(self.commits[-1][1] if self.commits else {}), **files}
        whole = {path: data for path, data in changed.items() if data is not None}
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(whole)}".encode()).hexdigest()
        self.commits.append((sha, whole))
        return sha

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class DatasetHub:
    """The hub: datasets by id, uploaded large files, and what was requested.

    Attributes:
        requests: Method and path of every request.
        fail: Called with method and path before each request; returns a status to answer with instead, or None.
    """

    datasets: dict[str, Dataset] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fail: Callable[[str, str], int | None] = lambda method, path: None
    url: str = ""

    def of(self, method: str, pattern: str) -> list[str]:
        """Paths of the requests of a method that match a pattern."""
        return [path for asked, path in self.requests if asked == method and re.search(pattern, path)]


def _entry(path: str, data: bytes) -> dict[str, Any]:
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": blob}
    if not path.endswith(_SMALL):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


def _listing(files: dict[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]] | None:
    prefix = f"{folder}/" if folder else ""
    below = {path: data for path, data in files.items() if path.startswith(prefix)}
    if not below and folder:
        return None
    folders: set[str] = set()
    for path in below:
        parts = path.removeprefix(prefix).split("/")[:-1]
        ends = range(1, len(parts) + 1) if recursive else range(1, min(len(parts), 1) + 1)
        folders |= {prefix + "/".join(parts[:end]) for end in ends}
    listed = [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in sorted(folders)]
    return listed + [
        _entry(path, data) for path, data in below.items() if recursive or "/" not in path.removeprefix(prefix)
    ]


def _handler(hub: DatasetHub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            """Print nothing."""

        def do_HEAD(self) -> None:
            self._answer("HEAD")

        def do_GET(self) -> None:
            self._answer("GET")

        def do_POST(self) -> None:
            self._answer("POST")

        def do_PUT(self) -> None:
            self._answer("PUT")

        def _answer(self, method: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = urlsplit(self.path)
            path = unquote(parts.path)
            hub.requests.append((method, path))
            status = hub.fail(method, path)
            if status is not None:
                self._send(status, {"error": "as the test demands"})
            elif path == "/api/repos/create":
                self._create(json.loads(body))
            elif path == "/api/validate-yaml":
                self._send(200, {"errors": [], "warnings": []})
            elif found := re.fullmatch(r"/large/([0-9a-f]{64})", path):
                hub.large[found[1]] = body
                self._send(200, {})
            elif found := re.fullmatch(r"/(?:api/)?datasets/([^/]+/[^/]+?)(?:\.git)?(/.*)?", path):
                self._of_dataset(method, found[1], found[2] or "", parse_qs(parts.query), body)
            else:
                self._send(404, {"error": path})

        @property
        def _may_write(self) -> bool:
            return self.headers.get("Authorization") == f"Bearer {TOKEN}"

        def _create(self, asked: dict[str, Any]) -> None:
            name = f"{asked.get('organization')}/{asked['name']}"
            if not self._may_write:
                self._send(401, {"error": "Invalid username or password."})
            elif name in hub.datasets:
                self._send(409, {"error": "exists", "url": f"{hub.url}/datasets/{name}"})
            else:
                hub.datasets[name] = Dataset(private=asked.get("private") or asked.get("visibility") == "private")
                hub.datasets[name].commit({".gitattributes": b"* text\n"})
                self._send(200, {"url": f"{hub.url}/datasets/{name}"})

        def _of_dataset(self, method: str, name: str, rest: str, query: dict[str, list[str]], body: bytes) -> None:
            dataset = hub.datasets.get(name)
            if dataset is None or (dataset.private and not self._may_write):
                self._send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
                return
            if rest == "/info/lfs/objects/batch":
                self._send(200, {"objects": [self._upload_of(thing) for thing in json.loads(body)["objects"]]})
                return
            found = re.fullmatch(
                r"(?:/(revision|tree|paths-info|resolve|preupload|commit)/([^/]+)(?:/(.*))?)?", rest or ""
            )
            verb, revision, place = (
                (found[1] or "revision", found[2] or "main", found[3] or "") if found else ("", "", "")
            )
            commit = dataset.at(revision)
            if not verb:
                self._send(404, {"error": rest})
            elif commit is None:
                self._send(404, {"error": "no revision"}, {"X-Error-Code": "RevisionNotFound"})
            elif verb == "revision":
                about = {"id": name, "sha": commit[0], "private": dataset.private, "tags": [], "siblings": []}
                self._send(200, about)
            elif verb == "tree":
                listed = _listing(commit[1], place, recursive=query.get("recursive", [""])[0].lower() in ("true", "1"))
                missing = {"X-Error-Code": "EntryNotFound"}
                self._send(404, {}, missing) if listed is None else self._send(200, listed)
            elif verb == "paths-info":
                asked = parse_qs(body.decode()).get("paths", [])
                known = [_entry(path, commit[1][path]) for path in asked if path in commit[1]]
                folders = [
                    path for path in asked if _listing(commit[1], path, recursive=True) and path not in commit[1]
                ]
                known += [{"type": "directory", "path": path, "size": 0, "oid": "0" * 40} for path in folders]
                self._send(200, known)
            elif verb == "resolve":
                self._send_file(commit[1].get(place), commit[0])
            elif not self._may_write:
                self._send(403, {"error": "no right to write"})
            elif verb == "preupload":
                modes = [
                    {
                        "path": file["path"],
                        "uploadMode": "regular" if file["path"].endswith(_SMALL) else "lfs",
                        "shouldIgnore": False,
                    }
                    for file in json.loads(body)["files"]
                ]
                self._send(200, {"files": modes})
            else:
                sha = dataset.commit(self._files_of(body))
                self._send(200, {"commitUrl": f"{hub.url}/datasets/{name}/commit/{sha}", "commitOid": sha})

        def _upload_of(self, thing: dict[str, Any]) -> dict[str, Any]:
            if thing["oid"] in hub.large:
                return thing
            return thing | {"actions": {"upload": {"href": f"{hub.url}/large/{thing['oid']}"}}}

        def _files_of(self, body: bytes) -> dict[str, bytes | None]:
            files: dict[str, bytes | None] = {}
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    files[line["value"]["path"]] = None
                elif line["key"] == "lfsFile":
                    data = hub.large[line["value"]["oid"]]
                    assert hashlib.sha256(data).hexdigest() == line["value"]["oid"]
                    files[line["value"]["path"]] = data
            return files

        def _send_file(self, data: bytes | None, commit: str) -> None:
            if data is None:
                self._send(404, {}, {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if asked is None:
                self._send(200, data, headers)
                return
            start, stop = int(asked[1]), min(int(asked[2]) + 1, len(data))
            self._send(206, data[start:stop], headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"})

        def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
            data = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
            for name, value in ({"Content-Type": kind} | (headers or {})).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

    return Handler


@contextmanager
def running_dataset_hub() -> Iterator[DatasetHub]:
    """Serve a hub, and make the hub's client in this process use it, over plain HTTP."""
    from huggingface_hub import constants

    hub = DatasetHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    try:
        with (
            patch.object(constants, "ENDPOINT", hub.url),
            patch.object(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template),
            patch.object(constants, "HF_HUB_OFFLINE", False),
            patch.object(constants, "HF_HUB_DISABLE_XET", True),
        ):
            yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
