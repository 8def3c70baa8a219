"""Reductions in the store: each is a Zarr group, written layer by layer and read when an array is used.

A reduction is written to a group with a unique path, then its record is created, then ``analysis/current.json`` is
replaced by a copy of the record. So an existing reduction is never changed, and readers never see part of a new one.
The record names every array with a digest: of the whole array, or of each layer where the array has an axis L.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from zarr.codecs import BloscCodec, BloscShuffle, Crc32cCodec

from ...jobs.errors import StoreError
from ..format import layout
from ..locations.location import Location
from .reduction import ARRAYS, LAYER_AXIS, TEXTS, Reduction, StoredArray

_RECORD = re.compile(r"[0-9a-f]{16}\.json")
"""Names of the records of reductions, beside ``current.json`` and what Zarr writes."""

_LATER_TEXTS = ("personas",)
"""Texts that reductions of earlier versions lack."""

_PARALLEL_WRITES = 3
"""Few, because each holds copies of an array: as it is stored, and compressed."""

_CHUNK_BYTES = 16 * 2**20
"""Size of the largest chunk that holds more than one layer."""


class ReductionWriter:
    """Writes the arrays of a reduction into a new group, a group of layers at a time.

    Nothing is visible to readers before ``finish``.

    Args:
        location: The run's store.
        reduction_id: Id of the reduction.
        num_layers: L.

    Attributes:
        path: Path of the group.
    """

    def __init__(self, location: Location, reduction_id: str, num_layers: int) -> None:
        self._location = location
        self._reduction_id = reduction_id
        self._num_layers = num_layers
        self._digests: dict[str, str | list[str]] = {}
        self._arrays: dict[str, Any] = {}
        # A random part in the path: two processes that compute the same reduction do not write into one group. The
        # record is created conditionally, so the first complete group of an id is the one that counts.
        self.path = layout.reduction_path(f"{reduction_id}-{uuid.uuid4().hex[:8]}")
        with location.errors():
            self._group: Any = zarr.create_group(location.zarr(read_only=False), path=self.path)

    def write(self, arrays: Mapping[str, npt.NDArray[Any]], start: int = 0) -> None:
        """Write arrays at some layers.

        Args:
            arrays: Values by name, floats of any precision or int64. Those without an axis L are whole.
            start: Position of the first of the layers. Layers are written in order, without gaps, the same number of
                them each time but for the last.
        """

        def write_one(name: str) -> None:
            values = arrays[name]
            if values.dtype.kind == "f":
                values = values.astype(np.float32, copy=False)
            if name in LAYER_AXIS:
                self._write_layers(name, values, start)
            else:
                self._digests[name] = _digest_of(values)
                self._create(name, values.shape, values.shape, values.dtype)[...] = values

        # Each takes a few round trips to the store, or milliseconds of zarr's.
        with self._location.errors(), ThreadPoolExecutor(_PARALLEL_WRITES) as pool:
            for _ in pool.map(write_one, arrays):
                pass

    def finish(self, sums: Sequence[str] = (), **texts: Any) -> None:
        """Write the texts and the record, and make the reduction the current one.

        Args:
            sums: Paths of the partial results that it was made of; ``gc`` keeps them while it is the current one.
            **texts: The fields of ``Reduction`` that are no arrays.
        """
        with self._location.errors():
            self._group.update_attributes({name: _plain(texts[name]) for name in TEXTS if name in texts})
        body = {"reduction_id": self._reduction_id, "path": self.path, "arrays": self._digests}
        record = json.dumps(body | ({"sums": sorted(sums)} if sums else {})).encode()
        self._location.create(layout.reduction_record_path(self._reduction_id), record)
        make_current(self._location, self._reduction_id)

    def _write_layers(self, name: str, values: npt.NDArray[Any], start: int) -> None:
        axis = LAYER_AXIS[name]
        count = values.shape[axis]
        if name not in self._arrays:
            shape = (*values.shape[:axis], self._num_layers, *values.shape[axis + 1 :])
            per_layer = max(1, values.nbytes // max(1, count))
            fitting = max(1, min(count, _CHUNK_BYTES // per_layer))
            # A divisor of what is written at a time, so that no chunk is written twice.
            layers = next(size for size in range(fitting, 0, -1) if count % size == 0)
            chunks = (*values.shape[:axis], layers, *values.shape[axis + 1 :])
            self._arrays[name] = self._create(name, shape, chunks, values.dtype)
        self._arrays[name][(slice(None),) * axis + (slice(start, start + count),)] = values
        digests = self._digests.setdefault(name, [])
        assert isinstance(digests, list)
        digests += [_digest_of(values[(slice(None),) * axis + (position,)]) for position in range(count)]

    def _create(self, name: str, shape: tuple[int, ...], chunks: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
        # A lost chunk reads as the fill value, so that is NaN; a damaged one fails its crc32c.
        fill = float("nan") if dtype.kind == "f" else None
        # Like activations. zstd makes hardly less of vectors, and took most of the time of a reduction that reads
        # little; so did comparing each chunk with the fill value, to leave out those that have no other.
        codecs = [BloscCodec(cname="lz4", clevel=5, shuffle=BloscShuffle.bitshuffle), Crc32cCodec()]
        config = {"write_empty_chunks": True}
        chunks = tuple(max(1, size) for size in chunks)
        return self._group.create_array(
            name, shape=shape, chunks=chunks, dtype=dtype, fill_value=fill, compressors=codecs, config=config
        )


def write_reduction(location: Location, reduction: Reduction) -> None:
    """Store a reduction and make it the current one.

    Args:
        location: The run's store.
        reduction: The reduction.

    Raises:
        AtlasError: The store cannot be reached or written.
    """
    num_layers = len(reduction.layers)
    writer = ReductionWriter(location, reduction.reduction_id, num_layers)
    found = {name: getattr(reduction, name) for name in ARRAYS}
    writer.write({name: values for name, values in found.items() if values is not None})
    writer.finish(**{name: getattr(reduction, name) for name in TEXTS})


def make_current(location: Location, reduction_id: str) -> bool:
    """Make a stored reduction the current one.

    Returns:
        Whether there is a complete reduction of that id.
    """
    record = location.read(layout.reduction_record_path(reduction_id))
    if record is None:
        return False
    if location.read(layout.CURRENT_REDUCTION) != record:
        location.write(layout.CURRENT_REDUCTION, record)
    return True


def current_reduction_id(location: Location) -> str | None:
    """Return the id of the current reduction without loading it; None when there is none.

    Raises:
        StoreError: ``analysis/current.json`` is damaged.
    """
    pointer = _read_pointer(location)
    return pointer["reduction_id"] if pointer else None


def sums_in_use(location: Location) -> set[str]:
    """Return the paths of the partial results that the current reduction was made of; empty when there is none.

    Raises:
        StoreError: ``analysis/current.json`` is damaged.
    """
    pointer = _read_pointer(location)
    return set(pointer["sums"]) if pointer else set()


def read_current_reduction(location: Location) -> Reduction | None:
    """Open the current reduction; None when there is none. Each array is read, and checked, when it is first used.

    Raises:
        StoreError: ``analysis/current.json`` or the group is damaged.
    """
    return _open(location, layout.CURRENT_REDUCTION)


def read_reduction(location: Location, reduction_id: str) -> Reduction | None:
    """Open a stored reduction, current or not; None when there is none of that id.

    Raises:
        StoreError: Its record or its group is damaged.
    """
    return _open(location, layout.reduction_record_path(reduction_id))


def reduction_ids(location: Location) -> list[str]:
    """List the ids of the complete reductions of a store, sorted."""
    return [name.removesuffix(".json") for name in location.names(layout.ANALYSIS) if _RECORD.fullmatch(name)]


def _open(location: Location, record_path: str) -> Reduction | None:
    pointer = _read_pointer(location, record_path)
    if pointer is None:
        return None
    path, digests = pointer["path"], pointer["arrays"]
    # Caught here, inside ``errors()``, which would report a missing group as a missing bucket.
    with location.errors():
        try:
            group: Any = zarr.open_group(location.zarr(read_only=True), path=path, mode="r")
            texts: dict[str, Any] = {name: group.attrs[name] for name in TEXTS if name not in _LATER_TEXTS}
            texts |= {name: group.attrs[name] for name in _LATER_TEXTS if name in group.attrs}
        except _UNREADABLE as error:
            raise _damaged(location, path, str(error)) from error
    texts = {name: tuple(value) if isinstance(value, list) else value for name, value in texts.items()}
    texts["personas"] = tuple(tuple(persona) for persona in texts.get("personas", ()))
    # By the record and not by the group: a lost array would look like one that is undefined.
    arrays: dict[str, Any] = {
        name: _ArrayInStore(location, group, path, name, digests[name]) for name in ARRAYS if name in digests
    }
    return Reduction(reduction_id=pointer["reduction_id"], **texts, **arrays)


def check_reduction(location: Location) -> None:
    """Read every array of the current reduction, one at a time, and compare it with its digest.

    Raises:
        StoreError: The reduction is damaged.
    """
    reduction = read_current_reduction(location)
    for name in ARRAYS if reduction is not None else ():
        # Not by attribute: that would keep each of them in memory.
        stored = object.__getattribute__(reduction, name)
        if isinstance(stored, _ArrayInStore):
            stored.check()


_UNREADABLE = (ValueError, TypeError, KeyError, RuntimeError, FileNotFoundError, IndexError)
"""What zarr and its codecs raise where metadata or a chunk is damaged or missing."""


class _ArrayInStore(StoredArray):
    """An array of a stored reduction.

    Args:
        location: The run's store.
        group: The reduction's Zarr group.
        path: Path of the group.
        name: Name of the array.
        digests: Digest of the array, or of each layer.
    """

    def __init__(self, location: Location, group: Any, path: str, name: str, digests: str | list[str]) -> None:
        self._location = location
        self._group = group
        self._path = path
        self._name = name
        self._digests = digests
        self._whole: npt.NDArray[Any] | None = None

    def whole(self) -> npt.NDArray[Any]:
        """Fetch all of it, once.

        Raises:
            StoreError: It is missing or damaged.
        """
        if self._whole is None:
            self._whole = self._checked(None)
        return self._whole

    def at(self, positions: Sequence[int]) -> npt.NDArray[Any]:
        """Fetch some layers; an array of an earlier version, which has one digest, is fetched whole.

        Raises:
            StoreError: It is missing or damaged.
        """
        if self._whole is None and isinstance(self._digests, list):
            return self._checked(list(positions))
        return np.take(self.whole(), list(positions), axis=LAYER_AXIS[self._name])

    def check(self) -> None:
        """Fetch it a layer at a time, and keep nothing.

        Raises:
            StoreError: It is missing or damaged.
        """
        if isinstance(self._digests, list):
            for position in range(len(self._digests)):
                self._checked([position])
        else:
            self._checked(None)

    def _checked(self, positions: list[int] | None) -> npt.NDArray[Any]:
        axis = LAYER_AXIS.get(self._name, 0)
        with self._location.errors():
            try:
                array = self._group[self._name]
                if positions is None:
                    values = np.asarray(array[...])
                else:
                    values = np.asarray(array.oindex[(slice(None),) * axis + (positions,)])
            except _UNREADABLE as error:
                raise _damaged(self._location, self._path, f"array {self._name}: {error}") from error
        # Zarr reads a missing chunk as the fill value. The digests in the record find that.
        if isinstance(self._digests, list):
            expected = self._digests if positions is None else [self._digests[position] for position in positions]
            found = [_digest_of(np.take(values, place, axis=axis)) for place in range(values.shape[axis])]
        else:
            expected, found = [self._digests], [_digest_of(values)]
        if found != expected:
            raise _damaged(
                self._location, self._path, f"array {self._name}, whose values are not those that were written"
            )
        return values


def _digest_of(values: np.ndarray) -> str:
    """Return the SHA-256 of an array's dtype, shape and values, as hexadecimal digits."""
    digest = sha256(f"{values.dtype.str}{values.shape}".encode())
    if values.size:
        # Not as bytes, which would be one more copy of the largest arrays for each that is written at a time.
        digest.update(np.ascontiguousarray(values).data.cast("B"))
    return digest.hexdigest()


def _read_pointer(location: Location, path: str = layout.CURRENT_REDUCTION) -> dict[str, Any] | None:
    pointer = location.read(path)
    if pointer is None:
        return None
    try:
        data = json.loads(pointer)
        return {
            "reduction_id": str(data["reduction_id"]),
            "path": str(data["path"]),
            "arrays": dict(data["arrays"]),
            "sums": [str(path) for path in data.get("sums", ())],
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(location, path, str(error)) from error


def _damaged(location: Location, path: str, reason: str) -> StoreError:
    return StoreError(
        f"the reduction cannot be read: {reason}.",
        code="bad_reduction",
        file=f"{location.url}/{path}",
        hint=f"Delete {layout.ANALYSIS}/ and run reduce again; activations are not affected.",
    )


def _plain(value: Any) -> Any:
    return [_plain(part) for part in value] if isinstance(value, tuple) else value
