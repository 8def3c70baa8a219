"""The tensors of safetensors files, mapped into memory and not read until they are used.

The mapping is shared and read-only, so its pages belong to the machine's page cache: they take no memory of this
process that could not be given back, and no limit on its data counts them.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch

from ....jobs.errors import InputError
from ...models.checkpoints.listing import DirectoryListing

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Types of tensors by their names in safetensors files."""


class TensorSource(Protocol):
    """Where the tensors of a checkpoint are taken from."""

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        ...

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor in main memory, which must not be written to.

        Args:
            name: One of ``names()``.
        """
        ...

    def will_need(self, names: Iterable[str]) -> None:
        """Begin to read tensors from the disk, without waiting for them.

        Args:
            names: Their names.
        """
        ...

    def let_go(self, names: Iterable[str]) -> None:
        """Tell that tensors are not used for the moment.

        Args:
            names: Their names.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies: the file, the range of its bytes, its type and shape."""

    file: int
    start: int
    stop: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class MappedFiles:
    """The tensors of the safetensors files of a directory.

    Args:
        directory: The checkpoint.
        names: Its files with weights.

    Raises:
        InputError: A file cannot be read, or has a type of tensors that is not known here.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self._maps: list[mmap.mmap] = []
        self._bytes: list[torch.Tensor] = []
        self._places: dict[str, _Place] = {}
        listing = DirectoryListing(directory)
        for number, name in enumerate(names):
            try:
                self._add(number, directory / name, listing.header(name))
            except (ValueError, OSError) as error:
                raise InputError(
                    f"{directory / name}: {error}.",
                    code="model_not_loaded",
                    field="model.source",
                    hint="Fetch it again.",
                ) from error

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._places.keys()

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor: a view of the mapped file, which must not be written to."""
        place = self._places[name]
        raw = self._bytes[place.file][place.start : place.stop]
        if raw.storage_offset() % place.dtype.itemsize:
            # The format asks for aligned tensors, but old files have others.
            raw = raw.clone()
        return raw.view(place.dtype).view(place.shape)

    def will_need(self, names: Iterable[str]) -> None:
        """Begin to read tensors from the disk; nothing where they are in the page cache already."""
        self._advise(names, mmap.MADV_WILLNEED)

    def let_go(self, names: Iterable[str]) -> None:
        """Unmap the pages of tensors from this process; the page cache keeps them as long as it has room."""
        self._advise(names, mmap.MADV_DONTNEED)

    def _add(self, number: int, path: Path, header: dict[str, dict[str, object]]) -> None:
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        begin = 8 + int.from_bytes(mapped[:8], "little")
        with warnings.catch_warnings():
            # That it is not writable: nothing writes to it.
            warnings.simplefilter("ignore")
            self._bytes.append(torch.frombuffer(mapped, dtype=torch.uint8))
        self._maps.append(mapped)
        for name, entry in header.items():
            self._places[name] = _place(number, begin, name, entry)

    def _advise(self, names: Iterable[str], advice: int) -> None:
        for file, start, stop in self._ranges(names):
            # Whole pages; those that a tensor shares with its neighbours do not matter.
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            self._maps[file].madvise(advice, first, stop - first)

    def _ranges(self, names: Iterable[str]) -> Iterator[tuple[int, int, int]]:
        """Yield the ranges of files that hold tensors; tensors that follow one another are one range."""
        places = sorted((place.file, place.start, place.stop) for name in names if (place := self._places[name]))
        joined: list[tuple[int, int, int]] = []
        for file, start, stop in places:
            if joined and joined[-1][0] == file and joined[-1][2] == start:
                joined[-1] = (file, joined[-1][1], stop)
            elif start < stop:
                joined.append((file, start, stop))
        yield from joined


def _place(number: int, begin: int, name: str, entry: dict[str, object]) -> _Place:
    dtype = _DTYPES.get(str(entry["dtype"]))
    if dtype is None:
        raise ValueError(f"{name} is of type {entry['dtype']}, which cannot be loaded layer by layer")
    start, stop = entry["data_offsets"]  # pyright: ignore[reportGeneralTypeIssues]
    return _Place(number, begin + start, begin + stop, dtype, tuple(entry["shape"]))  # pyright: ignore[reportArgumentType]
