"""Arrow schemas and tables of rollouts: a unit's table with texts and token ids, and the index without them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ...jobs.work.rollouts import Rollout
from ..locations.location import Location
from .parquet import from_parquet
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
"""Columns of the index: address, row, and what queries filter by. ``has_vector`` is false for empty responses."""

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
"""Columns of a unit's table: those of the index, and texts, seeds and token ids."""

_OF_CONVERSATIONS = [("conversation_index", pa.int32()), ("turn_index", pa.int32())]
"""Columns that only runs of conversations have, given or generated, after the others; a unit's table has ``extra``
(JSON) too."""

_SERVED = [("served_tokens", pa.string())]
"""The column that only the index of runs has whose responses a server generated; null in units without the record."""

_EDITED = [("edited_share", pa.float32()), ("mean_correction", pa.float32())]
"""Columns that only the index of runs with interventions has, over tokens and edited layers: the share that was
changed, and the mean length of the change there, in units of the residual stream; null where nothing was recorded."""

_EDITS = [
    ("edit_layers", pa.list_(pa.int32())),
    ("edit_tokens", pa.list_(pa.int32())),
    ("edit_changed", pa.list_(pa.int32())),
    ("edit_correction", pa.list_(pa.float32())),
]
"""Columns that only the tables of such runs have, a number for each edited layer: the layer, the tokens on which its
edits act, how many of these were changed, and the mean length of the change over the changed ones."""

ADDRESS_ORDER = [
    (name, "ascending") for name in ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
]
"""Sort order of rollouts in results; within one conversation they are sorted by turn as well."""


def index_schema(*, of_conversations: bool, is_served: bool = False, is_edited: bool = False) -> pa.Schema:
    """Return the schema of a run's index.

    Args:
        of_conversations: Whether the rollouts are turns of conversations, given or generated.
        is_served: Whether a server generated the responses.
        is_edited: Whether the run has interventions.
    """
    given, served = _OF_CONVERSATIONS if of_conversations else [], _SERVED if is_served else []
    return pa.schema([*INDEX_SCHEMA, *given, *served, *(_EDITED if is_edited else [])])


def rollout_schema(*, of_conversations: bool, is_edited: bool = False) -> pa.Schema:
    """Return the schema of a unit's table of rollouts; arguments as for ``index_schema``."""
    given = [*_OF_CONVERSATIONS, ("extra", pa.string())] if of_conversations else []
    return pa.schema([*ROLLOUT_SCHEMA, *given, *(_EDITS if is_edited else [])])


def in_address_order(table: pa.Table) -> pa.Table:
    """Sort rollouts by address: kind, persona, polarity, prompt, question, sample, turn."""
    by_turn = [("turn_index", "ascending")] if "turn_index" in table.column_names else []
    return table.sort_by([*ADDRESS_ORDER, *by_turn])


def merged_in_address_order(table: pa.Table, added: pa.Table) -> pa.Table:
    """Merge rollouts into a table that is in address order, without sorting it again.

    Args:
        table: Rollouts in address order, usually many.
        added: Other rollouts of the same schema, in any order, usually few.
    """
    whole = pa.concat_tables([table, added])
    keys = _address_keys(whole)
    if keys is None:
        return in_address_order(whole)
    # Stable sorting takes runs that are in order as they are, so this costs little more than reading the keys.
    return whole.take(pa.array(np.argsort(keys, kind="stable")))


