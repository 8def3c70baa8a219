"""Write one attempt's block: its activation objects, then its texts. Nothing here makes it count; a commit does.

Every path carries the attempt's own row block, so a late or doubled worker overwrites nobody.
"""

from __future__ import annotations

import hashlib

import numpy as np

from ..jobs.block import UnitBlock
from ..jobs.errors import UnitError
from . import layout
from .codec import encode_block
from .location import Location
from .records import Manifest, StoredObject
from .texts import rollout_table, to_parquet


def write_block(
    location: Location, block: UnitBlock, *, rows_per_block: int, mantissa_bits: int, worker: str
) -> Manifest:
    """Write a finished unit and say what was written.

    Args:
        location: The run's store.
        block: The unit with its arrays.
        rows_per_block: Of the run.
        mantissa_bits: Of the run.
        worker: Who worked it, for people.

    Returns:
        The manifest that the driver commits.

    Raises:
        UnitError: A number is missing or not finite; nothing was written.
        TransientError: The store failed.
    """
    order = block.order
    unit_id = order.unit.unit_id
    encoded: list[tuple[str, bytes]] = []
    for (hook_point, pooling), values_BLD in sorted(block.arrays_BLD.items()):
        _check_finite(block, values_BLD, hook_point, pooling)
        shard = encode_block(values_BLD, rows_per_block, mantissa_bits)
        if shard:
            encoded.append((layout.shard_path(hook_point, pooling, order.row_block), shard))
    table = rollout_table(unit_id, block.rollouts, order.row_block * rows_per_block)
    encoded.append((layout.rollouts_path(unit_id, order.row_block), to_parquet(table)))
    for path, data in encoded:
        location.write(path, data)
    return Manifest(
        unit_id=unit_id,
        attempt=order.attempt,
        row_block=order.row_block,
        num_rows=len(block.rollouts),
        objects=tuple(
            StoredObject(path=path, num_bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in encoded
        ),
        worker=worker,
        num_prompt_tokens=sum(len(rollout.prompt_token_ids) for rollout in block.rollouts),
        num_response_tokens=sum(rollout.num_content_tokens for rollout in block.rollouts),
        seconds=block.seconds,
    )


def _check_finite(block: UnitBlock, values_BLD: np.ndarray, hook_point: str, pooling: str) -> None:
    """A row of a response pooling has numbers exactly when its response has content; a prompt always has."""
    for row, rollout in enumerate(block.rollouts):
        expected = rollout.has_vector or pooling.startswith("prompt_")
        finite_L = np.isfinite(values_BLD[row]).all(axis=1)
        if expected and not finite_L.all():
            raise UnitError(
                f"{rollout.address}: {hook_point}/{pooling} is not finite at captured layer "
                f"{int(np.argmin(finite_L))}.",
                code="not_finite",
            )
        if not expected and not np.isnan(values_BLD[row]).all():
            raise UnitError(f"{rollout.address}: an empty response has numbers.", code="empty_response")
