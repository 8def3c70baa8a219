"""Read rows of an activation array with one ranged request per unit and run of adjacent layers, many at a time.

Zarr's sharding codec would read each shard's index before a chunk of it: two requests per unit, each a round trip to
S3. The lengths of all inner chunks are known here beforehand (``chunk_index.ChunkLengths``), so a byte range is
computed and fetched at once. Each inner chunk carries a crc32c, which is checked; a wrong length thus shows as a failed
checksum, never as wrong numbers.

Axes: N rows, L requested layers, K layers of the array, C inner chunks per layer of a shard, R rows of an inner chunk,
D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ...jobs.errors import StoreError
from ..arrays.codec import Float32, decode_chunk, decode_chunks
from ..arrays.geometry import geometry_of
from ..format import layout
from ..format.records import RunRecord
from ..locations.location import Location
from ..run.chunk_index import ChunkLengths

PARALLEL_REQUESTS = 32
"""Ranged requests in flight at a time, at most: enough to hide the latency of S3."""

_BYTES_IN_FLIGHT = 256 * 2**20
"""Bound on the bytes of all requests in flight: a shard of per-token activations may have tens of megabytes."""

_PART_VALUES = 2**20
"""Values of a part that ``of_unit`` yields, 4 MiB: with smaller ones, threads mostly wait for Python's lock."""

_HINT = "Run verify, which lists all damage; verify --repair lets the next run make damaged units again."

Places = npt.NDArray[np.intp]
"""Positions in the N axis of the result."""


