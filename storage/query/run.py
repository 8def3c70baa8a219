"""Read a run: its rollouts and texts, activations by persona and layer, and its newest reduction.

A run can be read while a driver works on it: readers see committed units only. Rollouts are always in address order: by
kind, persona, polarity, prompt, question, sample, turn. Axes: N rows of a result, one per rollout or, of per-token
activations, one per token; L layers, D d_model.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Unpack

import pyarrow as pa

from ...jobs.errors import InputError, StoreError
from ...jobs.poolings import DEFAULT_POOLING
from ...jobs.specs.store_spec import S3Access
from ...jobs.wording import count_of
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
from .query import Query, nearest_layer
from .reader import ActivationReader
from .selection import SCORE_FILTERS, Filters, Layers, select, unknown_personas, wants_scores, without_a_score_in_range

if TYPE_CHECKING:
    import xarray


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
        return nearest_layer(self.layers, self.record.model.n_layers // 2)

    @property
    def model_name(self) -> str:
        """Source of the model, as the spec names it."""
        return self.record.spec.model.source

    @property
    def model_family(self) -> str:
        """``model_type`` of the model's configuration."""
        return self.record.model.family

    @property
    def n_layers(self) -> int:
        """Decoder layers of the model."""
        return self.record.model.n_layers

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.record.model.d_model

    def refresh(self) -> Run:
        """Load committed units and the reduction again on next use, and return this run; it may have grown."""
        self.record = read_run_record(self.location) or self.record
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
        """Number of committed rollouts whose response has no content tokens; 0 where no prompt has a response."""
        return self.index.num_rows - self.with_vector(self.index).num_rows

    def with_vector(self, lines: pa.Table) -> pa.Table:
        """Leave out rollouts with an empty response; in a run of prompts without an answer, none.

        Args:
            lines: Lines of the index.
        """
        return lines if self.record.of_prompts else lines.filter(lines["has_vector"])

    @property
    def served_tokens(self) -> dict[str, int]:
        """Number of committed rollouts by how their token ids compare with those that a server sampled.

        Keys are those of ``ServedTokens``; empty where no server generated, or none of its units recorded it.
        """
        if not self.record.is_served:
            return {}
        counts = self.index["served_tokens"].drop_null().value_counts().to_pylist()
        return {count["values"]: count["counts"] for count in sorted(counts, key=lambda count: count["values"])}

    @property
    def edited(self) -> dict[str, float]:
        """What the run's interventions did to its committed rollouts, over tokens and edited layers.

        Returns:
            ``share``: mean over the rollouts of the share that was changed; ``correction``: mean length of the change
            over the rollouts with any, in units of the residual stream. Empty without interventions, or where nothing
            was recorded.
        """
        if not self.record.is_edited:
            return {}
        shares = self.index["edited_share"].drop_null().to_numpy()
        corrections = self.index["mean_correction"].drop_null().to_numpy()
        if not len(shares):
            return {}
        changed = corrections[shares > 0]
        return {"share": float(shares.mean()), "correction": float(changed.mean()) if len(changed) else 0.0}

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
        matching = self._select(filters)
        chosen = self.with_vector(matching)
        reader = self.reader(hook_point, pooling)
        note = self._note(filters, matching, chosen.num_rows)
        return Query(self.record, self.index, reader, chosen, layer, self.completeness, note)

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
        schema = rollout_schema(of_conversations=self.record.of_conversations, is_edited=self.record.is_edited)
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
        return to_dataset(readers, self.with_vector(chosen), self.layers, self.record.model.d_model)

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
        lengths = self.lengths(hook_point, pooling)
        return ActivationReader(self.location, self.record, hook_point, pooling, lengths)

    def lengths(self, hook_point: str, pooling: str) -> ChunkLengths:
        """Return the byte lengths of the layers of every unit, of one activation array; fetched when asked for.

        Raises:
            InputError: The hook point or the pooling was not captured.
        """
        array = (hook_point, pooling)
        if array not in self.record.arrays:
            raise InputError(
                f"{hook_point}/{pooling} was not captured.",
                code="not_captured",
                field="pooling" if hook_point in self.record.spec.capture.hook_points else "hook_point",
                hint=f"The run has {', '.join('/'.join(pair) for pair in self.record.arrays)}.",
            )
        if array not in self._lengths:
            geometry = geometry_of(self.record, pooling)
            self._lengths[array] = ChunkLengths(
                self.location, hook_point, pooling, len(geometry.layers), geometry.chunks_per_block
            )
        lengths = self._lengths[array]
        lengths.add_commits(self._index.missing_commits)
        return lengths

    @cached_property
    def _index(self) -> Index:
        index = load_index(self.location, self.record)
        if len(index.committed) > self.record.num_units:
            # Somebody has added to the run since it was opened.
            self.record = read_run_record(self.location) or self.record
        return index

    def _select(self, filters: Filters) -> pa.Table:
        index = self.index
        if wants_scores(filters):
            unbounded = filters.copy()
            unbounded["min_score"] = unbounded["max_score"] = None
            asking = next(name for name in SCORE_FILTERS if filters.get(name) is not None)
            index = with_scores(self.location, select(index, unbounded), filters.get("judge"), asking)
        return select(index, filters)

    def _note(self, filters: Filters, matching: pa.Table, num_found: int) -> str:
        notes = [] if num_found else ["No rollout matches.", *_why_without_vector(matching)]
        unknown = unknown_personas(self.index, filters.get("persona"))
        notes += [unknown] if unknown else []
        unscored = without_a_score_in_range(self.index, filters, matching)
        notes += [unscored] if unscored else []
        if notes and not self.completeness.is_complete:
            notes.append(f"The run has {self.completeness} so far.")
        return " ".join(notes)


