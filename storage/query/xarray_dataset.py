"""Activations as an xarray dataset that is read lazily: values are fetched when they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ...jobs.errors import InputError
from ...jobs.wording import extra_hint
from .reader import ActivationReader

try:
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing
except ImportError:
    raise InputError(
        "to_xarray needs the package xarray.",
        code="no_xarray",
        hint=f"{extra_hint('xarray')}.",
    ) from None

_COORDINATES = (
    "kind",
    "persona",
    "polarity",
    "prompt_index",
    "question_index",
    "sample_index",
    "conversation_index",
    "turn_index",
    "row",
    "score",
)


class _LazyActivations(BackendArray):
    """One pooling as an array (rollout, layer, d_model): indexing fetches the selected rollouts and layers only."""

    def __init__(self, reader: ActivationReader, rollouts: pa.Table, num_layers: int, d_model: int) -> None:
        self._reader = reader
        self._rows = rollouts["row"].to_numpy()
        self._unit_ids = np.array(rollouts["unit_id"].to_pylist(), dtype=object)
        self.shape = (rollouts.num_rows, num_layers, d_model)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        # Outer indexing: along each axis an integer, a slice or an array of integers, independent of the other axes.
        rollout_key, layer_key, value_key = key
        rollouts = np.atleast_1d(np.arange(self.shape[0])[rollout_key])
        positions = np.atleast_1d(np.arange(self.shape[1])[layer_key]).tolist()
        values = self._reader.read(self._rows[rollouts], self._unit_ids[rollouts].tolist(), positions)
        # An integer drops its axis, which ``np.atleast_1d`` has kept so far.
        drop = tuple(0 if isinstance(part, int | np.integer) else slice(None) for part in (rollout_key, layer_key))
        return values[..., value_key][drop]


def to_dataset(
    readers: Mapping[str, ActivationReader], rollouts: pa.Table, layers: Sequence[int], d_model: int
) -> xarray.Dataset:
    """Make a lazy dataset of some rollouts.

    Args:
        readers: By name of the variable, the reader of its array.
        rollouts: Index lines of the rollouts; each must have a vector.
        layers: Layers of the arrays, 0-based; the coordinate ``layer``.
        d_model: Length of the third dimension.

    Returns:
        A dataset with dimensions ``rollout``, ``layer`` and ``d_model``; address, row and score are coordinates of
        ``rollout``.
    """
    dims = ("rollout", "layer", "d_model")
    variables = {
        name: (dims, indexing.LazilyIndexedArray(_LazyActivations(reader, rollouts, len(layers), d_model)))
        for name, reader in readers.items()
    }
    coordinates: dict[str, Any] = {"layer": list(layers)}
    for name in _COORDINATES:
        if name in rollouts.column_names:
            coordinates[name] = ("rollout", rollouts[name].to_numpy())
    return xarray.Dataset(variables, coords=coordinates)
