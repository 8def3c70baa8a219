"""Read rows of an activation array: for each unit one ranged request a run of layers, many at a time, each checked.

Zarr would ask every object for its own index before it asks for a layer; here the lengths are known beforehand, and so
a layer costs one request and its own bytes. Axes: N rows, L asked layers, K the array's, C chunks of a layer in a
block, R rows of a chunk, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ...jobs.errors import StoreError
from ..format import layout
from ..format.records import RunRecord
from ..locations.location import Location
from .chunks import ChunkLengths
from .codec import Float32, decode_chunk
from .geometry import geometry_of

PARALLEL_REQUESTS = 32
"""Ranged reads in flight at a time, at most."""

_BYTES_IN_FLIGHT = 256 * 2**20
"""Fewer reads where each brings much: a block of every token does."""

_HINT = "Run verify, which names everything that is damaged."


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of chunks of one row block: what one request brings.

    Attributes:
        row_block: Of the array.
        start: First byte in the object.
        chunk_bytes: Length of each chunk.
        slots: Which of the asked layers each chunk is of.
        chunks: Which of its layer's chunks each is.
    """

    row_block: int
    start: int
    chunk_bytes: tuple[int, ...]
    slots: tuple[int, ...]
    chunks: tuple[int, ...]


class ActivationReader:
    """Reads one activation array of a run.

    Args:
        location: The run's store.
        record: Of the run.
        hook_point: Of the array.
        pooling: Of the array.
        lengths: Of its chunks.
    """

    def __init__(
        self, location: Location, record: RunRecord, hook_point: str, pooling: str, lengths: ChunkLengths
    ) -> None:
        self._location = location
        self._cut = geometry_of(record, pooling)
        self._array = (hook_point, pooling)
        self._lengths = lengths

    def read(self, rows_N: npt.NDArray[np.int64], unit_ids: Sequence[str], positions: Sequence[int]) -> Float32:
        """Read rows at some captured layers.

        Args:
            rows_N: Rows of the array, in any order.
            unit_ids: The unit of each row.
            positions: Places of the layers among the captured ones, in any order.

        Returns:
            float32 ``(N, L, D)``; every number is finite.

        Raises:
            StoreError: An object is missing or damaged, or a row has no numbers.
        """
        values_NLD = np.empty((len(rows_N), len(positions), self._cut.d_model), dtype=np.float32)
        blocks_N = rows_N // self._cut.rows_per_block
        order = np.argsort(blocks_N, kind="stable")
        blocks_U, first_U = np.unique(blocks_N[order], return_index=True)
        lengths = self._lengths.of(blocks_U.tolist(), [unit_ids[int(place)] for place in order[first_U]])
        edges = [*first_U.tolist(), len(order)]
        tasks: list[tuple[_Piece, npt.NDArray[np.intp]]] = []
        for row_block, lengths_KC, (start, stop) in zip(blocks_U.tolist(), lengths, pairwise(edges), strict=True):
            places = order[start:stop]
            chunks = self._chunk_span(rows_N[places])
            if chunks.stop > lengths_KC.shape[1]:
                lengths_KC = self._confirmed(row_block, unit_ids[int(places[0])], chunks)
            tasks += [(piece, places) for piece in _pieces(row_block, lengths_KC, positions, chunks)]

        def fetch(task: tuple[_Piece, npt.NDArray[np.intp]]) -> None:
            piece, places = task
            try:
                self._fill(values_NLD, rows_N, unit_ids, piece, places)
            except StoreError:
                # The table of lengths is a convenience: before an object is called damaged, its commit is asked.
                chunks = self._chunk_span(rows_N[places])
                lengths_KC = self._confirmed(piece.row_block, unit_ids[int(places[0])], chunks)
                again = list(_pieces(piece.row_block, lengths_KC, positions, chunks))
                if piece in again:
                    raise
                # All of the block: with another number of chunks a layer its runs are cut elsewhere.
                for other in again:
                    self._fill(values_NLD, rows_N, unit_ids, other, places)

        if len(tasks) == 1:
            fetch(tasks[0])
        else:
            largest = max((sum(piece.chunk_bytes) for piece, _ in tasks), default=1)
            pool = ThreadPoolExecutor(max(1, min(PARALLEL_REQUESTS, _BYTES_IN_FLIGHT // largest)))
            try:
                for _ in pool.map(fetch, tasks):
                    pass
            finally:
                # After an error nobody wants the rest.
                pool.shutdown(cancel_futures=True)
        return values_NLD

    def _fill(
        self,
        values_NLD: Float32,
        rows_N: npt.NDArray[np.int64],
        unit_ids: Sequence[str],
        piece: _Piece,
        places: npt.NDArray[np.intp],
    ) -> None:
        """Fetch a piece and put its rows in their places."""
        chunks_N, rows_in_chunk_N = self._in_chunks(rows_N[places])
        mine_of = {chunk: np.flatnonzero(chunks_N == chunk) for chunk in set(piece.chunks)}
        spans = {
            chunk: (_span(rows_in_chunk_N[mine]), _span(places[mine])) for chunk, mine in mine_of.items() if len(mine)
        }
        for slot, chunk, chunk_RD in self._chunks(piece):
            if chunk not in spans:
                continue
            rows_in_chunk, span = spans[chunk]
            taken = chunk_RD[rows_in_chunk]
            if not np.isfinite(taken).all():
                bad = unit_ids[int(places[mine_of[chunk]][np.argmin(np.isfinite(taken).all(axis=1))])]
                raise self._error(piece.row_block, f"a committed row of unit {bad} has no numbers", "missing_object")
            values_NLD[span, slot] = taken

    def _confirmed(self, row_block: int, unit_id: str, chunks: range) -> npt.NDArray[np.int64]:
        """Give the lengths that a unit's commit record has, of at least the chunks that are wanted."""
        lengths_KC = self._lengths.confirmed(row_block, unit_id)
        if chunks.stop > lengths_KC.shape[1]:
            raise self._error(row_block, f"it ends before some rows of unit {unit_id}", "missing_object")
        return lengths_KC

    def _in_chunks(self, rows_N: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Say in which of its block's chunks each row lies, and where in it."""
        chunks_N, rows_in_chunk_N = np.divmod(rows_N % self._cut.rows_per_block, self._cut.rows_per_chunk)
        return chunks_N, rows_in_chunk_N

    def _chunk_span(self, rows_N: npt.NDArray[np.int64]) -> range:
        """Give the chunks of a layer, the first to the last, that hold some rows of one block."""
        chunks_N, _ = self._in_chunks(rows_N)
        return range(int(chunks_N.min()), int(chunks_N.max()) + 1)

    def _chunks(self, piece: _Piece) -> Iterator[tuple[int, int, Float32]]:
        path = layout.shard_path(*self._array, piece.row_block)
        data = self._location.read_range(path, piece.start, sum(piece.chunk_bytes))
        if data is None:
            raise self._error(piece.row_block, "it is missing", "missing_object")
        end = 0
        for slot, chunk, num_bytes in zip(piece.slots, piece.chunks, piece.chunk_bytes, strict=True):
            begin, end = end, end + num_bytes
            try:
                chunk_RD = decode_chunk(data[begin:end], self._cut.rows_per_chunk, self._cut.d_model)
            except ValueError as error:
                raise self._error(piece.row_block, f"it is damaged: {error}", "bad_object") from error
            yield slot, chunk, chunk_RD

    def _error(self, row_block: int, reason: str, code: str) -> StoreError:
        path = layout.shard_path(*self._array, row_block)
        return StoreError(
            f"this activation object cannot be read: {reason}.",
            code=code,
            file=f"{self._location.url}/{path}",
            hint=_HINT,
        )


def _span(places: npt.NDArray[np.intp]) -> slice | npt.NDArray[np.intp]:
    """Give consecutive places as a slice: a unit in address order is one, and numpy need not gather it."""
    first = int(places[0])
    is_consecutive = np.array_equal(places, np.arange(first, first + len(places)))
    return slice(first, first + len(places)) if is_consecutive else places


def _pieces(
    row_block: int, lengths_KC: npt.NDArray[np.int64], positions: Sequence[int], chunks: range
) -> Iterator[_Piece]:
    """Cut the asked chunks of the asked layers into runs that lie beside each other in the object."""
    num_chunks = lengths_KC.shape[1]
    wanted = sorted(
        (position * num_chunks + chunk, slot, chunk) for slot, position in enumerate(positions) for chunk in chunks
    )
    if not wanted:
        return
    lengths, ends = lengths_KC.ravel(), np.cumsum(lengths_KC)
    cuts = [0, *(i for i in range(1, len(wanted)) if wanted[i][0] != wanted[i - 1][0] + 1)]
    for begin, end in pairwise([*cuts, len(wanted)]):
        places, slots, of_layer = zip(*wanted[begin:end], strict=True)
        first = int(ends[places[0]] - lengths[places[0]])
        yield _Piece(row_block, first, tuple(int(lengths[place]) for place in places), slots, of_layer)
