"""Shard and chunk shapes of a run's activation arrays, and the layers they hold. Pure.

Each shard holds one row block, which belongs to one attempt of one unit, at all captured layers. A pooled array has one
row per rollout, and its shard one inner chunk per layer. A ``tokens`` array has one row per content token, the
rollouts' tokens concatenated in row order, and its shard several inner chunks per layer, of ``TOKENS_PER_CHUNK`` rows
each: a shard must have room for the longest responses that a unit could have, and inner chunks without a token are not
stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...jobs.poolings import keeps_tokens
from ...jobs.work.unit_size import TOKENS_PER_CHUNK
from ..format.records import RunRecord


@dataclass(frozen=True, slots=True)
class Geometry:
    """Shard and chunk shape of one array.

    Attributes:
        rows_per_block: Rows of a shard; a shard has shape ``(rows_per_block, len(layers), d_model)``.
        rows_per_chunk: Rows of an inner chunk, which has shape ``(rows_per_chunk, 1, d_model)``.
        layers: Decoder layers along the second axis, 0-based.
        d_model: Length of the third axis, the model's hidden size.
    """

    rows_per_block: int
    rows_per_chunk: int
    layers: tuple[int, ...]
    d_model: int

    @property
    def chunks_per_block(self) -> int:
        """Inner chunks per layer of a shard that is full."""
        return self.rows_per_block // self.rows_per_chunk


def geometry_of(record: RunRecord, pooling: str) -> Geometry:
    """Return the geometry of a run's arrays of one pooling."""
    d_model = record.model.d_model
    if keeps_tokens(pooling):
        return Geometry(record.tokens_per_block, TOKENS_PER_CHUNK, record.token_layers, d_model)
    return Geometry(record.rows_per_block, record.rows_per_block, record.layers, d_model)
