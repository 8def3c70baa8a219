"""``Location`` on a file system.

A reader must never see half an object, and a crash or a power cut must not leave a commit record whose objects are
lost. So each object is written to a temporary file, flushed to disk, and only then given its name; then the directory
entry is flushed too. POSIX and NFS make ``rename`` and ``link`` atomic; ``link`` fails when the name is taken, which
makes ``create`` a conditional write. ``exclusive_name`` does without links where there are none.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zarr.abc.store import Store
from zarr.storage import LocalStore

from ...jobs.errors import AtlasError, InputError, TransientError
from .exclusive_name import give_name, has_hard_links

_FIELD = "store.url"

_PART = re.compile(r"\..*\.[0-9a-f]{32}\.part")
"""File names of objects that are being written; a crash leaves one behind, which ``gc`` deletes."""


class DirectoryLocation:
    """A ``Location`` on a file system.

    Args:
        root: The directory; need not exist yet.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        return str(self._root)

    @property
    def endpoint_url(self) -> str | None:
        return None

    def size(self, path: str) -> int | None:
        with self.errors():
            try:
                return (self._root / path).stat().st_size
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read(self, path: str) -> bytes | None:
        with self.errors():
            try:
                return (self._root / path).read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                return None

    def read_range(self, path: str, start: int, num_bytes: int) -> bytes | None:
        with self.errors():
            try:
                with (self._root / path).open("rb") as file:
                    file.seek(start)
                    return file.read(num_bytes)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def write(self, path: str, data: bytes) -> None:
        with self.errors():
            temporary = self._write_temporary(path, data)
            temporary.replace(self._root / path)
            _sync_folder_of(self._root / path)

    def create(self, path: str, data: bytes, *, flush: bool = True) -> bool:
        with self.errors():
            temporary = self._write_temporary(path, data, flush=flush)
            if not give_name(temporary, self._root / path):
                return False
            if flush:
                _sync_folder_of(self._root / path)
            return True

    def _write_temporary(self, path: str, data: bytes, *, flush: bool = True) -> Path:
        """Write and flush a file beside its target, on the same file system, so that it can be renamed or linked."""
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                if flush:
                    os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def has_hard_links(self) -> bool:
        """Whether files here can have hard links; creates the directory."""
        with self.errors():
            self._root.mkdir(parents=True, exist_ok=True)
            return has_hard_links(self._root)

    def names(self, folder: str) -> list[str]:
        with self.errors():
            try:
                # Unlike ``Path.iterdir`` it need not ask for each entry whether it is a file.
                with os.scandir(self._root / folder) as entries:
                    return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_file())
            except FileNotFoundError:
                return []

    def names_between(self, folder: str, ranges: Sequence[tuple[str, str]]) -> list[str]:
        names = self.names(folder)
        parts = (names[bisect_left(names, first) : bisect_right(names, last)] for first, last in ranges)
        return [name for part in parts for name in part]

    def sizes(self, folder: str) -> dict[str, int]:
        with self.errors():
            files = [path for path in (self._root / folder).rglob("*") if path.is_file()]
            return {path.relative_to(self._root).as_posix(): path.stat().st_size for path in sorted(files)}

    def delete(self, paths: Iterable[str]) -> None:
        with self.errors():
            for path in paths:
                (self._root / path).unlink(missing_ok=True)

    def remove_empty_folder(self) -> None:
        with self.errors():
            for folder in sorted((path for path in self._root.rglob("*") if path.is_dir()), reverse=True):
                folder.rmdir()
            if self._root.is_dir():
                self._root.rmdir()

    def is_empty(self) -> bool:
        with self.errors():
            try:
                # A process that died while it wrote its first object leaves directories, and perhaps a temporary file.
                return not any(
                    not _PART.fullmatch(name) for _, _, names in os.walk(self._root, onerror=_raise) for name in names
                )
            except FileNotFoundError:
                return True

    def zarr(self, *, read_only: bool) -> Store:
        return LocalStore(self._root, read_only=read_only)

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except AtlasError:
            raise
        except OSError as error:
            raise _from_os_error(error, self.url) from error


def _raise(error: OSError) -> None:
    raise error


def _sync_folder_of(path: Path) -> None:
    """Flush the directory entry of a new file to disk.

    ``fsync`` of a file does not flush its name. Without this, a power cut could keep a commit record and lose an object
    that was written before it.
    """
    if os.name == "nt":
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError as error:
        # File systems in user space and network shares may keep no directories that could be flushed.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
            raise
    finally:
        os.close(folder)


def _from_os_error(error: OSError, url: str) -> AtlasError:
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"{url} cannot be used: {reason}.", code="store_denied", field=_FIELD, hint="Choose a place you may write."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return InputError(
            f"{url} cannot be a directory: {reason}.",
            code="store_not_a_directory",
            field=_FIELD,
            hint="Choose another place.",
        )
    if error.errno in (errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ):
        return InputError(
            f"{url} cannot hold this run: {reason}.",
            code="bad_path",
            field=_FIELD,
            hint="Choose a shorter path, without links that lead to themselves.",
        )
    if error.errno == errno.ENOSPC:
        return TransientError(
            f"the disk under {url} is full.", code="disk_full", field=_FIELD, hint="Free some space and start again."
        )
    return TransientError(f"{url} failed: {reason}.", code="store_io", field=_FIELD)
