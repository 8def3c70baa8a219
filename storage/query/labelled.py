"""Activations as an xarray dataset: named axes, labels, and no byte read before it is asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ...jobs.errors import InputError
from ..arrays.reader import ActivationReader

try:
    import xarray
    from xarray.backends import BackendArray
    from xarray.core import indexing
except ImportError:
    raise InputError(
        "to_xarray needs the package xarray.",
        code="no_xarray",
        hint="Install it: pip install 'persona-atlas[xarray]'.",
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
    """One pooling as (rollout, layer, d_model): reads the rollouts and layers of an indexing, and no others."""

    def __init__(self, reader: ActivationReader, rollouts: pa.Table, num_layers: int, d_model: int) -> None:
        self._reader = reader
        self._rows = rollouts["row"].to_numpy()
        self._unit_ids = np.array(rollouts["unit_id"].to_pylist(), dtype=object)
        self.shape = (rollouts.num_rows, num_layers, d_model)
        self.dtype = np.dtype(np.float32)

    def __getitem__(self, key: indexing.ExplicitIndexer) -> np.ndarray:
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._read)

    def _read(self, key: tuple[Any, ...]) -> np.ndarray:
        # What is asked for along each axis: a number, a slice, or an array of numbers.
        rollout_key, layer_key, value_key = key
        rollouts = np.atleast_1d(np.arange(self.shape[0])[rollout_key])
        positions = np.atleast_1d(np.arange(self.shape[1])[layer_key]).tolist()
        values = self._reader.read(self._rows[rollouts], self._unit_ids[rollouts].tolist(), positions)
        asked_one = tuple(0 if isinstance(part, int | np.integer) else slice(None) for part in (rollout_key, layer_key))
        return values[..., value_key][asked_one]


def labelled(
    readers: Mapping[str, ActivationReader], rollouts: pa.Table, layers: Sequence[int], d_model: int
) -> xarray.Dataset:
    """Make the dataset of some rollouts.

    Args:
        readers: By the name of the variable.
        rollouts: A line each, all with vectors.
        layers: Captured blocks.
        d_model: Width.
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
