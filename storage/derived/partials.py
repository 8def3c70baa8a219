"""Partial results of a reduction in the store: arrays by layer, of one persona. Does not know what they mean.

An object holds named arrays for each layer, layer after layer, so that some layers are one ranged request:

    magic (4 bytes) | length of the header (4 bytes) | header (JSON) | its crc32c | layer 0 | layer 1 | ...

A layer is the arrays in the header's order, each a blosc frame and its crc32c. An object is created once, under a name
that holds a digest of what it was made of, and never changed; one that is damaged is made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import Blosc

from ..locations.location import Location

_MAGIC = b"PAP1"
_PROLOGUE_BYTES = 8
_CHECKSUM_BYTES = 4
_FIRST_READ_BYTES = 2**16
"""Enough for most headers; a longer one takes a second request."""

# Means are float64 whose mantissas look random: zstd saves another eighth and takes three times as long, and a bit
# shuffle takes twice as long as one of bytes for one per cent.
_BLOSC = Blosc(cname="lz4", clevel=5, shuffle=Blosc.SHUFFLE)

Arrays = Mapping[str, npt.NDArray[Any]]


class DamagedPartialError(ValueError):
    """A partial result is missing, cut short, or its bytes are not those that were written."""


class PartialWriter:
    """Encodes one object, layer by layer.

    Example:
        >>> writer = PartialWriter()
        >>> writer.add({"mean": np.zeros((2, 8))})
        >>> writer.finish({"units": []})[:4]
        b'PAP1'
    """

    def __init__(self) -> None:
        self._arrays: list[dict[str, Any]] = []
        self._lengths: list[list[int]] = []
        self._chunks: list[bytes] = []

    def add(self, arrays: Arrays) -> None:
        """Append the next layer.

        Args:
            arrays: Values by name, the same names, dtypes and shapes for every layer.
        """
        described = [{"name": n, "dtype": a.dtype.str, "shape": list(a.shape)} for n, a in arrays.items()]
        if self._arrays and described != self._arrays:
            raise ValueError("the arrays of a layer differ from those of the layer before")
        self._arrays = described
        chunks = [_with_checksum(_BLOSC.encode(np.ascontiguousarray(a))) if a.size else b"" for a in arrays.values()]
        self._lengths.append([len(chunk) for chunk in chunks])
        self._chunks += chunks

    def finish(self, content: Mapping[str, Any]) -> bytes:
        """Return the object; the writer is empty then.

        Args:
            content: What it was made of, as JSON; readers find it in ``Partial.content``.
        """
        header = {"content": dict(content), "arrays": self._arrays, "lengths": self._lengths}
        body = json.dumps(header, separators=(",", ":")).encode()
        whole = BytesIO()
        whole.writelines([_MAGIC, len(body).to_bytes(4, "little"), _with_checksum(body)])
        # Each is given up once it is written: joined, all would be there twice, 0.6 GB for the largest models.
        self._chunks.reverse()
        while self._chunks:
            whole.write(self._chunks.pop())
        return whole.getvalue()


@dataclass(frozen=True, eq=False)
class Partial:
    """A stored object whose header was read.

    Attributes:
        path: Path in the store.
        content: What it was made of.
        num_layers: L.
    """

    path: str
    content: dict[str, Any]
    num_layers: int
    _arrays: tuple[tuple[str, np.dtype[Any], tuple[int, ...]], ...]
    _lengths: npt.NDArray[np.int64]
    _start: int

    def read(self, location: Location, start: int, stop: int) -> dict[str, npt.NDArray[Any]]:
        """Read the layers ``start`` to ``stop``, exclusive, with one request.

        Args:
            location: The store.
            start: Position of the first layer.
            stop: Position after the last.

        Returns:
            Arrays by name, with the layers along a new first axis.

        Raises:
            DamagedPartialError: The object is gone or damaged.
        """
        per_layer = self._lengths.sum(axis=1)
        first = self._start + int(per_layer[:start].sum())
        data = location.read_range(self.path, first, int(per_layer[start:stop].sum())) or b""
        found = {name: np.empty((stop - start, *shape), dtype) for name, dtype, shape in self._arrays}
        end = 0
        for layer in range(start, stop):
            for (name, _, _), length in zip(self._arrays, self._lengths[layer].tolist(), strict=True):
                begin, end = end, end + length
                if length:
                    self._decode(data[begin:end], length, found[name][layer - start])
        return found

    def _decode(self, data: bytes, length: int, into: npt.NDArray[Any]) -> None:
        body, checksum = data[:-_CHECKSUM_BYTES], data[-_CHECKSUM_BYTES:]
        if len(data) != length or google_crc32c.value(body) != int.from_bytes(checksum, "little"):
            raise DamagedPartialError(f"{self.path}: a checksum does not match its bytes")
        try:
            _BLOSC.decode(body, into)
        except (RuntimeError, ValueError) as error:
            raise DamagedPartialError(f"{self.path}: {error}") from error


def open_partial(location: Location, path: str) -> Partial:
    """Read the header of an object.

    Args:
        location: The store.
        path: Path of the object.

    Raises:
        DamagedPartialError: There is none, or it is damaged.
    """
    data = location.read_range(path, 0, _FIRST_READ_BYTES) or b""
    if data[:4] != _MAGIC:
        raise DamagedPartialError(f"{path} is missing or is not a partial result")
    length = int.from_bytes(data[4:_PROLOGUE_BYTES], "little")
    end = _PROLOGUE_BYTES + length
    if len(data) < end + _CHECKSUM_BYTES:
        data = location.read_range(path, 0, end + _CHECKSUM_BYTES) or b""
    body, checksum = data[_PROLOGUE_BYTES:end], data[end : end + _CHECKSUM_BYTES]
    if len(checksum) < _CHECKSUM_BYTES or google_crc32c.value(body) != int.from_bytes(checksum, "little"):
        raise DamagedPartialError(f"{path}: the checksum of its header does not match")
    header = json.loads(body)
    arrays = tuple((a["name"], np.dtype(a["dtype"]), tuple(a["shape"])) for a in header["arrays"])
    lengths = np.array(header["lengths"], dtype=np.int64).reshape(-1, max(1, len(arrays)))
    return Partial(path, header["content"], len(lengths), arrays, lengths, end + _CHECKSUM_BYTES)


def check_partial(location: Location, path: str) -> None:
    """Read a whole object and check every checksum.

    Raises:
        DamagedPartialError: It is damaged.
    """
    found = open_partial(location, path)
    for layer in range(found.num_layers):
        found.read(location, layer, layer + 1)


def names_by_persona(names: Sequence[str]) -> dict[str, list[str]]:
    """Group the names of objects by what stands before their last dash, the persona and polarity.

    Example:
        >>> names_by_persona(["role-poet-pos-12ab", "role-poet-pos-34cd"])
        {'role-poet-pos': ['role-poet-pos-12ab', 'role-poet-pos-34cd']}
    """
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(name.rpartition("-")[0], []).append(name)
    return found


def _with_checksum(data: bytes) -> bytes:
    return data + google_crc32c.value(data).to_bytes(_CHECKSUM_BYTES, "little")