def _why_without_vector(lines: pa.Table) -> list[str]:
    """Say why no rollout has activations of those that the filters name."""
    not_reached = lines["finish_reason"].to_pylist().count("not_reached")
    empty = lines.num_rows - not_reached
    reasons = [f"{count_of(not_reached, 'turn')} not reached: the conversation ended before."] if not_reached else []
    return [*reasons, f"{count_of(empty, 'response')} empty, without activations."] if empty else reasons


def open_run(url: str | os.PathLike[str], endpoint_url: str | None = None, access: S3Access | None = None) -> Run:
    """Open a run for reading; its index is loaded on first use.

    Args:
        url: Directory or ``s3://`` URL of the store.
        endpoint_url: URL of an S3-compatible server; None: the one that botocore finds in the environment or the AWS
            profile, else AWS.
        access: How requests to a bucket are made; None: signed, and with nothing special.

    Raises:
        InputError: There is no run at the URL.
        StoreError: The run's record is damaged or of another layout version.

    Example:
        >>> open_run("runs/demo").rollouts(persona="pirate").num_rows
        8
    """
    run = run_at(open_location(url, endpoint_url, access))
    stored = run.record.spec.store
    if stored.sse is not None and (access is None or access.sse is None):
        # What is written to the run later, a reduction for one, is encrypted as the run is.
        encryption = {"sse": stored.sse, "sse_kms_key_id": stored.sse_kms_key_id}
        access = S3Access.model_validate((access or S3Access()).model_dump() | encryption)
        return Run(open_location(url, endpoint_url, access), run.record)
    return run


def run_at(location: Location) -> Run:
    """Open the run of a store that is open already, so that it is accessed as that store is.

    Args:
        location: The run's store.

    Raises:
        InputError: There is no run.
        StoreError: The run's record is damaged or of another layout version.
    """
    record = read_run_record(location)
    if record is None:
        raise InputError(
            f"there is no run at {location.url}.", code="no_run", field="store.url", hint="Check the path."
        )
    return Run(location, record)
