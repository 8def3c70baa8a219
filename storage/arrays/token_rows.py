"""Where the tokens of rollouts lie in a ``tokens`` array: the index has all it takes to know. Pure.

In a unit's block the tokens of its rollouts follow one another in row order, without gaps, from the block's first row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64 = npt.NDArray[np.int64]


class TokenRows:
    """Rows of a ``tokens`` array for some rollouts.

    Args:
        index: Every committed rollout: units are whole in it.
        chosen: n of them, in the order in which their tokens are wanted.
        rows_per_block: Of the run.
        tokens_per_block: Of the run.

    Attributes:
        offsets: int64 ``(n + 1)``: the tokens of rollout i are ``[offsets[i], offsets[i + 1])`` of all that are wanted.
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
        """Give the array's rows for rollouts ``[start, stop)``, one a token."""
        offsets = self.offsets[start : stop + 1] - self.offsets[start]
        return np.repeat(self._first_row[start:stop] - offsets[:-1], np.diff(offsets)) + np.arange(offsets[-1])
