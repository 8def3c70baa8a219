"""Read a run: what is in it, activations by persona and layer, texts, and what a reduction found.

Works while the run is running: only committed units exist for a reader. Rollouts always come in address order: kind,
persona, polarity, prompt, question, sample, turn. Axes: N rows of an answer, one a rollout or, of ``tokens``, one a
token; L layers, D d_model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ...jobs.errors import InputError, StoreError
from ...jobs.poolings import DEFAULT_POOLING, keeps_tokens
from ..arrays.chunks import ChunkLengths
from ..arrays.geometry import geometry_of
from ..arrays.reader import ActivationReader
from ..arrays.token_rows import TokenRows
from ..derived.reductions import Reduction, read_current_reduction
from ..derived.scores import with_scores
from ..format import layout
from ..format.records import RunRecord
from ..format.rollout_tables import rollout_schema
from ..locations.location import Location, open_location
from ..run.commits import PARALLEL_READS, read_commits, read_rollouts
from ..run.index import Index, load_index
from ..run.run_store import read_run_record
from .selection import Filters, Layers, is_single_layer, layer_positions, select, unknown_personas, wants_scores

if TYPE_CHECKING:
    import xarray

_BLOCK_BYTES = 256 * 2**20
"""Activations that ``Query.blocks`` holds at a time."""


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
        values: float32 ``(n, d_model)`` for one layer, else ``(n, layers, d_model)``; of ``tokens`` the tokens of all n
            rollouts, one's after another's, in the place of n.
        rollouts: n lines in the same order: address, row, token counts.
        layers: The layers of ``values``, 0-based.
        completeness: Of the run, when it was asked.
        offsets: Of ``tokens``, int64 ``(n + 1)``: rollout i has ``values[offsets[i]:offsets[i + 1]]``; else None.
        note: What the asker may not have meant: that nothing matches, or that a persona is not there; else empty.
    """

    values: npt.NDArray[np.float32]
    rollouts: pa.Table
    layers: tuple[int, ...]
    completeness: Completeness
    offsets: npt.NDArray[np.int64] | None = None
    note: str = ""

    def per_rollout(self) -> list[npt.NDArray[np.float32]]:
        """Give each rollout's part of ``values``, in order: its vector, or of ``tokens`` its tokens, first to last."""
        if self.offsets is None:
            return list(self.values)
        return np.split(self.values, self.offsets[1:-1])[: self.rollouts.num_rows]


