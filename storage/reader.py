"""Read rows of an activation array: for each unit one ranged request a run of layers, many at a time, each checked.

Zarr would ask every object for its own index before it asks for a layer; here the lengths are known beforehand, and so
a layer costs one request and its own bytes. Axes: N rows, L asked layers, R rows of a block, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..jobs.errors import StoreError
from . import layout
from .chunks import ChunkLengths
from .codec import Float32, decode_chunk
from .location import Location
from .records import RunRecord

PARALLEL_REQUESTS = 32
"""Ranged reads in flight at a time."""

_MEND = "Run verify, which names everything that is damaged."


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of layers of one row block: what one request brings.

    Attributes:
        row_block: Of the array.
        start: First byte in the object.
        chunk_bytes: Length of each layer's chunk.
        slots: Which of the asked layers each chunk is.
    """

    row_block: int
    start: int
    chunk_bytes: tuple[int, ...]
    slots: tuple[int, ...]


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
        self._rows_per_block = record.rows_per_block
        self._d_model = record.model.d_model
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
        values_NLD = np.empty((len(rows_N), len(positions), self._d_model), dtype=np.float32)
        blocks_N = rows_N // self._rows_per_block
        order = np.argsort(blocks_N, kind="stable")
        blocks_U, first_U = np.unique(blocks_N[order], return_index=True)
        lengths = self._lengths.of(blocks_U.tolist(), [unit_ids[int(place)] for place in order[first_U]])
        edges = [*first_U.tolist(), len(order)]
        tasks = [
            (piece, order[start:stop])
            for row_block, of_layers, (start, stop) in zip(blocks_U.tolist(), lengths, pairwise(edges), strict=True)
            for piece in _pieces(row_block, of_layers, positions)
        ]

        def fetch(task: tuple[_Piece, npt.NDArray[np.intp]]) -> None:
            piece, places = task
            try:
                self._fill(values_NLD, rows_N, unit_ids, piece, places)
            except StoreError:
                # The table of lengths is a convenience: before an object is called damaged, its commit is asked.
                lengths_L = self._lengths.confirmed(piece.row_block, unit_ids[int(places[0])])
                again = _pieces(piece.row_block, lengths_L, positions)
                mine = [other for other in again if other.slots == piece.slots]
                if mine == [piece]:
                    raise
                for other in mine:
                    self._fill(values_NLD, rows_N, unit_ids, other, places)

        if len(tasks) == 1:
            fetch(tasks[0])
        else:
            pool = ThreadPoolExecutor(PARALLEL_REQUESTS)
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
        rows_in_block = _span(rows_N[places] - piece.row_block * self._rows_per_block)
        span = _span(places)
        for slot, chunk_RD in self._chunks(piece):
            taken = chunk_RD[rows_in_block]
            if not np.isfinite(taken).all():
                bad = unit_ids[places[int(np.argmin(np.isfinite(taken).all(axis=1)))]]
                raise self._error(piece, f"a committed row of unit {bad} has no numbers", "missing_object")
            values_NLD[span, slot] = taken

    def _chunks(self, piece: _Piece) -> Iterator[tuple[int, Float32]]:
        path = layout.shard_path(*self._array, piece.row_block)
        data = self._location.read_range(path, piece.start, sum(piece.chunk_bytes))
        if data is None:
            raise self._error(piece, "it is missing", "missing_object")
        end = 0
        for slot, num_bytes in zip(piece.slots, piece.chunk_bytes, strict=True):
            begin, end = end, end + num_bytes
            try:
                chunk_RD = decode_chunk(data[begin:end], self._rows_per_block, self._d_model)
            except ValueError as error:
                raise self._error(piece, f"it is damaged: {error}", "bad_object") from error
            yield slot, chunk_RD

    def _error(self, piece: _Piece, reason: str, code: str) -> StoreError:
        path = layout.shard_path(*self._array, piece.row_block)
        return StoreError(
            f"this activation object cannot be read: {reason}.",
            code=code,
            file=f"{self._location.url}/{path}",
            mend=_MEND,
        )


def _span(places: npt.NDArray[np.intp]) -> slice | npt.NDArray[np.intp]:
    """Give consecutive places as a slice: a unit in address order is one, and numpy need not gather it."""
    first = int(places[0])
    is_consecutive = np.array_equal(places, np.arange(first, first + len(places)))
    return slice(first, first + len(places)) if is_consecutive else places


def _pieces(row_block: int, lengths_L: npt.NDArray[np.int64], positions: Sequence[int]) -> Iterator[_Piece]:
    """Cut the asked layers into runs that lie beside each other in the object."""
    if not positions:
        return
    ends_L = np.cumsum(lengths_L)
    by_place = sorted(range(len(positions)), key=lambda slot: positions[slot])
    cuts = [0, *(i for i in range(1, len(by_place)) if positions[by_place[i]] != positions[by_place[i - 1]] + 1)]
    for begin, end in pairwise([*cuts, len(by_place)]):
        slots = by_place[begin:end]
        wanted = [positions[slot] for slot in slots]
        first = int(ends_L[wanted[0]] - lengths_L[wanted[0]])
        yield _Piece(row_block, first, tuple(int(lengths_L[place]) for place in wanted), tuple(slots))
