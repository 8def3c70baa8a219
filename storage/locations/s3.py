"""A prefix on S3 as a place to keep objects, through s3fs; see ``Location`` for the contract. The one that asks S3.

Credentials come from the environment, the user's AWS profile or the instance's role, as boto does it; they never pass
through here.
"""

from __future__ import annotations

import asyncio
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
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
"""Requests in flight at a time; the client's own 10 would hold readers and the driver's commits back."""

_DELETED_AT_ONCE = 1000
"""What S3 takes in one request."""


class S3Location:
    """A ``Location`` on S3, or on a server that speaks its protocol.

    Args:
        url: ``s3://bucket/prefix``.
        endpoint_url: Of the server; ``AWS_ENDPOINT_URL`` from the environment when None.
        credentials: ``key``, ``secret`` and ``token`` for who must not use what boto finds.

    Raises:
        InputError: The URL names no bucket, or the endpoint is no URL.
    """

    def __init__(self, url: str, endpoint_url: str | None, credentials: Mapping[str, str | None] | None = None) -> None:
        self._root = url.removeprefix("s3://").strip("/")
        self._credentials: dict[str, Any] = dict(credentials or {})
        if not self._root:
            raise InputError(f"{url!r} names no bucket.", code="no_bucket", field=_FIELD, hint="s3://bucket/prefix")
        self._endpoint_url = endpoint_url or os.environ.get("AWS_ENDPOINT_URL") or None
        if self._endpoint_url and not re.match(r"https?://[^/]", self._endpoint_url):
            raise InputError(
                f"{self._endpoint_url!r} is no URL of a server.",
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

    def size(self, path: str) -> int | None:
        with self.errors():
            try:
                return int(self._fs.info(self._at(path), refresh=True)["size"])
            except FileNotFoundError:
                return None

    def _filesystem(self, *, asynchronous: bool) -> Any:
        import s3fs

        # A listing that is cached would hide what other processes write.
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
                # One connection, for s3fs asks for the size first when it may use more.
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
                # A range that begins beyond the object's end.
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
                # Ceph's gateway answers a refused condition with EINVAL's translation.
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

    def sizes(self, folder: str) -> dict[str, int]:
        with self.errors():
            found = self._fs.find(self._at(folder), detail=True, refresh=True)
            return {name.removeprefix(f"{self._root}/"): int(found[name]["size"]) for name in sorted(found)}

    def delete(self, paths: Iterable[str]) -> None:
        with self.errors():
            bucket, _, prefix = self._root.partition("/")
            keys = [{"Key": str(PurePosixPath(prefix) / path)} for path in paths]
            for start in range(0, len(keys), _DELETED_AT_ONCE):
                batch = {"Objects": keys[start : start + _DELETED_AT_ONCE], "Quiet": True}
                # Through s3fs's own deletion the errors of single keys would be lost.
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
        # One for all stores of this location, so that a query does not open connections of its own.
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
    """Say what the server said: s3fs keeps its message, which some leave out, and not its code, which all send."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    if not isinstance(cause, ClientError):
        return str(error).removesuffix(".")
    said = cause.response.get("Error", {})
    return " ".join(part for part in (said.get("Code"), said.get("Message")) if part).removesuffix(".")


async def _running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


def _not_deleted(url: str, error: Mapping[str, str]) -> AtlasError:
    """Say why S3 did not delete one of several objects."""
    what = f"{error.get('Key')} was not deleted from {url}: {error.get('Code')} {error.get('Message', '')}".rstrip()
    if error.get("Code") == "AccessDenied":
        return InputError(f"{what}.", code="store_denied", field=_FIELD, hint="Use credentials that may delete.")
    return TransientError(f"{what}.", code="store_io", field=_FIELD)
