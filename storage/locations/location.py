"""The protocol ``Location`` for reading and writing objects, and ``open_location``, which picks an implementation.

``DirectoryLocation`` keeps objects as files, ``S3Location`` on S3; ``HubLocation`` reads a dataset of the Hugging Face
Hub, and refuses every write. In the first two, an object becomes visible with its whole
content or not at all, and ``create`` writes an object only where none exists. Leases and commit records rely on these
two guarantees. Errors of the file system and of the server are raised as ``AtlasError``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from zarr.abc.store import Store

from ...jobs.files.hub_url import is_hub
from ...jobs.files.store_url import is_s3, normal_store_url
from ...jobs.files.user_paths import expand_home
from ...jobs.specs.store_spec import S3Access
from .directory import DirectoryLocation
from .hub import HubLocation
from .s3 import S3Location


class Location(Protocol):
    """Objects under one URL. Paths are relative to it, with forward slashes."""

    @property
    def url(self) -> str:
        """The ``s3://`` or ``hf://`` URL in its normal form, or the absolute directory; without a trailing slash."""
        ...

    @property
    def endpoint_url(self) -> str | None:
        """URL of the S3-compatible server, also when botocore found it; None for AWS and for directories."""
        ...

    def read(self, path: str) -> bytes | None:
        """Read a whole object; None when it does not exist."""
        ...

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes | None:
        """Read ``num_bytes`` bytes from ``start``, fewer when the object ends before; None when it does not exist."""
        ...

    def size(self, path: str) -> int | None:
        """Return an object's length in bytes; None when it does not exist."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Write an object, and replace one of that path."""
        ...

    def create(self, path: str, data: bytes, *, flush: bool = True) -> bool:
        """Write an object only if the path is free; return False, and write nothing, when it is taken.

        Without ``flush`` a power cut may lose the object or cut it short, which its readers have to notice. For what
        can be computed again: flushing takes a disk some milliseconds.
        """
        ...

    def names(self, folder: str) -> list[str]:
        """List the names of the objects directly under a folder, sorted; empty when the folder does not exist."""
        ...

    def names_between(self, folder: str, ranges: Sequence[tuple[str, str]]) -> list[str]:
        """List those ``names`` of a folder that are in one of some ranges, first and last name included, in any order.

        On S3 a range takes a request for each 1000 names in it.
        """
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Map the path of every object under a folder, at any depth, to its length in bytes."""
        ...

    def delete(self, paths: Iterable[str]) -> None:
        """Delete objects; paths that do not exist are ignored."""
        ...

    def remove_empty_folder(self) -> None:
        """Remove the root directory once it holds no objects; does nothing on S3, which has no directories."""
        ...

    def is_empty(self) -> bool:
        """Whether no object exists here."""
        ...

    def zarr(self, *, read_only: bool) -> Store:
        """Return a Zarr store rooted here; use it inside ``errors()``."""
        ...

    def errors(self) -> AbstractContextManager[None]:
        """Raise errors of the disk or the server as ``AtlasError``; every other method does so by itself."""
        ...


def open_location(
    url: str | os.PathLike[str], endpoint_url: str | None = None, access: S3Access | None = None
) -> Location:
    """Return the location of a directory, an ``s3://bucket/prefix`` or an ``hf://`` dataset, without reading anything.

    Args:
        url: A path, in which a leading ``~`` is the home directory, or an ``s3://`` or ``hf://`` URL.
        endpoint_url: URL of an S3-compatible server; None: the one that botocore finds in the environment or the AWS
            profile, else AWS.
        access: How requests to a bucket are made; None: signed, and with nothing special.

    Raises:
        InputError: The URL cannot be a store (see ``normal_store_url``), the path has an unknown home directory, or the
            endpoint is not a plain http(s) URL.

    Example:
        >>> open_location("s3://bucket//prefix/").url
        's3://bucket/prefix'
    """
    text = normal_store_url(url)
    if is_s3(text):
        return S3Location(text, endpoint_url, access)
    if is_hub(text):
        return HubLocation(text)
    return DirectoryLocation(Path(expand_home(text, "store.url")))


def has_hard_links(location: Location) -> bool | None:
    """Whether objects of a directory get their names by hard links; None where there are no files."""
    return location.has_hard_links() if isinstance(location, DirectoryLocation) else None


def access_of(location: Location) -> S3Access:
    """Return how requests to a location are made, so that another process can open it in the same way."""
    return location.access if isinstance(location, S3Location) else S3Access()


def open_with_wrong_secret(location: Location) -> Location | None:
    """Open the same S3 prefix with the last character of the secret key changed; None where there is no secret key."""
    return location.with_wrong_secret() if isinstance(location, S3Location) else None
