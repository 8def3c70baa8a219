"""``Location`` on S3 or an S3-compatible server, through s3fs.

Every request of this package to S3 is made here or by the Zarr store that this module opens. Credentials come from
botocore's own chain (environment, AWS profile, instance role); they are never read from a job's specification and never
stored.

``create`` is a PUT with ``If-None-Match: *``: the server refuses it when the key exists. A lease and a commit record
are correct only if the server honours that header, and not every S3-compatible server does: ``acquire`` tests it on
each lease, and ``persona-atlas probe-store`` tests it with racing processes.
"""

from __future__ import annotations

import asyncio
import errno
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from ...jobs.errors import AtlasError, InputError, TransientError
from ...jobs.files.store_url import S3_SCHEME, normal_store_url
from ...jobs.specs.store_spec import S3Access
from .s3_connections import close_with
from .s3_errors import STALE_CREDENTIALS, WITHOUT_CODE, code_of, not_deleted, translate
from .s3_requests import make_filesystem
from .s3_server import configured_server, require_plain_endpoint

_FIELD = "store.url"

_PARALLEL_LISTINGS = 8
"""Listings at a time: a page of 1000 names costs a server more than a small object."""

_KEYS_PER_DELETE = 1000
"""Keys per DeleteObjects request: the limit of the S3 API."""

_RENEW_EVERY_S = 20.0
"""Shortest time between two renewals of the credentials: each opens connections of its own."""


