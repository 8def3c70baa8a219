"""Write the objects of one attempt: its table of rollouts, then its shards. Readers see them once they are committed.

Every path contains the row block, which is assigned to one attempt only, so a slow or duplicate worker never overwrites
the objects of another. The table of rollouts is written first because its path also names the unit: garbage collection
finds the unit of an uncommitted shard through the table with the same row block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...jobs.errors import UnitError
from ...jobs.poolings import pooling_named
from ...jobs.work.rollouts import Rollout, Served
from ...jobs.work.unit_result import UnitResult
from ...jobs.work.unit_size import TOKENS_PER_CHUNK
from ..format import layout
from ..format.parquet import to_parquet
from ..format.records import Manifest, StoredObject, StoredShard
from ..format.rollout_tables import rollout_table
from ..format.unit_records import EditedUnit, ServedUnit
from ..locations.location import Location
from .codec import encode_shard


def write_unit_result(
    location: Location,
    result: UnitResult,
    *,
    rows_per_block: int,
    mantissa_bits: int,
    worker: str,
    tokens_per_block: int = 0,
    engine: str = "builtin",
    is_edited: bool = False,
) -> Manifest:
    """Write the objects of a finished unit.

    Args:
        location: The run's store.
        result: The unit's rollouts and arrays, as an engine returned them.
        rows_per_block: Rows per shard of the pooled arrays.
        mantissa_bits: Mantissa bits to keep, of 23.
        worker: Name of the worker, for people.
        tokens_per_block: Rows per shard of the ``tokens`` array; 0 in a run without one.
        engine: The engine that captured, and its version; see ``Manifest``.
        is_edited: Whether the run has interventions, so that what they did is written too.

    Returns:
        The manifest of the objects, which the driver commits.

    Raises:
        UnitError: A value is missing, not finite or overflows; the attempt cannot be committed.
        TransientError: The store cannot be reached.
    """
    attempt, rollouts = result.attempt, result.rollouts
    unit_id = attempt.unit.unit_id
    for (hook_point, pooling), values_BLD in result.arrays_BLD.items():
        _check_finite(result, values_BLD, hook_point, pooling)
    for (hook_point, pooling), tokens_NKD in result.tokens_NKD.items():
        _check_tokens(result, tokens_NKD, f"{hook_point}/{pooling}", tokens_per_block)
    if result.canary and not np.isfinite([*result.canary.relative_error_L, *result.canary.cosine_L]).all():
        raise UnitError("the canary's values are not finite.", code="canary")
    texts_path = layout.rollouts_path(unit_id, attempt.row_block)
    data = to_parquet(rollout_table(unit_id, rollouts, attempt.row_block * rows_per_block, is_edited=is_edited))
    texts = StoredObject.of(texts_path, data)
    location.write(texts_path, data)
    shards: list[StoredShard] = []
    for (hook_point, pooling), values in sorted([*result.arrays_BLD.items(), *result.tokens_NKD.items()]):
        # One at a time, so that only one encoded shard is in memory.
        if pooling_named(pooling).keeps_tokens:
            encoded = encode_shard(values, tokens_per_block, mantissa_bits, TOKENS_PER_CHUNK)
        else:
            encoded = encode_shard(values, rows_per_block, mantissa_bits)
        if encoded is None:
            continue
        path = layout.shard_path(hook_point, pooling, attempt.row_block)
        array = {"hook_point": hook_point, "pooling": pooling, "chunk_bytes": encoded.chunk_bytes}
        shards.append(StoredShard.of(path, encoded.data, **array))
        location.write(path, encoded.data)
    return Manifest(
        unit=attempt.unit,
        attempt=attempt.number,
        row_block=attempt.row_block,
        texts=texts,
        blocks=tuple(shards),
        prompt_tokens=tuple(len(rollout.prompt_token_ids) for rollout in rollouts),
        content_tokens=tuple(rollout.num_content_tokens for rollout in rollouts),
        finish_reasons=tuple(rollout.finish_reason for rollout in rollouts),
        worker=worker,
        seconds=result.seconds,
        canary=result.canary,
        served=_served(rollouts),
        canary_rule=result.canary_rule,
        engine=engine,
        edited=_edited(rollouts) if is_edited else None,
    )


def _served(rollouts: Sequence[Rollout]) -> ServedUnit | None:
    asked = [rollout for rollout in rollouts if rollout.is_reached]
    if not asked or any(rollout.served is None for rollout in asked):
        return None
    # Of a turn that was not reached nothing was asked, so nothing was counted.
    answers = [rollout.served or Served("not_counted") for rollout in rollouts]
    left_out = sorted({name for answer in answers for name in answer.fields_left_out})
    return ServedUnit(tokens=tuple(answer.tokens for answer in answers), fields_left_out=tuple(left_out))


def _edited(rollouts: Sequence[Rollout]) -> EditedUnit | None:
    """Summarise what was done to each rollout; None where an engine recorded nothing."""
    recorded = [rollout.edits for rollout in rollouts if rollout.edits is not None]
    if len(recorded) < len(rollouts):
        return None
    changed = [sum(edit.num_changed for edit in edits) for edits in recorded]
    tokens = [sum(edit.num_tokens for edit in edits) for edits in recorded]
    lengths = [sum(edit.num_changed * edit.mean_correction for edit in edits) for edits in recorded]
    return EditedUnit(
        shares=tuple(some / every if every else 0.0 for some, every in zip(changed, tokens, strict=True)),
        corrections=tuple(length / some if some else 0.0 for length, some in zip(lengths, changed, strict=True)),
    )


def _check_finite(result: UnitResult, values_BLD: np.ndarray, hook_point: str, pooling: str) -> None:
    """Check that each row is finite where its pooling is defined, and NaN throughout where not."""
    for row, rollout in enumerate(result.rollouts):
        expected = pooling_named(pooling).has_value(rollout.num_content_tokens, is_reached=rollout.is_reached)
        finite_L = np.isfinite(values_BLD[row]).all(axis=1)
        if expected and not finite_L.all():
            raise UnitError(
                f"{rollout.address}: {hook_point}/{pooling} is not finite at captured layer "
                f"{int(np.argmin(finite_L))}.",
                code="not_finite",
            )
        if not expected and not np.isnan(values_BLD[row]).all():
            raise UnitError(f"{rollout.address}: an empty response has values.", code="empty_response")


def _check_tokens(result: UnitResult, tokens_NKD: np.ndarray, array: str, tokens_per_block: int) -> None:
    """Check that there is one finite row per content token, and that they fit into a shard."""
    counts = [rollout.num_content_tokens for rollout in result.rollouts]
    if len(tokens_NKD) != sum(counts):
        raise UnitError(f"{array} has {len(tokens_NKD)} tokens; the responses have {sum(counts)}.", code="rows_mixed")
    if len(tokens_NKD) > tokens_per_block:
        raise UnitError(
            f"the responses have {len(tokens_NKD)} tokens; a shard of this run holds {tokens_per_block}.",
            code="too_many_tokens",
        )
    finite_N = np.isfinite(tokens_NKD).all(axis=(1, 2))
    if not finite_N.all():
        row = int(np.searchsorted(np.cumsum(counts), np.argmin(finite_N), side="right"))
        raise UnitError(f"{result.rollouts[row].address}: {array} is not finite.", code="not_finite")
