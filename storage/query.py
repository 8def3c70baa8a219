"""Read a run: what is in it, activations by persona and layer, texts, and what a reduction found.

Works while the run is running: only committed units exist for a reader. Rollouts always come in address order: kind,
persona, polarity, prompt, question, sample. Axes: N rollouts, L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import zarr

from ..jobs.errors import InputError, StoreError
from . import layout
from .index import read_index, read_rollouts
from .location import Location, open_location
from .records import RunRecord
from .reductions import Reduction, read_current_reduction
from .run_store import committed_units, read_run_record
from .selection import Indices, Layers, Names, Selection, is_single_layer, layer_positions
from .texts import ROLLOUT_SCHEMA

_BLOCKS_BYTES = 256 * 2**20
"""Activations that ``Run.blocks`` holds at a time."""


@dataclass(frozen=True, slots=True)
class Completeness:
    """How much of a run is there.

    Attributes:
        done: Units committed.
        planned: Units of the job.
    """

    done: int
    planned: int

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.done >= self.planned

    def __str__(self) -> str:
        return f"{self.done} of {self.planned} units"


@dataclass(frozen=True, eq=False)
class Activations:
    """The answer to a query.

    Attributes:
        values: float32 ``(n, d_model)`` for one layer, else ``(n, layers, d_model)``.
        rollouts: n lines in the same order: address, row, token counts.
        layers: The layers of ``values``, 0-based.
        completeness: Of the run, when it was asked.
    """

    values: npt.NDArray[np.float32]
    rollouts: pa.Table
    layers: tuple[int, ...]
    completeness: Completeness


class Run:
    """An open run. Holds the list of committed units as it was when opened; ``refresh`` looks again."""

    def __init__(self, location: Location, record: RunRecord) -> None:
        self.location = location
        self.record = record
        self._index: pa.Table | None = None
        self._committed = committed_units(location)

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.location.url

    @property
    def completeness(self) -> Completeness:
        """Units committed, of units planned."""
        return Completeness(len(self._committed), self.record.num_units)

    @property
    def committed(self) -> frozenset[str]:
        """Ids of the committed units."""
        return frozenset(self._committed)

    @property
    def layers(self) -> tuple[int, ...]:
        """Captured layers, 0-based."""
        return self.record.layers

    @property
    def middle_layer(self) -> int:
        """The layer most analyses look at: block n_layers // 2, or the captured one nearest to it."""
        middle = self.record.model.n_layers // 2
        return min(self.layers, key=lambda layer: (abs(layer - middle), layer))

    def refresh(self) -> Run:
        """Look again at what is committed."""
        self._committed = committed_units(self.location)
        self._index = None
        self.__dict__.pop("reduction", None)
        return self

    @property
    def index(self) -> pa.Table:
        """Every committed rollout: address, row, token counts, finish reason, in address order."""
        if self._index is None:
            self._index, _ = read_index(self.location, self._committed)
        return self._index

    @property
    def num_empty_responses(self) -> int:
        """Committed rollouts whose response has no content, and so no vector."""
        return self.index.num_rows - self.index.filter(self.index["has_vector"]).num_rows

    def activations(
        self,
        *,
        kind: Names = None,
        persona: Names = None,
        polarity: Names = None,
        prompt: Indices = None,
        question: Indices = None,
        min_tokens: int | None = None,
        layer: Layers = "middle",
        hook_point: str = "resid_post",
        pooling: str = "response_mean",
    ) -> Activations:
        """Read pooled activations; rollouts without a vector (empty responses) are left out.

        Args:
            kind: ``role``, ``trait`` or ``default``; several; or None for all.
            persona: Names or globs.
            polarity: ``pos`` or ``neg``.
            prompt: Prompt indices.
            question: Question indices.
            min_tokens: Least number of content tokens in a response.
            layer: A 0-based block, several, a range such as ``"10:20"``, ``"middle"`` or ``"all"``.
            hook_point: Which hook point.
            pooling: Which pooling.

        Raises:
            InputError: A layer, hook point or pooling that was not captured.
            StoreError: A committed number is missing or damaged.

        Example:
            >>> run.activations(persona="pirate", layer=15).values.shape  # doctest: +SKIP
            (8, 576)
        """
        chosen = Selection(kind, persona, polarity, prompt, question, min_tokens).apply(self.index)
        chosen = chosen.filter(chosen["has_vector"])
        asked = self.middle_layer if layer == "middle" else layer
        positions = layer_positions(asked, self.layers, self.record.model.n_layers)
        values_NLD = self._read(chosen, positions, hook_point, pooling)
        values = values_NLD[:, 0] if is_single_layer(layer) else values_NLD
        return Activations(values, chosen, tuple(self.layers[p] for p in positions), self.completeness)

    def rollouts(
        self,
        *,
        kind: Names = None,
        persona: Names = None,
        polarity: Names = None,
        prompt: Indices = None,
        question: Indices = None,
        min_tokens: int | None = None,
    ) -> pa.Table:
        """Read rollouts with their texts and token ids; the filters are those of ``activations``.

        Raises:
            StoreError: A committed file is missing or damaged.
        """
        chosen = Selection(kind, persona, polarity, prompt, question, min_tokens).apply(self.index)
        units = chosen["unit_id"].unique().to_pylist()
        if not units:
            return ROLLOUT_SCHEMA.empty_table()
        with ThreadPoolExecutor(16) as pool:
            tables = list(pool.map(lambda unit: read_rollouts(self.location, unit), units))
        texts = pa.concat_tables(tables)
        place_of = {row: place for place, row in enumerate(texts["row"].to_pylist())}
        return texts.take([place_of[row] for row in chosen["row"].to_pylist()])

    def blocks(
        self, *, layers: Layers = "all", hook_point: str = "resid_post", pooling: str = "response_mean"
    ) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
        """Stream every rollout that has a vector, in address order, a bounded number at a time.

        Args:
            layers: As for ``activations``.
            hook_point: Which hook point.
            pooling: Which pooling.

        Yields:
            Index lines and their float32 ``(n, layers, d_model)``.
        """
        positions = layer_positions(layers, self.layers, self.record.model.n_layers)
        index = self.index.filter(self.index["has_vector"])
        step = max(1, _BLOCKS_BYTES // (len(positions) * self.record.model.d_model * 4))
        for start in range(0, index.num_rows, step):
            part = index.slice(start, step)
            yield part, self._read(part, positions, hook_point, pooling)

    @cached_property
    def reduction(self) -> Reduction | None:
        """The newest reduction, if there is one, as it was when first asked for; ``refresh`` looks again."""
        return read_current_reduction(self.location)

    def _array(self, hook_point: str, pooling: str) -> zarr.Array:
        if (hook_point, pooling) not in self.record.arrays:
            raise InputError(
                f"{hook_point}/{pooling} was not captured.",
                code="not_captured",
                field="pooling",
                mend=f"The run holds {', '.join('/'.join(pair) for pair in self.record.arrays)}.",
            )
        path = layout.array_path(hook_point, pooling)
        with self.location.errors():
            try:
                array: Any = zarr.open_array(self.location.zarr(read_only=True), path=path, mode="r")
            except FileNotFoundError:
                raise StoreError(
                    "the activation array is missing.", code="missing_object", file=f"{self.url}/{path}"
                ) from None
            return array

    def _read(self, chosen: pa.Table, positions: list[int], hook_point: str, pooling: str) -> npt.NDArray[np.float32]:
        """Read float32 (N, L, D) of index lines, in their order; every number is finite or it is an error."""
        array = self._array(hook_point, pooling)
        values_NLD = np.empty((chosen.num_rows, len(positions), array.shape[2]), dtype=np.float32)
        if not chosen.num_rows:
            return values_NLD
        rows = chosen["row"].to_numpy()
        order = np.argsort(rows, kind="stable")
        try:
            with self.location.errors():
                values_NLD[order] = array.oindex[rows[order], np.array(positions), :]
        except (ValueError, RuntimeError) as error:
            raise StoreError(
                f"a block of {hook_point}/{pooling} cannot be read: {error}.", code="bad_object", file=self.url
            ) from error
        bad = np.flatnonzero(~np.isfinite(values_NLD).all(axis=(1, 2)))
        if bad.size:
            unit = chosen["unit_id"][int(bad[0])].as_py()
            raise StoreError(
                f"{bad.size} committed rows have no numbers, the first in unit {unit}.",
                code="missing_object",
                file=f"{self.url}/{layout.array_path(hook_point, pooling)}",
            )
        return values_NLD


def open_run(url: str, endpoint_url: str | None = None) -> Run:
    """Open a run for reading.

    Args:
        url: Its directory or ``s3://`` URL.
        endpoint_url: Of an S3-compatible server.

    Raises:
        InputError: There is no run.
        StoreError: Its record is damaged or of a newer layout.
    """
    location = open_location(url, endpoint_url)
    record = read_run_record(location)
    if record is None:
        raise InputError(
            f"there is no run at {location.url}.", code="no_run", field="store.url", mend="Check the path."
        )
    return Run(location, record)