class S3Location:
    """A ``Location`` on S3, or on a server that speaks its protocol.

    Args:
        url: ``s3://bucket/prefix``.
        endpoint_url: URL of an S3-compatible server; None: the one that botocore finds in the environment or the AWS
            profile, else AWS.
        access: How requests to the bucket are made.
        credentials: ``key``, ``secret`` and ``token`` as s3fs takes them, instead of those that botocore finds.

    Raises:
        InputError: The URL cannot be a store, or the endpoint is not a plain http(s) URL, wherever it comes from.
    """

    def __init__(
        self,
        url: str,
        endpoint_url: str | None,
        access: S3Access | None = None,
        credentials: Mapping[str, str | None] | None = None,
    ) -> None:
        # Normalised here too, because every key of the store depends on it.
        self._root = normal_store_url(url).removeprefix(S3_SCHEME)
        self._access = access or S3Access()
        self._credentials: dict[str, Any] = dict(credentials or {})
        found = endpoint_url or configured_server().endpoint_url
        self._endpoint_url = require_plain_endpoint(found) if found else None
        self._fs = self._filesystem()
        self._zarr_fs: Any = None
        self._was_accepted = False
        self._renewing = threading.Lock()
        self._renewed_at = -math.inf

    @property
    def url(self) -> str:
        return f"{S3_SCHEME}{self._root}"

    @property
    def endpoint_url(self) -> str | None:
        return self._endpoint_url

    @property
    def access(self) -> S3Access:
        """How requests are made."""
        return self._access

    def with_wrong_secret(self) -> S3Location | None:
        """Open the same prefix with the last character of the secret key changed; None without a secret key."""
        from botocore.session import Session

        if self._access.anonymous:
            return None
        credentials = Session().get_credentials()
        if credentials is None or not credentials.secret_key:
            return None
        last = "A" if credentials.secret_key[-1] != "A" else "B"
        secret = credentials.secret_key[:-1] + last
        wrong = {"key": credentials.access_key, "secret": secret, "token": credentials.token}
        return S3Location(self.url, self.endpoint_url, self._access, wrong)

    def size(self, path: str) -> int | None:
        with self.errors():
            try:
                return int(self._ask("info", self._at(path), refresh=True)["size"])
            except FileNotFoundError:
                return None
            except OSError as error:
                if code_of(error) not in WITHOUT_CODE:
                    raise
                # The answer to HEAD has no body, and so no code. A GET of the first byte raises the reason, or gets
                # new credentials.
                if self.read_range(path, 0, 1) is None:
                    return None
                return int(self._ask("info", self._at(path), refresh=True)["size"])

    def _filesystem(self) -> Any:
        fs = make_filesystem(self._endpoint_url, self._access, self._credentials, asynchronous=False)
        close_with(self, fs, fs.loop)
        return fs

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        """Call a method of s3fs; a second time, with new credentials, if the server takes the present ones no more."""
        fs = self._fs
        try:
            answer = getattr(fs, method)(*arguments, **options)
        except Exception as error:
            # What does not exist, or exists already, is told to known requesters only.
            self._was_accepted |= isinstance(error, (FileNotFoundError, FileExistsError))
            if code_of(error) not in STALE_CREDENTIALS or not self._renew(fs):
                raise
            answer = getattr(self._fs, method)(*arguments, **options)
        self._was_accepted = True
        return answer

    def _with_code(self, error: Exception) -> Exception:
        """Return an error that has the server's code. The answer to HEAD has no body, and so none: a GET asks again."""
        if code_of(error) not in WITHOUT_CODE:
            return error
        try:
            self._ask("cat_file", self._at("any"), start=0, end=1)
        except (OSError, ClientError, BotoCoreError) as known:
            return known if code_of(known) not in (*WITHOUT_CODE, "NoSuchKey") else error
        return error

    def _renew(self, refused: Any) -> bool:
        """Have botocore look up credentials again, and return whether there are others than those just refused."""
        with self._renewing:
            if self._fs is refused:
                if self._credentials or time.monotonic() < self._renewed_at + _RENEW_EVERY_S:
                    return False
                # Other threads may be using the old filesystem: it is closed with the location.
                self._fs, self._zarr_fs = self._filesystem(), None
                self._renewed_at = time.monotonic()
            return True

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _bucket_and_prefix(self) -> tuple[str, str]:
        # s3fs knows that the ARN of an access point, which stands for a bucket, has a slash in it.
        bucket, prefix, _ = self._fs.split_path(self._root)
        return bucket, prefix

    def read(self, path: str) -> bytes | None:
        with self.errors():
            try:
                # With more than one connection s3fs first asks for the size: a second request for each small object.
                return self._ask("cat_file", self._at(path), max_concurrency=1)
            except FileNotFoundError:
                return None

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes | None:
        with self.errors():
            try:
                return self._ask("cat_file", self._at(path), start=start, end=start + num_bytes)
            except FileNotFoundError:
                return None
            except OSError as error:
                # S3 answers 416 to a range that starts at or past the end of the object; the contract says: no bytes.
                if error.errno == errno.EINVAL and (size := self.size(path)) is not None and size <= start:
                    return b""
                raise

    def write(self, path: str, data: bytes) -> None:
        with self.errors():
            self._ask("pipe_file", self._at(path), data)

    def create(self, path: str, data: bytes, *, flush: bool = True) -> bool:
        with self.errors():
            try:
                self._ask("pipe_file", self._at(path), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                # AWS answers a failed condition with 412, which s3fs raises as FileExistsError. Ceph's gateway sends
                # an error that s3fs translates to EINVAL, as it does for bad requests. Only if the object exists was
                # it the condition that failed.
                if error.errno == errno.EINVAL and self.read(path) is not None:
                    return False
                raise
            return True

    def names(self, folder: str) -> list[str]:
        with self.errors():
            try:
                entries = self._ask("ls", self._at(folder), detail=True, refresh=True)
            except FileNotFoundError:
                return []
            return sorted(PurePosixPath(e["name"]).name for e in entries if e["type"] == "file")

    def names_between(self, folder: str, ranges: Sequence[tuple[str, str]]) -> list[str]:
        with ThreadPoolExecutor(_PARALLEL_LISTINGS) as pool:
            pages = pool.map(lambda ends: self._names_between(folder, *ends), ranges)
            return [name for page in pages for name in page]

    def _names_between(self, folder: str, first: str, last: str) -> list[str]:
        with self.errors():
            bucket, _, prefix = self._at(folder).partition("/")
            # A listing starts after a key. A prefix of the first name is before it, and little else is between the two.
            start = {"StartAfter": f"{prefix}/{first[:-1]}"}
            names: list[str] = []
            while True:
                page = self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/", Delimiter="/", **start)
                listed = [PurePosixPath(entry["Key"]).name for entry in page.get("Contents", [])]
                names += [name for name in listed if first <= name <= last]
                if not page.get("IsTruncated") or (listed and listed[-1] >= last):
                    return names
                start = {"ContinuationToken": page["NextContinuationToken"]}

    def sizes(self, folder: str) -> dict[str, int]:
        with self.errors():
            found = self._ask("find", self._at(folder), detail=True, refresh=True)
            return {name.removeprefix(f"{self._root}/"): int(found[name]["size"]) for name in sorted(found)}

    def delete(self, paths: Iterable[str]) -> None:
        with self.errors():
            bucket, prefix = self._bucket_and_prefix()
            keys = [{"Key": f"{prefix}/{path}" if prefix else path} for path in paths]
            for start in range(0, len(keys), _KEYS_PER_DELETE):
                batch = {"Objects": keys[start : start + _KEYS_PER_DELETE], "Quiet": True}
                # DeleteObjects answers 200 and lists keys that it could not delete. ``s3fs.rm`` drops that list.
                answer = self._ask("call_s3", "delete_objects", Bucket=bucket, Delete=batch)
                for error in answer.get("Errors", []):
                    raise not_deleted(self.url, error)

    def remove_empty_folder(self) -> None:
        pass

    def is_empty(self) -> bool:
        with self.errors():
            try:
                return not self._ask("ls", self._root, detail=False, refresh=True)
            except FileNotFoundError as error:
                bucket, prefix = self._bucket_and_prefix()
                if prefix and self._ask("exists", bucket):
                    return True
                raise InputError(
                    f"there is no bucket {bucket!r}.",
                    code="no_bucket",
                    field=_FIELD,
                    hint="Create it, or check store.endpoint_url and the region.",
                ) from error

    def zarr(self, *, read_only: bool) -> Store:
        # Zarr needs an asynchronous filesystem, which has a connection pool of its own. One serves all Zarr stores of
        # this location; else each query would open new connections.
        if self._zarr_fs is None:
            self._zarr_fs = make_filesystem(self._endpoint_url, self._access, self._credentials, asynchronous=True)
            close_with(self, self._zarr_fs, sync(_running_loop()))
        return FsspecStore(self._zarr_fs, path=self._root, read_only=read_only)

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except AtlasError:
            raise
        except (OSError, ClientError, BotoCoreError) as error:
            fs = self._fs
            known = self._with_code(error)
            if code_of(known) in STALE_CREDENTIALS:
                # Of Zarr's requests, which ``_ask`` does not make: the next try has new credentials.
                self._renew(fs)
            if self._fs is not fs:
                raise TransientError(
                    f"{self.url} no longer accepts the credentials of a request; others have been looked up since.",
                    code="credentials_expired",
                    field="store.url",
                    hint="Try again.",
                ) from error
            raise translate(
                known,
                url=self.url,
                bucket=self._bucket_and_prefix()[0],
                endpoint_url=self._endpoint_url,
                was_accepted=self._was_accepted,
            ) from error


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()
