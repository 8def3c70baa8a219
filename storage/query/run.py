"""Read a run: its rollouts and texts, activations by persona and layer, and its newest reduction.

A run can be read while a driver works on it: readers see committed units only. Rollouts are always in address order: by
kind, persona, polarity, prompt, question, sample, turn. Axes: N rows of a result, one per rollout or, of per-token
activations, one per token; L layers, D d_model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...jobs.errors import InputError, StoreError
from ...jobs.poolings import DEFAULT_POOLING, keeps_tokens
from ..arrays.geometry import geometry_of
from ..derived.reductions import Reduction, read_current_reduction
from ..derived.scores import with_scores
from ..format import layout
from ..format.records import RunRecord
from ..format.rollout_tables import rollout_schema
from ..locations.location import Location, open_location
from ..run.chunk_index import ChunkLengths
from ..run.commits import PARALLEL_READS, read_commits, read_rollouts
from ..run.index import Index, load_index
from ..run.run_store import read_run_record
from .activations import Activations, Completeness
from .reader import ActivationReader
from .selection import Filters, Layers, is_single_layer, layer_positions, select, unknown_personas, wants_scores
from .token_rows import TokenRows

if TYPE_CHECKING:
    import xarray

_BLOCK_BYTES = 256 * 2**20
"""Default size of the parts that ``Query.blocks`` yields, in bytes."""


class Query:
    """A selection of rollouts and layers of one activation array, not read yet. Made by ``Run.query``.

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
        self, run: Run, rollouts: pa.Table, layer: Layers, hook_point: str, pooling: str, note: str = ""
    ) -> None:
        self._reader = run.reader(hook_point, pooling)
        held = geometry_of(run.record, pooling).layers
        is_middle = isinstance(layer, str) and layer == "middle"
        asked = _nearest(held, run.record.model.n_layers // 2) if is_middle else layer
        self._positions = layer_positions(asked, held, run.record.model.n_layers)
        self._is_single = is_single_layer(layer)
        self._d_model = run.record.model.d_model
        self._tokens = None
        if keeps_tokens(pooling):
            self._tokens = TokenRows(run.index, rollouts, run.record.rows_per_block, run.record.tokens_per_block)
        self.rollouts = rollouts
        self.offsets = self._tokens.offsets if self._tokens is not None else None
        self.layers = tuple(held[position] for position in self._positions)
        self.hook_point = hook_point
        self.pooling = pooling
        self.completeness = run.completeness
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


class Run:
    """A run opened for reading. Make one with ``open_run``.

    The list of committed units is loaded on first use and kept, so that several queries see the same rollouts;
    ``refresh`` loads it again.

    Attributes:
        location: The run's store.
        record: The run's record: spec, model, shapes.

    Example:
        >>> run = open_run("runs/demo")
        >>> str(run.completeness), len(run.layers)
        ('8 of 8 units', 30)
    """

    def __init__(self, location: Location, record: RunRecord) -> None:
        self.location = location
        self.record = record
        self._lengths: dict[tuple[str, str], ChunkLengths] = {}

    @property
    def url(self) -> str:
        """Directory or ``s3://`` URL of the store."""
        return self.location.url

    @property
    def completeness(self) -> Completeness:
        """Number of committed and of planned units."""
        return Completeness(len(self._index.committed), self.record.num_units)

    @property
    def committed(self) -> frozenset[str]:
        """Ids of the committed units."""
        return self._index.committed

    @property
    def layers(self) -> tuple[int, ...]:
        """Captured layers, 0-based."""
        return self.record.layers

    @property
    def middle_layer(self) -> int:
        """The default layer of queries: n_layers // 2, or the captured layer nearest to it."""
        return _nearest(self.layers, self.record.model.n_layers // 2)

    def refresh(self) -> Run:
        """Load committed units and the reduction again on next use, and return this run."""
        self.__dict__.pop("_index", None)
        self._lengths.clear()
        self.__dict__.pop("reduction", None)
        return self

    @property
    def index(self) -> pa.Table:
        """One line per committed rollout, in address order: address, row, token counts, finish reason."""
        return self._index.table

    @property
    def num_empty_responses(self) -> int:
        """Number of committed rollouts whose response has no content tokens, and so no vector."""
        return self.index.num_rows - self.index.filter(self.index["has_vector"]).num_rows

    def query(
        self,
        *,
        layer: Layers = "middle",
        hook_point: str = "resid_post",
        pooling: str = DEFAULT_POOLING,
        **filters: Unpack[Filters],
    ) -> Query:
        """Select activations without reading them; rollouts without a vector (empty responses) are left out.

        Args:
            layer: A 0-based layer, several, a range such as ``"10:20"``, ``"middle"`` or ``"all"``. One number or name
                gives values without a layer axis.
            hook_point: Hook point, as named in the spec.
            pooling: Pooling, as named in the spec; ``tokens`` selects every content token of each response.
            **filters: Conditions on rollouts; see ``Filters``.

        Raises:
            InputError: A layer, hook point or pooling was not captured, a filter is unknown, or there are no scores.

        Example:
            >>> open_run("runs/demo").query(kind="role", layer="10:20").shape
            (24, 10, 576)
        """
        chosen = self._select(filters)
        chosen = chosen.filter(chosen["has_vector"])
        return Query(self, chosen, layer, hook_point, pooling, self._note(filters, chosen.num_rows))

    def activations(
        self,
        *,
        layer: Layers = "middle",
        hook_point: str = "resid_post",
        pooling: str = DEFAULT_POOLING,
        **filters: Unpack[Filters],
    ) -> Activations:
        """Select activations and read them into memory; arguments as for ``query``.

        Raises:
            InputError: A layer, hook point or pooling was not captured, a filter is unknown, or there are no scores.
            StoreError: A committed shard is missing or damaged.

        Example:
            >>> found = open_run("runs/demo").activations(persona="pirate", layer=15)
            >>> found.shape, found[2:5].rollouts["question_index"].to_pylist()
            ((8, 576), [2, 3, 0])
        """
        return self.query(layer=layer, hook_point=hook_point, pooling=pooling, **filters).read()

    def rollouts(self, **filters: Unpack[Filters]) -> pa.Table:
        """Read rollouts with their texts and token ids, empty responses included.

        Args:
            **filters: Conditions on rollouts; see ``Filters``.

        Returns:
            A table with one line per rollout, in address order; ``.to_pandas()`` converts it.

        Raises:
            InputError: A filter is unknown, or there are no scores.
            StoreError: A committed table is missing or damaged, or the index does not match the commit records.

        Example:
            >>> table = open_run("runs/demo").rollouts(persona="pirate", question=[0, 2])
            >>> table.num_rows, table.column_names[:3]
            (4, ['kind', 'persona', 'polarity'])
        """
        chosen = self._select(filters)
        units = chosen["unit_id"].unique().to_pylist()
        schema = rollout_schema(of_conversations=self.record.of_conversations)
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            commits = read_commits(self.location, units)
            tables = list(pool.map(lambda commit: read_rollouts(self.location, commit), commits))
        texts = pa.concat_tables([schema.empty_table(), *tables])
        place_of = {row: place for place, row in enumerate(texts["row"].to_pylist())}
        rows = chosen["row"].to_pylist()
        if not place_of.keys() >= set(rows):
            raise StoreError(
                "the index lists rows that no commit record has.",
                code="wrong_index",
                file=f"{self.url}/{layout.INDEX}",
                hint="persona-atlas gc --yes rewrites it from the commit records.",
            )
        texts = texts.take(pa.array([place_of[row] for row in rows], pa.int64()))
        return texts.append_column("score", chosen["score"]) if "score" in chosen.column_names else texts

    def to_xarray(self, hook_point: str = "resid_post", **filters: Unpack[Filters]) -> xarray.Dataset:
        """Open activations as a lazy xarray dataset: values are fetched when they are used.

        One variable per pooling, with dimensions ``rollout``, ``layer`` and ``d_model``; ``layer`` and the parts of a
        rollout's address are coordinates. Per-token activations have no such shape and are left out.

        Args:
            hook_point: Hook point, as named in the spec.
            **filters: Conditions on rollouts; see ``Filters``.

        Raises:
            InputError: The package ``xarray`` is not installed, or the hook point was not captured.

        Example:
            >>> dataset = open_run("runs/demo").to_xarray(persona="pirate")
            >>> dataset.response_mean.sel(layer=15).values.shape
            (8, 576)
        """
        from .xarray_dataset import to_dataset

        poolings = self.record.spec.capture.pooled if hook_point in self.record.spec.capture.hook_points else []
        readers = {pooling: self.reader(hook_point, pooling) for pooling in poolings or [DEFAULT_POOLING]}
        chosen = self._select(filters)
        return to_dataset(readers, chosen.filter(chosen["has_vector"]), self.layers, self.record.model.d_model)

    @cached_property
    def reduction(self) -> Reduction | None:
        """The newest reduction, loaded on first use and kept until ``refresh``; None when there is none.

        Raises:
            StoreError: The reduction is damaged.

        Example:
            >>> reduction = open_run("runs/demo").reduction
            >>> reduction.axis[reduction.position(15)].shape
            (576,)
        """
        return read_current_reduction(self.location)

    def reader(self, hook_point: str, pooling: str) -> ActivationReader:
        """Return a reader of rows of one activation array.

        Raises:
            InputError: The hook point or the pooling was not captured.
        """
        array = (hook_point, pooling)
        if array not in self.record.arrays:
            raise InputError(
                f"{hook_point}/{pooling} was not captured.",
                code="not_captured",
                field="pooling",
                hint=f"The run has {', '.join('/'.join(pair) for pair in self.record.arrays)}.",
            )
        if array not in self._lengths:
            geometry = geometry_of(self.record, pooling)
            self._lengths[array] = ChunkLengths(
                self.location, hook_point, pooling, len(geometry.layers), geometry.chunks_per_block
            )
        lengths = self._lengths[array]
        lengths.add_commits(self._index.missing_commits)
        return ActivationReader(self.location, self.record, hook_point, pooling, lengths)

    @cached_property
    def _index(self) -> Index:
        return load_index(self.location, self.record)

    def _select(self, filters: Filters) -> pa.Table:
        index = self.index
        if wants_scores(filters):
            unbounded = filters.copy()
            unbounded["min_score"] = unbounded["max_score"] = None
            index = with_scores(self.location, select(index, unbounded), filters.get("judge"))
        return select(index, filters)

    def _note(self, filters: Filters, num_found: int) -> str:
        notes = [] if num_found else ["No rollout matches."]
        unknown = unknown_personas(self.index, filters.get("persona"))
        notes += [unknown] if unknown else []
        if notes and not self.completeness.is_complete:
            notes.append(f"The run has {self.completeness} so far.")
        return " ".join(notes)


def _nearest(layers: Sequence[int], wanted: int) -> int:
    return min(layers, key=lambda layer: (abs(layer - wanted), layer))


def _unit_ends(rollouts: pa.Table) -> list[int]:
    """Return the end of each unit's run of lines, exclusive; in address order a unit's lines are adjacent."""
    units = rollouts["unit_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return [*(np.flatnonzero(np.diff(units)) + 1).tolist(), len(units)]


def open_run(url: str | os.PathLike[str], endpoint_url: str | None = None) -> Run:
    """Open a run for reading; its index is loaded on first use.

    Args:
        url: Directory or ``s3://`` URL of the store.
        endpoint_url: URL of an S3-compatible server; ``AWS_ENDPOINT_URL`` from the environment when None.

    Raises:
        InputError: There is no run at the URL.
        StoreError: The run's record is damaged or of another layout version.

    Example:
        >>> open_run("runs/demo").rollouts(persona="pirate").num_rows
        8
    """
    location = open_location(url, endpoint_url)
    record = read_run_record(location)
    if record is None:
        raise InputError(
            f"there is no run at {location.url}.", code="no_run", field="store.url", hint="Check the path."
        )
    return Run(location, record)