def _address_keys(table: pa.Table) -> np.ndarray | None:
    """Return a number for each rollout that sorts as its address does; None if 63 bits are too few for that."""
    by_turn = ["turn_index"] if "turn_index" in table.column_names else []
    keys = np.zeros(table.num_rows, dtype=np.int64)
    most = 1
    for name in [*(name for name, _ in ADDRESS_ORDER), *by_turn]:
        column = table[name].combine_chunks()
        if column.null_count:
            return None
        if pa.types.is_string(column.type):
            coded = column.dictionary_encode()
            # Arrow and Python compare texts alike: by code point, which is the order of their UTF-8 bytes.
            ranks = np.argsort(np.argsort(np.array(coded.dictionary.to_pylist(), dtype=object), kind="stable"))
            values = ranks[coded.indices.to_numpy()] if len(ranks) else np.zeros(0, np.int64)
        else:
            values = column.to_numpy().astype(np.int64)
        if len(values) and values.min() < 0:
            return None
        span = int(values.max()) + 1 if len(values) else 1
        most *= span
        if most >= 2**63:
            return None
        keys = keys * span + values
    return keys


def rollout_table(unit_id: str, rollouts: Sequence[Rollout], first_row: int, *, is_edited: bool = False) -> pa.Table:
    """Make a unit's table, one line per rollout.

    Args:
        unit_id: Id of the unit.
        rollouts: Its rollouts in row order.
        first_row: First row of the attempt's row block.
        is_edited: Whether the run has interventions.
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
            **_edits_of(rollout),
        }
        for position, rollout in enumerate(rollouts)
    ]
    of_conversations = any(rollout.conversation_index is not None for rollout in rollouts)
    schema = rollout_schema(of_conversations=of_conversations, is_edited=is_edited)
    return pa.Table.from_pylist(lines, schema=schema)


def _edits_of(rollout: Rollout) -> dict[str, list[Any]]:
    """Return the columns of what was done to a rollout; none where nothing was recorded."""
    if rollout.edits is None:
        return {}
    return {
        "edit_layers": [edit.layer for edit in rollout.edits],
        "edit_tokens": [edit.num_tokens for edit in rollout.edits],
        "edit_changed": [edit.num_changed for edit in rollout.edits],
        "edit_correction": [edit.mean_correction for edit in rollout.edits],
    }


def index_table(
    manifests: Iterable[Manifest],
    rows_per_block: int,
    *,
    of_conversations: bool = False,
    is_served: bool = False,
    is_edited: bool = False,
) -> pa.Table:
    """Make the index lines of committed units.

    Args:
        manifests: Manifests of the committed attempts.
        rows_per_block: Rows per shard of the pooled arrays.
        of_conversations: Whether the rollouts are turns of conversations, given or generated.
        is_served: Whether a server generated the responses.
        is_edited: Whether the run has interventions.

    Returns:
        A table of ``index_schema``, unit by unit in the order of ``manifests``.
    """
    schema = index_schema(of_conversations=of_conversations, is_served=is_served, is_edited=is_edited)
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
        if is_served:
            columns["served_tokens"].extend(manifest.served.tokens if manifest.served else [None] * count)
        if is_edited:
            edited = manifest.edited
            columns["edited_share"].extend(edited.shares if edited else [None] * count)
            columns["mean_correction"].extend(edited.corrections if edited else [None] * count)
        first = manifest.row_block * rows_per_block
        columns["row"].extend(range(first, first + count))
        columns["num_prompt_tokens"].extend(manifest.prompt_tokens)
        columns["num_content_tokens"].extend(manifest.content_tokens)
        columns["finish_reason"].extend(manifest.finish_reasons)
        columns["has_vector"].extend(tokens > 0 for tokens in manifest.content_tokens)
    return pa.table(columns, schema=schema)


def read_parquet(location: Location, path: str, schema: pa.Schema) -> pa.Table | None:
    """Read a table of a schema, with its metadata; None when it is missing, or damaged.

    For caches of the commit records: a damaged cache is treated as a missing one, and its content read from the
    records.
    """
    data = location.read(path)
    if data is None:
        return None
    try:
        table = from_parquet(data)
        if "served_tokens" in schema.names and "served_tokens" not in table.column_names:
            # The index of a run that was started before the column existed.
            table = table.append_column("served_tokens", pa.nulls(table.num_rows, pa.string()))
        return table.select(schema.names).cast(schema.with_metadata(table.schema.metadata))
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return None
