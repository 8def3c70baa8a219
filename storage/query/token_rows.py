"""Rows of a ``tokens`` array that hold given rollouts, computed from the index alone. Pure.

In a shard, the tokens of a unit's rollouts follow one another in row order, without gaps, from the shard's first row.
So a rollout starts after the sum of the token counts of the unit's rollouts before it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64 = npt.NDArray[np.int64]


class TokenRows:
    """Rows of a ``tokens`` array for selected rollouts.

    Args:
        index: Every committed rollout. Counts are summed over all rollouts of a unit, so none of a unit may be missing.
        chosen: The n selected rollouts, in the order in which their tokens are to be concatenated.
        rows_per_block: Rows per shard of the pooled arrays.
        tokens_per_block: Rows per shard of the ``tokens`` array.

    Attributes:
        offsets: int64 ``(n + 1,)``: rows ``offsets[i]`` to ``offsets[i + 1]`` of the concatenation are rollout i's.
    """

    def __init__(self, index: pa.Table, chosen: pa.Table, rows_per_block: int, tokens_per_block: int) -> None:
        by_row = np.argsort(index["row"].to_numpy())
        rows, counts = index["row"].to_numpy()[by_row], index["num_content_tokens"].to_numpy()[by_row].astype(np.int64)
        blocks = rows // rows_per_block
        before = np.cumsum(counts) - counts
        _, begins, of_block = np.unique(blocks, return_index=True, return_inverse=True)
        first_rows = blocks * tokens_per_block + before - before[begins][of_block]
        self._first_row = first_rows[np.searchsorted(rows, chosen["row"].to_numpy())]
        self.offsets: Int64 = np.concatenate([[0], np.cumsum(chosen["num_content_tokens"].to_numpy(), dtype=np.int64)])

    def rows(self, start: int, stop: int) -> Int64:
        """Return the array's rows of the selected rollouts ``start`` to ``stop``, int64, one per token."""
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        return np.repeat(self._first_row[start:stop] - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
