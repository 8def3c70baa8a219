"""A place to keep objects: a directory, or a prefix on S3 through s3fs. The one file that knows either.

Everything foreign is turned into our errors here. An object is written whole or not at all; ``create`` writes only
where nothing is yet, and is what leases and commit records stand on. Credentials come from the environment, the
user's AWS profile or the instance's role, as boto does it; they never pass through here.
"""

from __future__ import annotations

import errno
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from ..jobs.errors import AtlasError, InputError, TransientError

_FIELD = "store.url"

_CONNECTIONS = 64
"""Requests in flight at a time; the client's own 10 would hold readers and the driver's commits back."""

_DELETED_AT_ONCE = 1000
"""What S3 takes in one request."""
_PART = re.compile(r"\..*\.[0-9a-f]{32}\.part")
"""Names of a directory's objects while they are written."""


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


def open_location(url: str, endpoint_url: str | None = None) -> Location:
    """Open a directory or an ``s3://bucket/prefix``; nothing is read or created yet.

    Args:
        url: Where.
        endpoint_url: Of an S3-compatible server; ``AWS_ENDPOINT_URL`` from the environment when None.

    Raises:
        InputError: The URL has another scheme or names no bucket.
    """
    if url.startswith("s3://"):
        return _S3Location(url, endpoint_url)
    if "://" in url:
        raise InputError(
            f"{url!r} is neither a directory nor an s3:// URL.", code="unknown_scheme", field=_FIELD, mend="Use one."
        )
    return _LocalLocation(Path(url))


def open_with_wrong_secret(location: Location) -> Location | None:
    """Open the same place with the last character of the secret changed; None where no secret is asked for."""
    from botocore.session import Session

    credentials = Session().get_credentials() if isinstance(location, _S3Location) else None
    if credentials is None or not credentials.secret_key:
        return None
    last = "A" if credentials.secret_key[-1] != "A" else "B"
    wrong = {"key": credentials.access_key, "secret": credentials.secret_key[:-1] + last, "token": credentials.token}
    return _S3Location(location.url, location.endpoint_url, wrong)


class _LocalLocation:
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
            except FileNotFoundError:
                return None
            except NotADirectoryError:
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
            temporary = self._written_aside(path, data)
            temporary.replace(self._root / path)
            _keep_name(self._root / path)

    def create(self, path: str, data: bytes) -> bool:
        with self.errors():
            temporary = self._written_aside(path, data)
            try:
                # A link appears with its whole content or not at all, and never over another.
                os.link(temporary, self._root / path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink()
            _keep_name(self._root / path)
            return True

    def _written_aside(self, path: str, data: bytes) -> Path:
        target = self._root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.part")
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def names(self, folder: str) -> list[str]:
        with self.errors():
            try:
                entries = list((self._root / folder).iterdir())
            except FileNotFoundError:
                return []
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_file())

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
                # A process that died over its very first object has left folders, and perhaps a part of it.
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


def _keep_name(path: Path) -> None:
    """Make a file's new name outlast a power cut: a commit must not survive what it names."""
    if os.name == "nt":
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _from_os_error(error: OSError, url: str) -> AtlasError:
    reason = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InputError(
            f"{url} cannot be used: {reason}.", code="store_denied", field=_FIELD, mend="Choose a place you may write."
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        return InputError(
            f"{url} is not a directory: {reason}.", code="store_not_a_directory", field=_FIELD, mend="Choose another."
        )
    if error.errno == errno.ENOSPC:
        return TransientError(
            f"the disk under {url} is full.", code="disk_full", field=_FIELD, mend="Free some space and start again."
        )
    return TransientError(f"{url} failed: {reason}.", code="store_io", field=_FIELD)


class _S3Location:
    def __init__(self, url: str, endpoint_url: str | None, credentials: Mapping[str, str | None] | None = None) -> None:
        self._root = url.removeprefix("s3://").strip("/")
        self._credentials: dict[str, Any] = dict(credentials or {})
        if not self._root:
            raise InputError(f"{url!r} names no bucket.", code="no_bucket", field=_FIELD, mend="s3://bucket/prefix")
        self._endpoint_url = endpoint_url or os.environ.get("AWS_ENDPOINT_URL") or None
        self._fs = self._filesystem(asynchronous=False)
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
                    mend="Create it, or check store.endpoint_url and the region.",
                ) from error

    def zarr(self, *, read_only: bool) -> Store:
        # One for all stores of this location, so that a query does not open connections of its own.
        if self._zarr_fs is None:
            self._zarr_fs = self._filesystem(asynchronous=True)
        return FsspecStore(self._zarr_fs, path=self._root, read_only=read_only)

    @contextmanager
    def errors(self) -> Iterator[None]:
        try:
            yield
        except AtlasError:
            raise
        except (PermissionError, NoCredentialsError) as error:
            raise InputError(
                f"{self.url} refused these credentials: {error}.",
                code="store_denied",
                field=_FIELD,
                mend="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or AWS_PROFILE, and check their rights.",
            ) from error
        except FileNotFoundError as error:
            bucket = self._root.split("/")[0]
            raise InputError(
                f"there is no bucket {bucket!r}: {error}.", code="no_bucket", field=_FIELD, mend="Create it."
            ) from error
        except (OSError, ClientError, BotoCoreError) as error:
            where = f" through {self._endpoint_url}" if self._endpoint_url else ""
            raise TransientError(
                f"{self.url}{where} failed: {error}.",
                code="store_io",
                field=_FIELD,
                mend="Check that the server answers and store.endpoint_url is right, then start again.",
            ) from error


def _not_deleted(url: str, error: Mapping[str, str]) -> AtlasError:
    """Say why S3 did not delete one of several objects."""
    what = f"{error.get('Key')} was not deleted from {url}: {error.get('Code')} {error.get('Message', '')}".rstrip()
    if error.get("Code") == "AccessDenied":
        return InputError(f"{what}.", code="store_denied", field=_FIELD, mend="Use credentials that may delete.")
    return TransientError(f"{what}.", code="store_io", field=_FIELD)
