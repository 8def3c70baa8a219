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
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
)
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.storage import FsspecStore

from ...jobs.errors import AtlasError, InputError, TransientError
from .s3_connections import close_with

_FIELD = "store.url"

_CONNECTIONS = 64
"""Connections in the pool. botocore's default of 10 is less than the 32 reads that a query makes at a time."""

_PARALLEL_LISTINGS = 8
"""Listings at a time: a page of 1000 names costs a server more than a small object."""

_KEYS_PER_DELETE = 1000
"""Keys per DeleteObjects request: the limit of the S3 API."""


class S3Location:
    """A ``Location`` on S3, or on a server that speaks its protocol.

    Args:
        url: ``s3://bucket/prefix``.
        endpoint_url: URL of an S3-compatible server; ``AWS_ENDPOINT_URL`` from the environment when None.
        credentials: ``key``, ``secret`` and ``token`` as s3fs takes them, instead of those that botocore finds.

    Raises:
        InputError: The URL names no bucket, or the endpoint is not an http(s) URL.
    """

    def __init__(self, url: str, endpoint_url: str | None, credentials: Mapping[str, str | None] | None = None) -> None:
        self._root = url.removeprefix("s3://").strip("/")
        self._credentials: dict[str, Any] = dict(credentials or {})
        if not self._root:
            raise InputError(
                f"{url!r} names no bucket.", code="no_bucket", field=_FIELD, hint="Write s3://bucket/prefix."
            )
        self._endpoint_url = endpoint_url or os.environ.get("AWS_ENDPOINT_URL") or None
        if self._endpoint_url and not re.match(r"https?://[^/]", self._endpoint_url):
            raise InputError(
                f"{self._endpoint_url!r} is not the URL of a server.",
                code="bad_endpoint",
                field="store.endpoint_url",
                hint="Write http://host:port or https://host, there or in AWS_ENDPOINT_URL.",
            )
        self._fs = self._filesystem(asynchronous=False)
        close_with(self, self._fs, self._fs.loop)
        self._zarr_fs: Any = None

    @property
    def url(self) -> str:
        return f"s3://{self._root}"

    @property
    def endpoint_url(self) -> str | None:
        return self._endpoint_url

    def with_wrong_secret(self) -> S3Location | None:
        """Open the same prefix with the last character of the secret key changed; None without a secret key."""
        from botocore.session import Session

        credentials = Session().get_credentials()
        if credentials is None or not credentials.secret_key:
            return None
        last = "A" if credentials.secret_key[-1] != "A" else "B"
        secret = credentials.secret_key[:-1] + last
        wrong = {"key": credentials.access_key, "secret": secret, "token": credentials.token}
        return S3Location(self.url, self.endpoint_url, wrong)

    def size(self, path: str) -> int | None:
        with self.errors():
            try:
                return int(self._fs.info(self._at(path), refresh=True)["size"])
            except FileNotFoundError:
                return None

    def _filesystem(self, *, asynchronous: bool) -> Any:
        import s3fs

        # A cached listing would hide commits and leases that other processes write. A shared instance would be closed
        # together with the first of the locations that use it.
        return s3fs.S3FileSystem(
            endpoint_url=self._endpoint_url,
            asynchronous=asynchronous,
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={"max_pool_connections": _CONNECTIONS},
            **self._credentials,
        )

    def _at(self, path: str) -> str:
        return str(PurePosixPath(self._root) / path)

    def read(self, path: str) -> bytes | None:
        with self.errors():
            try:
                # With more than one connection s3fs first asks for the size: a second request for each small object.
                return self._fs.cat_file(self._at(path), max_concurrency=1)
            except FileNotFoundError:
                return None

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes | None:
        with self.errors():
            try:
                return self._fs.cat_file(self._at(path), start=start, end=start + num_bytes)
            except FileNotFoundError:
                return None
            except OSError as error:
                # S3 answers 416 to a range that starts at or past the end of the object; the contract says: no bytes.
                if error.errno == errno.EINVAL and (size := self.size(path)) is not None and size <= start:
                    return b""
                raise

    def write(self, path: str, data: bytes) -> None:
        with self.errors():
            self._fs.pipe_file(self._at(path), data)

    def create(self, path: str, data: bytes) -> bool:
        with self.errors():
            try:
                self._fs.pipe_file(self._at(path), data, mode="create")
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
                entries = self._fs.ls(self._at(folder), detail=True, refresh=True)
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
            found = self._fs.find(self._at(folder), detail=True, refresh=True)
            return {name.removeprefix(f"{self._root}/"): int(found[name]["size"]) for name in sorted(found)}

    def delete(self, paths: Iterable[str]) -> None:
        with self.errors():
            bucket, _, prefix = self._root.partition("/")
            keys = [{"Key": str(PurePosixPath(prefix) / path)} for path in paths]
            for start in range(0, len(keys), _KEYS_PER_DELETE):
                batch = {"Objects": keys[start : start + _KEYS_PER_DELETE], "Quiet": True}
                # DeleteObjects answers 200 and lists keys that it could not delete. ``s3fs.rm`` drops that list.
                answer = self._fs.call_s3("delete_objects", Bucket=bucket, Delete=batch)
                for error in answer.get("Errors", []):
                    raise _not_deleted(self.url, error)

    def remove_empty_folder(self) -> None:
        pass

    def is_empty(self) -> bool:
        with self.errors():
            try:
                return not self._fs.ls(self._root, detail=False, refresh=True)
            except FileNotFoundError as error:
                bucket = self._root.split("/")[0]
                if self._root != bucket and self._fs.exists(bucket):
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
            self._zarr_fs = self._filesystem(asynchronous=True)
            close_with(self, self._zarr_fs, sync(_running_loop()))
        return FsspecStore(self._zarr_fs, path=self._root, read_only=read_only)

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except AtlasError:
            raise
        except (NoCredentialsError, PartialCredentialsError, ProfileNotFound) as error:
            raise InputError(
                f"there are no credentials for {self.url}: {_reason(error)}.",
                code="no_credentials",
                field=_FIELD,
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE.",
            ) from error
        except PermissionError as error:
            raise InputError(
                f"{self.url} refused these credentials: {_reason(error)}.",
                code="store_denied",
                field=_FIELD,
                hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and check their rights.",
            ) from error
        except FileNotFoundError as error:
            bucket = self._root.split("/")[0]
            raise InputError(
                f"there is no bucket {bucket!r}: {_reason(error)}.", code="no_bucket", field=_FIELD, hint="Create it."
            ) from error
        except (OSError, ClientError, BotoCoreError) as error:
            where = f" through {self._endpoint_url}" if self._endpoint_url else ""
            raise TransientError(
                f"{self.url}{where} failed: {_reason(error)}.",
                code="store_io",
                field=_FIELD,
                hint="Check that the server answers and store.endpoint_url is right, then start again.",
            ) from error


def _reason(error: BaseException) -> str:
    """Return the server's error code and message.

    s3fs raises an ``OSError`` with the message alone, which some servers leave empty. The code, which all of them send,
    is in the ``ClientError`` that caused it.
    """
    cause = error if isinstance(error, ClientError) else error.__cause__
    if not isinstance(cause, ClientError):
        return str(error).removesuffix(".")
    error_fields = cause.response.get("Error", {})
    return " ".join(part for part in (error_fields.get("Code"), error_fields.get("Message")) if part).removesuffix(".")


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def _not_deleted(url: str, error: Mapping[str, str]) -> AtlasError:
    """Make the error for one key that DeleteObjects reports as not deleted."""
    message = f"{error.get('Key')} was not deleted from {url}: {error.get('Code')} {error.get('Message', '')}".rstrip()
    if error.get("Code") == "AccessDenied":
        return InputError(
            f"{message}.", code="store_denied", field=_FIELD, hint="Use credentials that allow s3:DeleteObject."
        )
    return TransientError(f"{message}.", code="store_io", field=_FIELD)
