"""A place to keep objects: the contract, and the way to one. ``directory`` and ``s3`` are the two there are.

An object is written whole or not at all; ``create`` writes only where nothing is yet, and is what leases and commit
records stand on. Whatever a disk or a server raises is turned into our errors.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from zarr.abc.store import Store

from ...jobs.errors import InputError
from .directory import DirectoryLocation
from .s3 import S3Location


class Location(Protocol):
    """Objects under one URL. Paths are relative, with forward slashes."""

    @property
    def url(self) -> str:
        """The URL or absolute directory, without a trailing slash."""
        ...

    @property
    def endpoint_url(self) -> str | None:
        """The S3-compatible server it is reached through, the environment's included; None for AWS and directories."""
        ...

    def read(self, path: str) -> bytes | None:
        """Read an object; None when there is none."""
        ...

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes | None:
        """Read part of an object, less when it ends before; None when there is none."""
        ...

    def size(self, path: str) -> int | None:
        """Give an object's length in bytes; None when there is none."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write an object whole, over what is there."""
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write an object only if there is none; False when there was one."""
        ...

    def names(self, folder: str) -> list[str]:
        """List the names of the objects directly under a folder, sorted; empty when there is no such folder."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Give every object under a folder, at any depth, with its length in bytes; paths are the location's."""
        ...

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; one that is not there is no error."""
        ...

    def remove_empty_folder(self) -> None:
        """Remove the folder itself when it is a directory without any object; S3 has no folders."""
        ...

    def is_empty(self) -> bool:
        """Whether nothing at all is kept here."""
        ...

    def zarr(self, *, read_only: bool) -> Store:
        """Give a Zarr store rooted here; use it inside ``errors``."""
        ...

    def errors(self) -> AbstractContextManager[None]:
        """Turn what the disk or the server raises into our errors; the other methods do so by themselves."""
        ...


def open_location(url: str | os.PathLike[str], endpoint_url: str | None = None) -> Location:
    """Open a directory or an ``s3://bucket/prefix``; nothing is read or created yet.

    Args:
        url: Where.
        endpoint_url: Of an S3-compatible server; ``AWS_ENDPOINT_URL`` from the environment when None.

    Raises:
        InputError: The URL has another scheme or names no bucket, or the endpoint is no URL.
    """
    url = os.fspath(url)
    if url.startswith("s3://"):
        return S3Location(url, endpoint_url)
    if "://" in url:
        raise InputError(
            f"{url!r} is neither a directory nor an s3:// URL.",
            code="unknown_scheme",
            field="store.url",
            hint="Use one.",
        )
    return DirectoryLocation(Path(url))


def open_with_wrong_secret(location: Location) -> Location | None:
    """Open the same place with the last character of the secret changed; None where no secret is asked for."""
    from botocore.session import Session

    credentials = Session().get_credentials() if isinstance(location, S3Location) else None
    if credentials is None or not credentials.secret_key:
        return None
    last = "A" if credentials.secret_key[-1] != "A" else "B"
    wrong = {"key": credentials.access_key, "secret": credentials.secret_key[:-1] + last, "token": credentials.token}
    return S3Location(location.url, location.endpoint_url, wrong)