class Query:
    """Rollouts and layers of one activation array, chosen and not yet read.

    Attributes:
        rollouts: A line each, in address order: address, row, token counts, and ``score`` when scores were asked for.
        layers: The layers asked for, 0-based.
        hook_point: Of the array.
        pooling: Of the array.
        offsets: Of ``tokens``, where each rollout's rows begin and end, as in ``Activations``; else None.
        completeness: Of the run, when it was asked.
        note: What the asker may not have meant: that nothing matches, or that a persona is not there; else empty.
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
        """``(n, d_model)`` for one layer, else ``(n, layers, d_model)``; of ``tokens`` with their number for n."""
        return self._shape(self._num_rows(0, self.rollouts.num_rows))

    def read(self) -> Activations:
        """Read all of it.

        Raises:
            StoreError: A committed number is missing or damaged.
        """
        values = self._read(0, self.rollouts.num_rows)
        return Activations(values, self.rollouts, self.layers, self.completeness, self.offsets, self.note)

    def blocks(self, max_bytes: int = _BLOCK_BYTES) -> Iterator[tuple[pa.Table, npt.NDArray[np.float32]]]:
        """Read it a bounded number of rollouts at a time, in order; whole ones, whatever is kept of each.

        Args:
            max_bytes: Of activations in a block; one unit at least.

        Yields:
            Lines of ``rollouts`` and their float32 values, shaped as ``shape`` says.
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
        """Rows that the rollouts ``[start, stop)`` have in the answer."""
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
    """An open run. Holds what is committed as it was when first asked for; ``refresh`` looks again."""

    def __init__(self, location: Location, record: RunRecord) -> None:
        self.location = location
        self.record = record
        self._lengths: dict[tuple[str, str], ChunkLengths] = {}

    @property
    def url(self) -> str:
        """Where it lies."""
        return self.location.url

    @property
    def completeness(self) -> Completeness:
        """Units committed, of units planned."""
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
        """The layer most analyses look at: block n_layers // 2, or the captured one nearest to it."""
        return _nearest(self.layers, self.record.model.n_layers // 2)

    def refresh(self) -> Run:
        """Look again at what is committed."""
        self.__dict__.pop("_index", None)
        self._lengths.clear()
        self.__dict__.pop("reduction", None)
        return self

    @property
    def index(self) -> pa.Table:
        """Every committed rollout: address, row, token counts, finish reason, in address order."""
        return self._index.table

    @property
    def num_empty_responses(self) -> int:
        """Committed rollouts whose response has no content, and so no vector."""
        return self.index.num_rows - self.index.filter(self.index["has_vector"]).num_rows

    def query(
        self,
        *,
        layer: Layers = "middle",
        hook_point: str = "resid_post",
        pooling: str = DEFAULT_POOLING,
        **filters: Unpack[Filters],
    ) -> Query:
        """Choose activations without reading them yet; rollouts without a vector (empty responses) are left out.

        Args:
            layer: A 0-based block, several, a range such as ``"10:20"``, ``"middle"`` or ``"all"``.
            hook_point: Which hook point.
            pooling: Which pooling; ``tokens`` gives every content token of each response.
            **filters: Which rollouts; see ``Filters``.

        Raises:
            InputError: A layer, hook point or pooling that was not captured, an unknown filter, or no scores.
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
        """Read pooled activations; the arguments are those of ``query``.

        Raises:
            InputError: See ``query``.
            StoreError: A committed number is missing or damaged.

        Example:
            >>> run.activations(persona="pirate", layer=15).values.shape  # doctest: +SKIP
            (8, 576)
        """
        return self.query(layer=layer, hook_point=hook_point, pooling=pooling, **filters).read()

    def rollouts(self, **filters: Unpack[Filters]) -> pa.Table:
        """Read rollouts with their texts and token ids; ``.to_pandas()`` turns the table into a frame.

        Raises:
            InputError: An unknown filter, or no scores.
            StoreError: A committed file is missing or damaged, or the index is not that of the commits.
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
                "the index has rows that no commit has.",
                code="wrong_index",
                file=f"{self.url}/{layout.INDEX}",
                hint="persona-atlas gc --yes writes it anew from the commits.",
            )
        texts = texts.take(pa.array([place_of[row] for row in rows], pa.int64()))
        return texts.append_column("score", chosen["score"]) if "score" in chosen.column_names else texts

    def to_xarray(self, hook_point: str = "resid_post", **filters: Unpack[Filters]) -> xarray.Dataset:
        """Give activations as a labelled dataset that reads nothing until its values are asked for.

        One variable per pooling, with dimensions ``rollout``, ``layer`` and ``d_model``; ``layer`` and the parts of a
        rollout's address are coordinates. ``tokens`` are left out: as many as a response has fit no such array.

        Args:
            hook_point: Which hook point.
            **filters: Which rollouts; see ``Filters``.

        Raises:
            InputError: The package ``xarray`` is not installed, or the hook point was not captured.

        Example:
            >>> run.to_xarray().response_mean.sel(layer=15).values.shape  # doctest: +SKIP
            (312, 576)
        """
        from .labelled import labelled

        poolings = self.record.spec.capture.pooled if hook_point in self.record.spec.capture.hook_points else []
        readers = {pooling: self.reader(hook_point, pooling) for pooling in poolings or [DEFAULT_POOLING]}
        chosen = self._select(filters)
        return labelled(readers, chosen.filter(chosen["has_vector"]), self.layers, self.record.model.d_model)

    @cached_property
    def reduction(self) -> Reduction | None:
        """The newest reduction, if there is one, as it was when first asked for; ``refresh`` looks again."""
        return read_current_reduction(self.location)

    def reader(self, hook_point: str, pooling: str) -> ActivationReader:
        """Give what reads the rows of one activation array.

        Raises:
            InputError: It was not captured.
        """
        array = (hook_point, pooling)
        if array not in self.record.arrays:
            raise InputError(
                f"{hook_point}/{pooling} was not captured.",
                code="not_captured",
                field="pooling",
                hint=f"The run holds {', '.join('/'.join(pair) for pair in self.record.arrays)}; name one of them.",
            )
        if array not in self._lengths:
            cut = geometry_of(self.record, pooling)
            chunks = cut.chunks_per_block
            self._lengths[array] = ChunkLengths(self.location, hook_point, pooling, len(cut.layers), chunks)
        lengths = self._lengths[array]
        lengths.learn(self._index.read_one_by_one)
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
    """Places after which another unit's rollouts follow; address order keeps a unit together."""
    units = rollouts["unit_id"].combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    return [*(np.flatnonzero(np.diff(units)) + 1).tolist(), len(units)]


def open_run(url: str | os.PathLike[str], endpoint_url: str | None = None) -> Run:
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
            f"there is no run at {location.url}.", code="no_run", field="store.url", hint="Check the path."
        )
    return Run(location, record)
