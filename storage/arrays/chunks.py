"""``chunks.parquet``: how long each chunk is in every committed activation object.

With it a reader fetches one layer with one request, where a Zarr reader asks each object for its own index first. A
convenience like ``index.parquet``: commit records hold the same lengths. Axes: U units, L layers, C chunks of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import StoreError
from ..format import layout
from ..format.records import CommitRecord, Manifest
from ..format.rollout_tables import read_parquet, to_parquet
from ..locations.location import Location
from ..run.commits import read_commits

CHUNK_SCHEMA = pa.schema(
    [
        ("row_block", pa.int64()),
        ("hook_point", pa.string()),
        ("pooling", pa.string()),
        ("chunk_bytes", pa.list_(pa.uint32())),
    ]
)
"""A line for each committed activation object."""


def read_chunks(location: Location) -> pa.Table:
    """Read the stored table; empty when there is none that can be used."""
    table = read_parquet(location, layout.CHUNKS, CHUNK_SCHEMA)
    return table if table is not None else CHUNK_SCHEMA.empty_table()


def write_chunks(location: Location, table: pa.Table) -> None:
    """Write the table anew."""
    location.write(layout.CHUNKS, to_parquet(table))


def chunk_table(manifests: Iterable[Manifest]) -> pa.Table:
    """Put the chunk lengths of attempts into a table of ``CHUNK_SCHEMA``."""
    lines = [
        {
            "row_block": manifest.row_block,
            "hook_point": block.hook_point,
            "pooling": block.pooling,
            "chunk_bytes": block.chunk_bytes,
        }
        for manifest in manifests
        for block in manifest.blocks
    ]
    return pa.Table.from_pylist(lines, schema=CHUNK_SCHEMA)


class ChunkLengths:
    """Knows, for each row block of one array, how long the chunk of each layer is; asks the store as little as it can.

    Args:
        location: The run's store.
        hook_point: Of the array.
        pooling: Of the array.
        num_layers: Of the array.
        chunks_per_block: That a layer has at most.
    """

    _FEW = 32
    """So many commit records are read one by one before the whole of ``chunks.parquet`` is."""

    def __init__(
        self, location: Location, hook_point: str, pooling: str, num_layers: int, chunks_per_block: int = 1
    ) -> None:
        self._location = location
        self._num_layers = num_layers
        self._chunks_per_block = chunks_per_block
        self._array = (hook_point, pooling)
        self._known: dict[int, np.ndarray] = {}
        self._has_stored = False
        self._num_asked = 0

    def learn(self, commits: Iterable[CommitRecord]) -> None:
        """Take note of commit records that were read for another reason."""
        for commit in commits:
            for block in commit.manifest.blocks:
                if (block.hook_point, block.pooling) == self._array and self._fits(block.chunk_bytes):
                    lengths = np.array(block.chunk_bytes, dtype=np.int64)
                    self._known[commit.manifest.row_block] = lengths.reshape(self._num_layers, -1)

    def of(self, row_blocks: Sequence[int], unit_ids: Sequence[str]) -> list[np.ndarray]:
        """Give int64 ``(L, C)`` of each row block, C chunks of a layer.

        Args:
            row_blocks: Which.
            unit_ids: The unit that each belongs to.

        Raises:
            StoreError: A commit record is missing, damaged, or names no such object.
        """
        unknown = self._unknown(row_blocks, unit_ids)
        # Counted over all calls: a large answer is read in many small parts.
        self._num_asked += len(unknown)
        if self._num_asked > self._FEW and not self._has_stored:
            self._read_stored()
            unknown = self._unknown(row_blocks, unit_ids)
        if unknown:
            self.learn(read_commits(self._location, unknown))
        for row_block, unit_id in self._unknown_pairs(row_blocks, unit_ids):
            raise self._no_such_object(row_block, unit_id)
        return [self._known[row_block] for row_block in row_blocks]

    def confirmed(self, row_block: int, unit_id: str) -> np.ndarray:
        """Give the lengths ``(L, C)`` of one row block by its unit's commit record, whatever was known before.

        Raises:
            StoreError: The record is missing, damaged, or names no such object.
        """
        (commit,) = read_commits(self._location, [unit_id])
        self.learn([commit])
        if commit.manifest.row_block != row_block or row_block not in self._known:
            raise self._no_such_object(row_block, unit_id)
        return self._known[row_block]

    def _fits(self, chunk_bytes: Sequence[int] | np.ndarray) -> bool:
        chunks, rest = divmod(len(chunk_bytes), self._num_layers)
        return not rest and 1 <= chunks <= self._chunks_per_block and int(np.min(chunk_bytes)) >= 1

    def _no_such_object(self, row_block: int, unit_id: str) -> StoreError:
        return StoreError(
            f"unit {unit_id} has no activations of {'/'.join(self._array)} in row block {row_block}.",
            code="missing_object",
            file=f"{self._location.url}/{layout.commit_path(unit_id)}",
            hint="Run verify, which names everything that is damaged.",
        )

    def _unknown(self, row_blocks: Sequence[int], unit_ids: Sequence[str]) -> list[str]:
        return sorted({unit_id for _, unit_id in self._unknown_pairs(row_blocks, unit_ids)})

    def _unknown_pairs(self, row_blocks: Sequence[int], unit_ids: Sequence[str]) -> list[tuple[int, str]]:
        pairs = zip(row_blocks, unit_ids, strict=True)
        return [(row_block, unit_id) for row_block, unit_id in pairs if row_block not in self._known]

    def _read_stored(self) -> None:
        self._has_stored = True
        table = read_chunks(self._location)
        hook_point, pooling = self._array
        table = table.filter((pc.field("hook_point") == hook_point) & (pc.field("pooling") == pooling))
        # A line that does not fit is as good as none: the commit has it.
        pairs = zip(table["row_block"].to_pylist(), table["chunk_bytes"].to_numpy(), strict=True)
        fitting = {
            block: lengths.astype(np.int64).reshape(self._num_layers, -1)
            for block, lengths in pairs
            if self._fits(lengths)
        }
        self._known = fitting | self._known
