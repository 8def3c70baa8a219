"""How each activation array of a run is cut into shards and chunks, and which layers it holds. Pure.

A pooled array has a row for every rollout and a chunk for every layer of a block. A ``tokens`` array has a row for each
content token, one rollout's after another's in row order, and cuts a block's layers into chunks of a fixed number of
them, so that the room that short responses leave takes no space.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...jobs.poolings import keeps_tokens
from ...jobs.unit_size import TOKENS_PER_CHUNK
from ..format.records import RunRecord


@dataclass(frozen=True, slots=True)
class Geometry:
    """The cut of one array.

    Attributes:
        rows_per_block: Rows of a shard, a unit's.
        rows_per_chunk: Rows of a chunk, of one layer each.
        layers: Blocks that the second axis stands for.
        d_model: Third axis.
    """

    rows_per_block: int
    rows_per_chunk: int
    layers: tuple[int, ...]
    d_model: int

    @property
    def chunks_per_block(self) -> int:
        """Chunks that a layer of a block has at most."""
        return self.rows_per_block // self.rows_per_chunk


def geometry_of(record: RunRecord, pooling: str) -> Geometry:
    """Give the cut of a run's arrays of one pooling."""
    d_model = record.model.d_model
    if keeps_tokens(pooling):
        return Geometry(record.tokens_per_block, TOKENS_PER_CHUNK, record.token_layers, d_model)
    return Geometry(record.rows_per_block, record.rows_per_block, record.layers, d_model)
