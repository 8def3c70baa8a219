"""What a checkpoint holds: names and sizes of its files, its small files, and the headers of its weights.

The rules of the other modules read a checkpoint only through a ``Listing``, so they are the same for a directory and
for a repository on the hub, whose weights need not be fetched for them.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, Protocol

from ....jobs.errors import InputError
from ....jobs.machine_faults import refuse_machine_fault

MAX_HEADER_BYTES = 100_000_000
"""Longest header of a safetensors file, by the format's own rule."""

_POINTER = b"version https://git-lfs"


class Listing(Protocol):
    """A checkpoint, whose weights need not be on this machine.

    Attributes:
        place: Its directory or Hugging Face id, for messages.
        directory: Directory with the small files: configuration, tokenizer, index of the weights.
        names: Names of the files that lie directly in it, without those of subfolders.
    """

    place: str
    directory: Path
    names: frozenset[str]

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None if there is no such file.

        Args:
            name: Path of the file inside the checkpoint.
        """
        ...

    def header(self, name: str) -> dict[str, Any]:
        """Read the header of a safetensors file: entries with ``dtype``, ``shape`` and ``data_offsets`` by tensor.

        Args:
            name: Path of the file inside the checkpoint.

        Raises:
            ValueError: It is not a whole safetensors file; says what it is.
        """
        ...


class DirectoryListing:
    """A checkpoint in a directory.

    Args:
        directory: The directory.

    Raises:
        InputError: It may not be listed.
        TransientError: The machine failed, a disk for instance.
    """

    def __init__(self, directory: Path) -> None:
        self.place = str(directory)
        self.directory = directory
        try:
            self.names = frozenset(path.name for path in directory.iterdir() if path.is_file())
        except OSError as error:
            refuse_machine_fault(error)
            raise InputError(
                f"{self.place} cannot be listed: {error.strerror or error}.",
                code="unreadable_file",
                field="model.source",
                hint="Check the path and its permissions.",
            ) from None

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None if there is no such file."""
        path = self.directory / name
        return path.stat().st_size if path.is_file() else None

    def header(self, name: str) -> dict[str, Any]:
        """Read the header of a safetensors file, and compare it with the file's length."""
        path = self.directory / name
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(len(_POINTER))
            if start == _POINTER:
                raise ValueError("a git-lfs pointer and not the weights")
            if len(start) < 8:
                raise ValueError(f"no weights, only {size} bytes")
            (length,) = struct.unpack("<Q", start[:8])
            if length > min(size, MAX_HEADER_BYTES):
                raise ValueError("not a safetensors file, or cut short")
            file.seek(8)
            header = parse_header(file.read(length))
        whole = 8 + length + max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        if size != whole:
            raise ValueError(f"{'cut short' if size < whole else 'too long'}: {size:,} bytes instead of {whole:,}")
        return header


def parse_header(text: bytes) -> dict[str, Any]:
    """Parse the header of a safetensors file, without its free-form metadata.

    Args:
        text: The header's JSON.

    Raises:
        ValueError: It is not such a header.
    """
    try:
        header = json.loads(text)
        header.pop("__metadata__", None)
        for tensor in header.values():
            start, stop = tensor["data_offsets"]
            if not (isinstance(tensor["dtype"], str) and 0 <= start <= stop):
                raise ValueError
            if not all(type(extent) is int and extent >= 0 for extent in tensor["shape"]):
                raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ValueError("not a safetensors file: its header cannot be read") from None
    return header


def read_json(listing: Listing, name: str) -> dict[str, Any]:
    """Read a small JSON file of a checkpoint.

    Args:
        listing: The checkpoint.
        name: Name of the file.

    Returns:
        The object; empty if the file does not exist.

    Raises:
        ValueError: The file may not be read, is empty, a git-lfs pointer, or no JSON object; says which.
        TransientError: The machine failed, a disk for instance.
    """
    path = listing.directory / name
    if not path.is_file():
        return {}
    try:
        data = path.read_bytes()
    except OSError as error:
        refuse_machine_fault(error)
        raise ValueError(f"cannot be read ({error.strerror or error})") from None
    if data.startswith(_POINTER):
        raise ValueError("a git-lfs pointer and not the file")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ValueError("not JSON" if data.strip() else "empty") from None
    if not isinstance(value, dict):
        raise ValueError("no JSON object")
    return value
