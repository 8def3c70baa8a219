"""The rollouts' texts and addresses as Arrow tables: what a Parquet file of the store holds, and the index."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...jobs.rollouts import Rollout
from ..locations.location import Location
from .records import Manifest

INDEX_SCHEMA = pa.schema(
    [
        ("kind", pa.string()),
        ("persona", pa.string()),
        ("polarity", pa.string()),
        ("prompt_index", pa.int32()),
        ("question_index", pa.int32()),
        ("sample_index", pa.int32()),
        ("row", pa.int64()),
        ("num_prompt_tokens", pa.int32()),
        ("num_content_tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("has_vector", pa.bool_()),
        ("unit_id", pa.string()),
    ]
)
"""Columns of the index: an address, its row, and what a query filters by."""

ROLLOUT_SCHEMA = pa.schema(
    [
        *INDEX_SCHEMA,
        ("system_prompt", pa.string()),
        ("question", pa.string()),
        ("response", pa.string()),
        ("seed", pa.int64()),
        ("prompt_token_ids", pa.list_(pa.int32())),
        ("response_token_ids", pa.list_(pa.int32())),
    ]
)
"""Columns of a unit's file: the index's, and the texts, seeds and token ids."""

_OF_CONVERSATIONS = [("conversation_index", pa.int32()), ("turn_index", pa.int32())]
"""Columns that only a run of given conversations has, at the end of its index; its texts have ``extra`` besides."""

ADDRESS_ORDER = [
    (name, "ascending") for name in ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
]
"""The order in which rollouts are given; those of one conversation follow by turn."""


def index_schema(*, of_conversations: bool) -> pa.Schema:
    """Give the columns of a run's index."""
    return pa.schema([*INDEX_SCHEMA, *(_OF_CONVERSATIONS if of_conversations else [])])


def rollout_schema(*, of_conversations: bool) -> pa.Schema:
    """Give the columns of a run's texts."""
    return (
        pa.schema([*ROLLOUT_SCHEMA, *_OF_CONVERSATIONS, ("extra", pa.string())]) if of_conversations else ROLLOUT_SCHEMA
    )


def in_address_order(table: pa.Table) -> pa.Table:
    """Sort rollouts into the order in which they are given: by address."""
    by_turn = [("turn_index", "ascending")] if "turn_index" in table.column_names else []
    return table.sort_by([*ADDRESS_ORDER, *by_turn])


def rollout_table(unit_id: str, rollouts: Sequence[Rollout], first_row: int) -> pa.Table:
    """Put a unit's rollouts into a table, one line each, in row order.

    Args:
        unit_id: Id of the unit.
        rollouts: In row order.
        first_row: First row of the attempt's row block.
    """
    lines = [
        {
            "kind": rollout.address.kind,
            "persona": rollout.address.persona,
            "polarity": rollout.address.polarity,
            "prompt_index": rollout.address.prompt_index,
            "question_index": rollout.address.question_index,
            "sample_index": rollout.address.sample_index,
            "row": first_row + position,
            "num_prompt_tokens": len(rollout.prompt_token_ids),
            "num_content_tokens": rollout.num_content_tokens,
            "finish_reason": rollout.finish_reason,
            "has_vector": rollout.has_vector,
            "unit_id": unit_id,
            "system_prompt": rollout.system_prompt,
            "question": rollout.question,
            "response": rollout.response,
            "seed": rollout.seed,
            "prompt_token_ids": rollout.prompt_token_ids,
            "response_token_ids": rollout.response_token_ids,
            "conversation_index": rollout.conversation_index,
            "turn_index": rollout.address.turn_index,
            "extra": rollout.extra,
        }
        for position, rollout in enumerate(rollouts)
    ]
    of_conversations = any(rollout.conversation_index is not None for rollout in rollouts)
    return pa.Table.from_pylist(lines, schema=rollout_schema(of_conversations=of_conversations))


def index_table(manifests: Iterable[Manifest], rows_per_block: int, *, of_conversations: bool = False) -> pa.Table:
    """Make the index lines of committed units, unsorted.

    Args:
        manifests: The attempts that count.
        rows_per_block: Rows of a row block of the run.
        of_conversations: Whether its rows have a conversation and a turn.

    Returns:
        A table of ``index_schema``.
    """
    schema = index_schema(of_conversations=of_conversations)
    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for manifest in manifests:
        unit = manifest.unit
        count = unit.num_rollouts
        for name, value in (
            ("kind", unit.kind),
            ("persona", unit.persona),
            ("polarity", unit.polarity),
            ("prompt_index", unit.prompt_index),
            ("unit_id", unit.unit_id),
        ):
            columns[name].extend([value] * count)
        columns["question_index"].extend(unit.question_indices)
        columns["sample_index"].extend(unit.sample_indices)
        if of_conversations:
            # A damaged record may hold a unit that has no such column: verify names it, and reads on.
            columns["conversation_index"].extend(unit.conversation_indices or [None] * count)
            columns["turn_index"].extend(unit.turn_indices or [None] * count)
        first = manifest.row_block * rows_per_block
        columns["row"].extend(range(first, first + count))
        columns["num_prompt_tokens"].extend(manifest.prompt_tokens)
        columns["num_content_tokens"].extend(manifest.content_tokens)
        columns["finish_reason"].extend(manifest.finish_reasons)
        columns["has_vector"].extend(tokens > 0 for tokens in manifest.content_tokens)
    return pa.table(columns, schema=schema)


def to_parquet(table: pa.Table) -> bytes:
    """Encode a table as one Parquet file, a checksum on every page."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def read_parquet(location: Location, path: str, schema: pa.Schema) -> pa.Table | None:
    """Read a file of the index with its metadata; one that is damaged is as good as none, the commits have it all."""
    data = location.read(path)
    if data is None:
        return None
    try:
        table = from_parquet(data)
        return table.select(schema.names).cast(schema.with_metadata(table.schema.metadata))
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Decode a Parquet file, or some of its columns."""
    wanted = list(columns) if columns is not None else None
    return pq.read_table(io.BytesIO(data), columns=wanted, page_checksum_verification=True)
