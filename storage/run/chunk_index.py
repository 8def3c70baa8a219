"""``chunks.parquet``: the encoded length of every inner chunk of every committed shard.

Zarr's sharding codec keeps an index at the end of each shard, so a generic Zarr reader makes two requests per shard:
one for the index, one for the chunk. Here shards are written with their inner chunks back to back from byte 0, layer by
layer (``codec.encode_shard``), so the lengths alone give every byte range, and a reader that knows them needs one
request.

Like ``index.parquet`` the file is a cache of the commit records, which hold the same lengths, and may lag behind them.
Axes: L layers, C inner chunks of a layer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import StoreError
from ..format import layout
from ..format.parquet import to_parquet
from ..format.records import CommitRecord, Manifest
from ..format.rollout_tables import read_parquet
from ..locations.location import Location
from .commits import read_commits

CHUNK_SCHEMA = pa.schema(
    [
        ("row_block", pa.int64()),
        ("hook_point", pa.string()),
        ("pooling", pa.string()),
        ("chunk_bytes", pa.list_(pa.uint32())),
    ]
)
"""One line per committed shard; ``chunk_bytes`` has an entry per inner chunk, layer by layer."""


def read_chunks(location: Location) -> pa.Table:
    """Read the stored table; empty when it is missing or damaged."""
    table = read_parquet(location, layout.CHUNKS, CHUNK_SCHEMA)
    return table if table is not None else CHUNK_SCHEMA.empty_table()


def write_chunks(location: Location, table: pa.Table) -> None:
    """Write the table and replace the stored one."""
    location.write(layout.CHUNKS, to_parquet(table))


def chunk_table(manifests: Iterable[Manifest]) -> pa.Table:
    """Return the chunk lengths of attempts' shards as a table of ``CHUNK_SCHEMA``."""
    lines = [
        {
            "row_block": manifest.row_block,
            "hook_point": shard.hook_point,
            "pooling": shard.pooling,
            "chunk_bytes": shard.chunk_bytes,
        }
        for manifest in manifests
        for shard in manifest.blocks
    ]
    return pa.Table.from_pylist(lines, schema=CHUNK_SCHEMA)


class ChunkLengths:
    """Encoded lengths of the inner chunks of one array, by row block, fetched from the store on demand.

    Lengths come from three sources, cheapest first: commit records that were read anyway, ``chunks.parquet``, and the
    commit record of a single unit.

    Args:
        location: The run's store.
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
        num_layers: Length of the array's second axis.
        chunks_per_block: Inner chunks per layer of a full shard.
    """

    _MAX_COMMITS_READ = 32
    """Up to this many units it is cheaper to read their commit records than ``chunks.parquet``, which covers all."""

    def __init__(
        self, location: Location, hook_point: str, pooling: str, num_layers: int, chunks_per_block: int = 1
    ) -> None:
        self._location = location
        self._num_layers = num_layers
        self._chunks_per_block = chunks_per_block
        self._array = (hook_point, pooling)
        self._known: dict[int, np.ndarray] = {}
        self._has_stored = False
        self._num_requested = 0

    def add_commits(self, commits: Iterable[CommitRecord]) -> None:
        """Take the lengths from commit records that were read for another reason."""
        for commit in commits:
            for shard in commit.manifest.blocks:
                if (shard.hook_point, shard.pooling) == self._array and self._is_plausible(shard.chunk_bytes):
                    lengths = np.array(shard.chunk_bytes, dtype=np.int64)
                    self._known[commit.manifest.row_block] = lengths.reshape(self._num_layers, -1)

    def add(self, row_block: int, lengths_LC: np.ndarray) -> None:
        """Take the lengths of a row block that another process looked up."""
        self._known[row_block] = lengths_LC

    def lengths_of(self, row_blocks: Sequence[int], unit_ids: Sequence[str]) -> list[np.ndarray]:
        """Return the chunk lengths of row blocks.

        Args:
            row_blocks: Numbers of the row blocks.
            unit_ids: Ids of the units that the row blocks belong to.

        Returns:
            For each row block int64 ``(L, C)``, in bytes; C is the number of inner chunks that its shard has per layer.

        Raises:
            StoreError: A commit record is missing, damaged, or names no shard in that row block.
        """
        unknown = self._unknown(row_blocks, unit_ids)
        # Counted over all calls: a large result is read in many small parts, each of few units.
        self._num_requested += len(unknown)
        if self._num_requested > self._MAX_COMMITS_READ and not self._has_stored:
            self._read_stored()
            unknown = self._unknown(row_blocks, unit_ids)
        if unknown:
            self.add_commits(read_commits(self._location, unknown))
        for row_block, unit_id in self._unknown_pairs(row_blocks, unit_ids):
            raise self._no_such_shard(row_block, unit_id)
        return [self._known[row_block] for row_block in row_blocks]

    def reread(self, row_block: int, unit_id: str) -> np.ndarray:
        """Return the lengths ``(L, C)`` of one row block from its unit's commit record, whatever was cached.

        Raises:
            StoreError: The record is missing, damaged, or names no shard in that row block.
        """
        (commit,) = read_commits(self._location, [unit_id])
        self.add_commits([commit])
        if commit.manifest.row_block != row_block or row_block not in self._known:
            raise self._no_such_shard(row_block, unit_id)
        return self._known[row_block]

    def _is_plausible(self, chunk_bytes: Sequence[int] | np.ndarray) -> bool:
        """Whether lengths have the shape of this array: equally many chunks per layer, at least one, none empty."""
        chunks, rest = divmod(len(chunk_bytes), self._num_layers)
        return not rest and 1 <= chunks <= self._chunks_per_block and int(np.min(chunk_bytes)) >= 1

    def _no_such_shard(self, row_block: int, unit_id: str) -> StoreError:
        return StoreError(
            f"unit {unit_id} has no activations of {'/'.join(self._array)} in row block {row_block}.",
            code="missing_object",
            file=f"{self._location.url}/{layout.commit_path(unit_id)}",
            hint="Run verify, which lists all damage; verify --repair lets the next run make damaged units again.",
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
        # Implausible lines are skipped, as if they were missing: the commit record has the right lengths.
        pairs = zip(table["row_block"].to_pylist(), table["chunk_bytes"].to_numpy(), strict=True)
        stored = {
            block: lengths.astype(np.int64).reshape(self._num_layers, -1)
            for block, lengths in pairs
            if self._is_plausible(lengths)
        }
        # What came from commit records wins over the cache.
        self._known = stored | self._known
