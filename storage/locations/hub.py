"""``Location`` on a dataset of the Hugging Face Hub, for reading only.

The hub keeps files in a repository, and a commit of it is a change of many files at once; there is no conditional write
of one object, so no run can be written there. ``push`` uploads a finished store. A location reads one commit, that of
its branch or tag when it was first used: a push in between changes nothing for it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore

from ...jobs.errors import InputError
from ...jobs.files.hub_url import HubUrl, parse_hub_url
from .hub_errors import hub_errors

_LISTED = "analysis"
"""Folder whose objects are listed before Zarr asks for them: a reduction lacks most of the arrays it could have."""


class _HubStore(FsspecStore):
    """A Zarr store that knows which objects of reductions there are: asking the hub costs a request for each."""

    def __init__(self, fs: Any, path: str, listed: frozenset[str]) -> None:
        super().__init__(fs, read_only=True, path=path)
        self._listed = listed

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        if key.startswith(f"{_LISTED}/") and key not in self._listed:
            return None
        return await super().get(key, prototype, byte_range)


class HubLocation:
    """A ``Location`` on a dataset of the Hugging Face Hub, for reading only.

    The server is that of ``HF_ENDPOINT``, and the token that of ``HF_TOKEN`` or of ``hf auth login``.

    Args:
        url: ``hf://datasets/OWNER/NAME[@REVISION][/PATH]``.

    Raises:
        InputError: The URL names no dataset.
    """

    def __init__(self, url: str) -> None:
        self.hub_url: HubUrl = parse_hub_url(url)

    @property
    def url(self) -> str:
        return str(self.hub_url)

    @property
    def endpoint_url(self) -> str | None:
        return None

    @cached_property
    def commit(self) -> str:
        """The commit that is read, as hexadecimal digits."""
        from huggingface_hub import HfApi

        with self.errors():
            found = HfApi().repo_info(self.hub_url.repo_id, revision=self.hub_url.revision, repo_type="dataset").sha
        if found is None:
            raise InputError(f"{self.url} has no commit yet.", code="no_revision", field="store.url")
        return found

    @cached_property
    def _fs(self) -> Any:
        from huggingface_hub import HfFileSystem

        # Instances are shared by default, and each keeps every listing.
        return HfFileSystem(skip_instance_cache=True)

    def _at(self, path: str) -> str:
        place = "/".join(part for part in (self.hub_url.path, path) if part)
        root = f"datasets/{self.hub_url.repo_id}@{self.commit}"
        return f"{root}/{place}" if place else root

    def read(self, path: str) -> bytes | None:
        with self.errors():
            try:
                return self._fs.cat_file(self._at(path))
            except FileNotFoundError:
                return None

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes | None:
        with self.errors():
            try:
                # Without a cache no more is fetched than is asked for.
                return self._fs.cat_file(self._at(path), start=start, end=start + num_bytes, cache_type="none")
            except FileNotFoundError:
                return None

    def size(self, path: str) -> int | None:
        with self.errors():
            try:
                found = self._fs.info(self._at(path))
            except FileNotFoundError:
                return None
            return int(found["size"]) if found["type"] == "file" else None

    def names(self, folder: str) -> list[str]:
        with self.errors():
            try:
                entries = self._fs.ls(self._at(folder), detail=True)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "file")

    def names_between(self, folder: str, ranges: Sequence[tuple[str, str]]) -> list[str]:
        names = self.names(folder)
        parts = (names[bisect_left(names, first) : bisect_right(names, last)] for first, last in ranges)
        return [name for part in parts for name in part]

    def sizes(self, folder: str) -> dict[str, int]:
        with self.errors():
            root = self._at("")
            try:
                found = self._fs.find(self._at(folder), detail=True)
            except FileNotFoundError:
                return {}
            return {name.removeprefix(f"{root}/"): int(found[name]["size"]) for name in sorted(found)}

    def is_empty(self) -> bool:
        return not any(path != ".gitattributes" for path in self.sizes(""))

    def write(self, path: str, data: bytes) -> None:
        raise self._read_only()

    def create(self, path: str, data: bytes, *, flush: bool = True) -> bool:
        raise self._read_only()

    def delete(self, paths: Iterable[str]) -> None:
        raise self._read_only()

    def remove_empty_folder(self) -> None:
        pass

    def zarr(self, *, read_only: bool) -> Store:
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper

        if not read_only:
            raise self._read_only()
        fs = AsyncFileSystemWrapper(self._fs, asynchronous=True)
        return _HubStore(fs, self._at(""), frozenset(self.sizes(_LISTED)))

    def errors(self) -> AbstractContextManager[None]:
        return hub_errors(self.url)

    def _read_only(self) -> InputError:
        return InputError(
            f"{self.url} is read-only: stores on the Hugging Face Hub are not written object by object.",
            code="read_only",
            field="store.url",
            hint=f"persona-atlas pull {self.url} DIR makes a copy to work on; push uploads it.",
        )
