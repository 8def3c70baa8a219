"""A selection of a run's activations that is read when asked for: whole, or in parts of bounded size.

Axes: N rows of a result, one per rollout or, of per-token activations, one per token; L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...jobs.poolings import keeps_tokens
from ..arrays.geometry import geometry_of
from ..format.records import RunRecord
from .activations import Activations, Completeness
from .reader import ActivationReader
from .selection import Layers, is_single_layer, layer_positions
from .token_rows import TokenRows

_BLOCK_BYTES = 256 * 2**20
"""Default size of the parts that ``Query.blocks`` yields, in bytes."""


class Query:
    """A selection of rollouts and layers of one activation array, not read yet. Made by ``Run.query``.

    Args:
        record: Record of the run.
        index: Index lines of all committed rollouts.
        reader: Reads rows of the array.
        rollouts: The selected lines of the index, all of them with a vector.
        layer: The requested layers.
        completeness: Units committed and planned.
        note: A warning for people; empty for none.

    Attributes:
        rollouts: One line per rollout, in address order: address, row, token counts, and ``score`` with a score filter.
        layers: The requested layers, 0-based.
        hook_point: Hook point of the array.
        pooling: Pooling of the array.
        offsets: For per-token activations, where each rollout's rows start and end, as in ``Activations``; else None.
        completeness: Units committed and planned when the run was queried.
        note: A warning for people, such as that nothing matches or a persona does not exist; else empty.
    """

    def __init__(
        self,
        record: RunRecord,
        index: pa.Table,
        reader: ActivationReader,
        rollouts: pa.Table,
        layer: Layers,
        completeness: Completeness,
        note: str = "",
    ) -> None:
        self._reader = reader
        held = geometry_of(record, reader.pooling).layers
        is_middle = isinstance(layer, str) and layer == "middle"
        asked = nearest_layer(held, record.model.n_layers // 2) if is_middle else layer
        self._positions = layer_positions(asked, held, record.model.n_layers)
        self._is_single = is_single_layer(layer)
        self._d_model = record.model.d_model
        self._tokens = None
        if keeps_tokens(reader.pooling):
            self._tokens = TokenRows(index, rollouts, record.rows_per_block, record.tokens_per_block)
        self.rollouts = rollouts
        self.offsets = self._tokens.offsets if self._tokens is not None else None
        self.layers = tuple(held[position] for position in self._positions)
        self.hook_point = reader.hook_point
        self.pooling = reader.pooling
        self.completeness = completeness
        self.note = note

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the values: ``(N, D)`` when one layer was requested by number or name, else ``(N, L, D)``."""
        return self._shape(self._num_rows(0, self.rollouts.num_rows))

    def read(self) -> Activations:
        """Read the whole selection into memory.

        Raises:
            StoreError: A committed shard is missing or damaged.
        """
        values = self._read(0, self.rollouts.num_rows)
        return Activations(
            values=values,
            rollouts=self.rollouts,
            layers=self.layers,
            hook_point=self.hook_point,
            pooling=self.pooling,
            completeness=self.completeness,
            offsets=self.offsets,
            note=self.note,
        )

    def blocks(self, max_bytes: int = _BLOCK_BYTES) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
        """Read the selection in parts of bounded size, in order. A unit's rollouts are never split between parts.

        Args:
            max_bytes: Maximum size of a part's values, in bytes; a part has at least one unit, however large.

        Yields:
            The part's lines of ``rollouts`` and its float32 values, ``shape`` but for the first axis.
        """
        limit = max(1, max_bytes // (len(self.layers) * self._d_model * 4))
        start = last = 0
        for stop in _unit_ends(self.rollouts):
            if self._num_rows(start, stop) > limit and last > start:
                yield self._part(start, last)
                start = last
            last = stop
        if start < self.rollouts.num_rows:
            yield self._part(start, self.rollouts.num_rows)

    def _part(self, start: int, stop: int) -> tuple[pa.Table, npt.NDArray[np.float32]]:
        return self.rollouts.slice(start, stop - start), self._read(start, stop)

    def _num_rows(self, start: int, stop: int) -> int:
        """Return how many rows of the result the rollouts ``start`` to ``stop`` have."""
        return stop - start if self.offsets is None else int(self.offsets[stop] - self.offsets[start])

    def _shape(self, num_rows: int) -> tuple[int, ...]:
        return (num_rows, self._d_model) if self._is_single else (num_rows, len(self.layers), self._d_model)

    def _read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        lines = self.rollouts.slice(start, stop - start)
        rows_N, unit_ids = lines["row"].to_numpy(), lines["unit_id"].to_pylist()
        if self._tokens is not None:
            rows_N = self._tokens.rows(start, stop)
            unit_ids = np.repeat(np.array(unit_ids, dtype=object), lines["num_content_tokens"].to_numpy()).tolist()
        values_NLD = self._reader.read(rows_N, unit_ids, self._positions)
        return values_NLD.reshape(self._shape(len(rows_N)))


def nearest_layer(layers: Sequence[int], wanted: int) -> int:
    """Return the one of some layers that is nearest to a layer; of two as near, the lower one."""
    return min(layers, key=lambda layer: (abs(layer - wanted), layer))


def _unit_ends(rollouts: pa.Table) -> list[int]:
    """Return the end of each unit's run of lines, exclusive; in address order a unit's lines are adjacent."""
    units = rollouts["unit_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return [*(np.flatnonzero(np.diff(units)) + 1).tolist(), len(units)]