@dataclass(frozen=True, slots=True)
class _ByteRange:
    """Adjacent inner chunks of one shard, fetched with one request.

    Attributes:
        row_block: Row block of the shard.
        start: Offset of the first chunk in the object, in bytes.
        chunk_bytes: Length of each chunk, in bytes.
        slots: For each chunk, the position of its layer among the requested layers.
        chunks: For each chunk, its number within its layer.
    """

    row_block: int
    start: int
    chunk_bytes: tuple[int, ...]
    slots: tuple[int, ...]
    chunks: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Length of the range, in bytes."""
        return sum(self.chunk_bytes)


class ActivationReader:
    """Reads rows of one activation array of a run.

    Args:
        location: The run's store.
        record: The run's record.
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
        lengths: Lengths of the array's inner chunks.

    Attributes:
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
    """

    def __init__(
        self, location: Location, record: RunRecord, hook_point: str, pooling: str, lengths: ChunkLengths
    ) -> None:
        self._location = location
        self._geometry = geometry_of(record, pooling)
        self.hook_point = hook_point
        self.pooling = pooling
        self._lengths = lengths

    def read(self, rows_N: npt.NDArray[np.int64], unit_ids: Sequence[str], positions: Sequence[int]) -> Float32:
        """Read rows at some captured layers.

        Args:
            rows_N: Rows of the array, in any order.
            unit_ids: The unit of each row.
            positions: Indices along the array's layer axis, in any order.

        Returns:
            float32 ``(N, L, D)`` in the order of ``rows_N`` and ``positions``; every value is finite.

        Raises:
            StoreError: A shard is missing or damaged, or a row has no values.
        """
        values_NLD = np.empty((len(rows_N), len(positions), self._geometry.d_model), dtype=np.float32)
        requests = self._requests(rows_N, unit_ids, positions)

        def fetch(request: tuple[_ByteRange, Places]) -> None:
            byte_range, places = request
            try:
                self._fill(values_NLD, rows_N, unit_ids, byte_range, places)
            except StoreError as error:
                # ``chunks.parquet`` is a cache and may be wrong where the shard is right, so the commit record decides.
                for again in self._corrected(byte_range, rows_N, unit_ids, positions, places, error):
                    self._fill(values_NLD, rows_N, unit_ids, again, places)

        if len(requests) == 1:
            # A single unit, as in an interactive query: threads would only add overhead.
            fetch(requests[0])
            return values_NLD
        largest = max((byte_range.num_bytes for byte_range, _ in requests), default=1)
        pool = ThreadPoolExecutor(max(1, min(PARALLEL_REQUESTS, _BYTES_IN_FLIGHT // largest)))
        try:
            for _ in pool.map(fetch, requests):
                pass
        finally:
            # After an error the remaining requests would only be thrown away.
            pool.shutdown(cancel_futures=True)
        return values_NLD

    def part_buffer(self, num_layers: int) -> Float32:
        """Allocate what ``of_unit`` decodes into, ``(L, R, D)``: as many layers as are decoded at a time.

        One buffer for many units: the pages of a new one are mapped and cleared when they are first written, which
        costs about as much as decoding into them.

        Args:
            num_layers: Number of layers that are read of a unit, at most.
        """
        rows_in_block, d_model = self._geometry.rows_per_block, self._geometry.d_model
        step = max(1, min(num_layers, _PART_VALUES // (rows_in_block * d_model)))
        return np.empty((step, rows_in_block, d_model), dtype=np.float32)

    def of_unit(
        self, row_block: int, unit_id: str, start: int, stop: int, part_LRD: Float32
    ) -> Iterator[tuple[int, Float32]]:
        """Read all rows of one unit at adjacent layers with one request, and decode a few layers at a time.

        The parts are about as large as a processor's cache, so that what is computed of each costs little beside
        decoding it. Values are not looked at: rows that are not filled are NaN, and a damaged one may be.

        Args:
            row_block: The unit's row block.
            unit_id: The unit.
            start: Position of the first layer.
            stop: Position after the last.
            part_LRD: A ``part_buffer``, used by no other thread.

        Yields:
            Position of the first layer of a part, and float32 ``(L, R, D)``, contiguous; overwritten by the next part.

        Raises:
            StoreError: The shard is missing or damaged.
        """
        (lengths_KC,) = self._lengths.lengths_of([row_block], [unit_id])
        layer, is_reread = start, False
        while layer < stop:
            try:
                for first, count in self._decoded_parts(row_block, lengths_KC, layer, stop, part_LRD):
                    yield first, part_LRD[:count]
                    layer = first + count
            except StoreError:
                # ``chunks.parquet`` is a cache and may be wrong where the shard is right: the commit record decides.
                reread_KC = lengths_KC if is_reread else self._reread_lengths(row_block, unit_id, range(1))
                if np.array_equal(reread_KC, lengths_KC):
                    raise
                lengths_KC, is_reread = reread_KC, True

    def _decoded_parts(
        self, row_block: int, lengths_KC: npt.NDArray[np.int64], start: int, stop: int, part_LRD: Float32
    ) -> Iterator[tuple[int, int]]:
        """Fetch the layers ``start`` to ``stop``, and decode them part by part; yields first layer and their number."""
        lengths: list[int] = lengths_KC[:, 0].tolist()
        path = layout.shard_path(self.hook_point, self.pooling, row_block)
        data = self._location.read_range(path, sum(lengths[:start]), sum(lengths[start:stop]))
        if data is None:
            raise self._error(row_block, "it is missing", "missing_object")
        view, end = memoryview(data), 0
        for first in range(start, stop, len(part_LRD)):
            of_part = lengths[first : min(first + len(part_LRD), stop)]
            begin, end = end, end + sum(of_part)
            try:
                decode_chunks(view[begin:end], of_part, part_LRD[: len(of_part)])
            except ValueError as error:
                raise self._error(row_block, f"it is damaged: {error}", "bad_object") from error
            yield first, len(of_part)

    def no_numbers(self, row_block: int, unit_id: str) -> StoreError:
        """Make the error for a committed row that has no numbers: this is not what was committed."""
        return self._error(row_block, f"a committed row of unit {unit_id} has no numbers", "missing_object")

    def _requests(
        self, rows_N: npt.NDArray[np.int64], unit_ids: Sequence[str], positions: Sequence[int]
    ) -> list[tuple[_ByteRange, Places]]:
        """Group rows by shard, and compute the byte ranges of each with the places of its rows in the result."""
        blocks_N = rows_N // self._geometry.rows_per_block
        # A stable sort keeps rows of one shard in their order, so that consecutive rows stay consecutive.
        order = np.argsort(blocks_N, kind="stable")
        blocks_U, first_U = np.unique(blocks_N[order], return_index=True)
        lengths = self._lengths.lengths_of(blocks_U.tolist(), [unit_ids[int(place)] for place in order[first_U]])
        edges = [*first_U.tolist(), len(order)]
        requests: list[tuple[_ByteRange, Places]] = []
        for row_block, lengths_KC, (start, stop) in zip(blocks_U.tolist(), lengths, pairwise(edges), strict=True):
            places = order[start:stop]
            chunks = self._chunk_span(rows_N[places])
            if chunks.stop > lengths_KC.shape[1]:
                # The index says that the shard has these rows, the cached lengths say that it does not.
                lengths_KC = self._reread_lengths(row_block, unit_ids[int(places[0])], chunks)
            requests += [(byte_range, places) for byte_range in _byte_ranges(row_block, lengths_KC, positions, chunks)]
        return requests

    def _fill(
        self,
        values_NLD: Float32,
        rows_N: npt.NDArray[np.int64],
        unit_ids: Sequence[str],
        byte_range: _ByteRange,
        places: Places,
    ) -> None:
        """Fetch a byte range and copy its rows into the result."""
        chunks_N, rows_in_chunk_N = self._in_chunks(rows_N[places])
        # For each chunk the rows to take from it, and their places in the result.
        rows_and_places: dict[int, tuple[slice | Places, slice | Places]] = {}
        for chunk in set(byte_range.chunks):
            mine = np.flatnonzero(chunks_N == chunk)
            if len(mine):
                rows_and_places[chunk] = (_as_slice(rows_in_chunk_N[mine]), _as_slice(places[mine]))
        for slot, chunk, chunk_RD in self._decoded(byte_range):
            # A chunk between two requested ones comes along: one longer request is cheaper than two.
            if chunk not in rows_and_places:
                continue
            rows_in_chunk, into = rows_and_places[chunk]
            taken = chunk_RD[rows_in_chunk]
            is_finite = np.isfinite(taken).all(axis=1)
            if not is_finite.all():
                # The fill value: whatever is committed has numbers, so this is not what was committed.
                unit_id = unit_ids[int(places[np.flatnonzero(chunks_N == chunk)[np.argmin(is_finite)]])]
                raise self.no_numbers(byte_range.row_block, unit_id)
            values_NLD[into, slot] = taken

    def _corrected(
        self,
        failed: _ByteRange,
        rows_N: npt.NDArray[np.int64],
        unit_ids: Sequence[str],
        positions: Sequence[int],
        places: Places,
        error: StoreError,
    ) -> list[_ByteRange]:
        """Return all byte ranges of a shard by its commit record.

        Raises:
            StoreError: The given error, when the range that failed agrees with the commit record: the shard is damaged.
        """
        chunks = self._chunk_span(rows_N[places])
        lengths_KC = self._reread_lengths(failed.row_block, unit_ids[int(places[0])], chunks)
        byte_ranges = list(_byte_ranges(failed.row_block, lengths_KC, positions, chunks))
        if failed in byte_ranges:
            raise error
        # Not only the failed one: with other lengths, and perhaps another number of chunks, every range is another.
        return byte_ranges

    def _reread_lengths(self, row_block: int, unit_id: str, chunks: range) -> npt.NDArray[np.int64]:
        """Return the chunk lengths of a unit's commit record, and check that the shard has the given chunks."""
        lengths_KC = self._lengths.reread(row_block, unit_id)
        if chunks.stop > lengths_KC.shape[1]:
            raise self._error(row_block, f"it ends before some rows of unit {unit_id}", "missing_object")
        return lengths_KC

    def _in_chunks(self, rows_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return, for each row, the number of its inner chunk within the shard's layers, and its row in that chunk."""
        chunks_N, rows_in_chunk_N = np.divmod(rows_N % self._geometry.rows_per_block, self._geometry.rows_per_chunk)
        return chunks_N, rows_in_chunk_N

    def _chunk_span(self, rows_N: npt.NDArray[np.int64]) -> range:
        """Return the numbers of the inner chunks from the first to the last that hold rows of one shard."""
        chunks_N, _ = self._in_chunks(rows_N)
        return range(int(chunks_N.min()), int(chunks_N.max()) + 1)

    def _decoded(self, byte_range: _ByteRange) -> Iterator[tuple[int, int, Float32]]:
        """Fetch a byte range and yield its chunks: slot, number within the layer, values ``(R, D)``."""
        path = layout.shard_path(self.hook_point, self.pooling, byte_range.row_block)
        data = self._location.read_range(path, byte_range.start, byte_range.num_bytes)
        if data is None:
            raise self._error(byte_range.row_block, "it is missing", "missing_object")
        end = 0
        for slot, chunk, num_bytes in zip(byte_range.slots, byte_range.chunks, byte_range.chunk_bytes, strict=True):
            start, end = end, end + num_bytes
            try:
                chunk_RD = decode_chunk(data[start:end], self._geometry.rows_per_chunk, self._geometry.d_model)
            except ValueError as error:
                raise self._error(byte_range.row_block, f"it is damaged: {error}", "bad_object") from error
            yield slot, chunk, chunk_RD

    def _error(self, row_block: int, reason: str, code: str) -> StoreError:
        path = layout.shard_path(self.hook_point, self.pooling, row_block)
        return StoreError(
            f"this shard cannot be read: {reason}.", code=code, file=f"{self._location.url}/{path}", hint=_HINT
        )


def _as_slice(places: Places) -> slice | Places:
    """Return consecutive places as a slice: numpy copies a slice faster than it gathers by index."""
    first = int(places[0])
    is_consecutive = np.array_equal(places, np.arange(first, first + len(places)))
    return slice(first, first + len(places)) if is_consecutive else places


def _byte_ranges(
    row_block: int, lengths_KC: npt.NDArray[np.int64], positions: Sequence[int], chunks: range
) -> Iterator[_ByteRange]:
    """Compute the byte ranges of some chunks of some layers of a shard, one per run of adjacent chunks.

    Chunk c of layer k is number ``k * C + c`` in the object, and starts where the lengths before it end. Requested
    chunks whose numbers follow one another are one range: all layers of a pooled array are a single request.
    """
    num_chunks = lengths_KC.shape[1]
    wanted = sorted(
        (position * num_chunks + chunk, slot, chunk) for slot, position in enumerate(positions) for chunk in chunks
    )
    if not wanted:
        return
    lengths, ends = lengths_KC.ravel(), np.cumsum(lengths_KC)
    # A layer that is requested twice has equal numbers; those do not follow one another, and it is fetched twice.
    cuts = [0, *(i for i in range(1, len(wanted)) if wanted[i][0] != wanted[i - 1][0] + 1)]
    for first, last in pairwise([*cuts, len(wanted)]):
        numbers, slots, of_layer = zip(*wanted[first:last], strict=True)
        start = int(ends[numbers[0]] - lengths[numbers[0]])
        yield _ByteRange(row_block, start, tuple(int(lengths[number]) for number in numbers), slots, of_layer)
