"""Write one attempt's block: its texts, then its activation objects. Nothing here makes it count; a commit does.

Every path carries the attempt's own row block, so a late or doubled worker overwrites nobody. The texts come first
because their name tells the unit: no row block is ever found in a store without whose it is.
"""

from __future__ import annotations

import numpy as np

from ...jobs.errors import UnitError
from ...jobs.poolings import pooling_named
from ...jobs.rollouts import UnitResult
from ...jobs.unit_size import TOKENS_PER_CHUNK
from ..format import layout
from ..format.records import Manifest, StoredObject, StoredShard
from ..format.rollout_tables import rollout_table, to_parquet
from ..locations.location import Location
from .codec import encode_shard


def write_unit_result(
    location: Location,
    block: UnitResult,
    *,
    rows_per_block: int,
    mantissa_bits: int,
    worker: str,
    tokens_per_block: int = 0,
) -> Manifest:
    """Write a finished unit and say what was written.

    Args:
        location: The run's store.
        block: The unit with its arrays.
        rows_per_block: Of the run.
        mantissa_bits: Of the run.
        worker: Who worked it, for people.
        tokens_per_block: Of the run; 0 when it keeps no tokens.

    Returns:
        The manifest that the driver commits.

    Raises:
        UnitError: A number is missing, not finite or overflows; nothing of it can be committed.
        TransientError: The store failed.
    """
    attempt, rollouts = block.attempt, block.rollouts
    unit_id = attempt.unit.unit_id
    for (hook_point, pooling), values_BLD in block.arrays_BLD.items():
        _check_finite(block, values_BLD, hook_point, pooling)
    for (hook_point, pooling), tokens_NKD in block.tokens_NKD.items():
        _check_tokens(block, tokens_NKD, f"{hook_point}/{pooling}", tokens_per_block)
    if block.canary and not np.isfinite([*block.canary.relative_error_L, *block.canary.cosine_L]).all():
        raise UnitError("the canary's figures are not finite.", code="canary")
    texts_path = layout.rollouts_path(unit_id, attempt.row_block)
    data = to_parquet(rollout_table(unit_id, rollouts, attempt.row_block * rows_per_block))
    texts = StoredObject.of(texts_path, data)
    location.write(texts_path, data)
    blocks: list[StoredShard] = []
    for (hook_point, pooling), values in sorted([*block.arrays_BLD.items(), *block.tokens_NKD.items()]):
        # One at a time, so that no more than one is ever held encoded.
        if pooling_named(pooling).keeps_tokens:
            encoded = encode_shard(values, tokens_per_block, mantissa_bits, TOKENS_PER_CHUNK)
        else:
            encoded = encode_shard(values, rows_per_block, mantissa_bits)
        if encoded is None:
            continue
        path = layout.shard_path(hook_point, pooling, attempt.row_block)
        where = {"hook_point": hook_point, "pooling": pooling, "chunk_bytes": encoded.chunk_bytes}
        blocks.append(StoredShard.of(path, encoded.data, **where))
        location.write(path, encoded.data)
    return Manifest(
        unit=attempt.unit,
        attempt=attempt.number,
        row_block=attempt.row_block,
        texts=texts,
        blocks=tuple(blocks),
        prompt_tokens=tuple(len(rollout.prompt_token_ids) for rollout in rollouts),
        content_tokens=tuple(rollout.num_content_tokens for rollout in rollouts),
        finish_reasons=tuple(rollout.finish_reason for rollout in rollouts),
        worker=worker,
        seconds=block.seconds,
        canary=block.canary,
    )


def _check_finite(block: UnitResult, values_BLD: np.ndarray, hook_point: str, pooling: str) -> None:
    """Make sure that a row has numbers exactly when its pooling is defined: the table says when that is."""
    for row, rollout in enumerate(block.rollouts):
        expected = pooling_named(pooling).has_value(rollout.num_content_tokens)
        finite_L = np.isfinite(values_BLD[row]).all(axis=1)
        if expected and not finite_L.all():
            raise UnitError(
                f"{rollout.address}: {hook_point}/{pooling} is not finite at captured layer "
                f"{int(np.argmin(finite_L))}.",
                code="not_finite",
            )
        if not expected and not np.isnan(values_BLD[row]).all():
            raise UnitError(f"{rollout.address}: an empty response has numbers.", code="empty_response")


def _check_tokens(block: UnitResult, tokens_NKD: np.ndarray, array: str, tokens_per_block: int) -> None:
    """There is a row for every content token and no other, each has numbers, and the block has room for them."""
    counts = [rollout.num_content_tokens for rollout in block.rollouts]
    if len(tokens_NKD) != sum(counts):
        raise UnitError(f"{array} has {len(tokens_NKD)} tokens; the responses have {sum(counts)}.", code="rows_mixed")
    if len(tokens_NKD) > tokens_per_block:
        raise UnitError(
            f"the responses have {len(tokens_NKD)} tokens; a block of this run holds {tokens_per_block}.",
            code="too_many_tokens",
        )
    finite_N = np.isfinite(tokens_NKD).all(axis=(1, 2))
    if not finite_N.all():
        row = int(np.searchsorted(np.cumsum(counts), np.argmin(finite_N), side="right"))
        raise UnitError(f"{block.rollouts[row].address}: {array} is not finite.", code="not_finite")
