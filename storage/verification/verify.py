"""Re-read a run and prove it: every planned unit there or named, every byte as committed, every number in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import zarr

from ...jobs.errors import InputError, StoreError
from ...jobs.units import WorkUnit
from ..arrays.chunks import chunk_table, read_chunks
from ..arrays.geometry import geometry_of
from ..derived.reductions import read_current_reduction
from ..derived.scores import SCORE_SCHEMA
from ..format import layout
from ..format.planned_units import read_units
from ..format.records import CommitRecord, RunRecord
from ..format.rollout_tables import in_address_order, read_parquet
from ..locations.location import Location
from ..run.commits import committed_units
from ..run.index import index_lines, read_stored_index
from ..run.run_store import read_run_record
from .garbage import find_garbage
from .verify_unit import Problem, UnitCheck

_PARALLEL_UNITS = 8
"""Units in memory at a time, one object of each."""

_OTHER_LINES = "its lines are not those of the commits; gc --yes writes it anew."


@dataclass
class Verification:
    """What a look at everything found.

    Attributes:
        units_planned: Of the run.
        units_done: Committed.
        missing: Planned units that are not committed, in the plan's order.
        problems: Everything that is wrong.
        rollouts: Of the committed units.
        bytes_read: Of activations and texts.
        canaries: Committed units that were held against a plain forward pass.
        worst_relative_error: Over all canaries and layers; None without any.
        dead_objects: Left by attempts that do not count.
        dead_bytes: They take.
    """

    units_planned: int
    units_done: int = 0
    missing: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    rollouts: int = 0
    bytes_read: int = 0
    canaries: int = 0
    worst_relative_error: float | None = None
    dead_objects: int = 0
    dead_bytes: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing that is committed is damaged."""
        return all(problem.kind == "lag" for problem in self.problems)

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return not self.missing and self.units_done >= self.units_planned


def verify_run(
    location: Location, *, quick: bool = False, tell: Callable[[int, int], None] = lambda *_: None
) -> Verification:
    """Check a run.

    Args:
        location: Its store.
        quick: Hold objects' lengths against the commits, and read none of them.
        tell: Told now and then how many units are checked, of how many.

    Raises:
        InputError: There is no run.
        StoreError: ``run.json`` cannot be read, so nothing can be said.
        TransientError: The store failed.
    """
    record = read_run_record(location)
    if record is None:
        raise InputError(
            f"there is no run at {location.url}.", code="no_run", field="store.url", hint="Check the path."
        )
    found = Verification(record.num_units)
    planned = _planned(location, record, found)
    # Before the commits, which a driver may add to meanwhile: the index can only lag behind what is listed after it.
    stored = _StoredIndex(read_stored_index(location, record), read_chunks(location))
    names = sorted(committed_units(location))
    found.units_done = len(names)
    if planned is not None:
        if len(planned) != record.num_units:
            what = f"it says {record.num_units} units, the list of them has {len(planned)}."
            found.problems.append(Problem("damage", "wrong_count", layout.RUN_RECORD, what))
        found.missing = tuple(unit_id for unit_id in planned if unit_id not in set(names))
    check = UnitCheck(location, record, planned, quick=quick)
    commits: list[CommitRecord] = []
    with ThreadPoolExecutor(_PARALLEL_UNITS) as pool:
        for number, checked in enumerate(pool.map(check.run, names), start=1):
            found.problems += checked.problems
            found.bytes_read += checked.bytes_read
            if checked.commit is not None:
                commits.append(checked.commit)
            tell(number, len(names))
    _sum_up(found, commits)
    found.problems += _shared_row_blocks(commits)
    found.problems += _arrays(location, record, commits)
    found.problems += _index(stored, record, commits)
    found.problems += _reduction(location)
    found.problems += _scores(location)
    dead = find_garbage(location, [commit.manifest for commit in commits])
    found.dead_objects, found.dead_bytes = len(dead), sum(thing.num_bytes for thing in dead)
    return found


def _planned(location: Location, record: RunRecord, found: Verification) -> dict[str, WorkUnit] | None:
    try:
        return read_units(location, record)
    except StoreError as error:
        found.problems.append(Problem("damage", error.code, layout.units_path(record.units_sha256), error.message))
        return None


def _sum_up(found: Verification, commits: Iterable[CommitRecord]) -> None:
    for commit in commits:
        found.rollouts += commit.manifest.num_rows
        canary = commit.manifest.canary
        if canary is not None:
            found.canaries += 1
            worst = max(canary.relative_error_L)
            found.worst_relative_error = max(worst, found.worst_relative_error or 0.0)


def _shared_row_blocks(commits: Iterable[CommitRecord]) -> Iterator[Problem]:
    owner: dict[int, str] = {}
    for commit in commits:
        row_block, unit_id = commit.manifest.row_block, commit.manifest.unit_id
        if row_block in owner:
            what = f"row block {row_block} is also that of {owner[row_block]}."
            yield Problem("damage", "shared_row_block", layout.commit_path(unit_id), what, unit_id)
        owner[row_block] = unit_id


def _arrays(location: Location, record: RunRecord, commits: Iterable[CommitRecord]) -> Iterator[Problem]:
    """Check what Zarr readers go by; our own reader goes by the commits."""
    num_blocks = max((commit.manifest.row_block + 1 for commit in commits), default=0)
    for hook_point, pooling in record.arrays:
        path = layout.array_path(hook_point, pooling)
        cut = geometry_of(record, pooling)
        # Inside: an array that is not there is a missing file to us, and no trouble of the store's.
        with location.errors():
            try:
                array: Any = zarr.open_array(location.zarr(read_only=True), path=path, mode="r")
                facts = (array.shape[1:], array.shards, array.chunks, str(array.dtype), list(array.attrs["layers"]))
                is_nan_filled = bool(np.isnan(array.fill_value))
            except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
                what = f"the array's metadata cannot be read: {error}."
                yield Problem("damage", "bad_array", f"{path}/zarr.json", what)
                continue
        shard, chunk = (cut.rows_per_block, len(cut.layers), cut.d_model), (cut.rows_per_chunk, 1, cut.d_model)
        expected = (shard[1:], shard, chunk, "float32", list(cut.layers))
        if facts != expected or not is_nan_filled:
            yield Problem("damage", "bad_array", f"{path}/zarr.json", "the array's metadata does not fit the run.")
        elif array.shape[0] < num_blocks * cut.rows_per_block:
            # A dead driver's write may arrive late; queries go by the commits and do not mind.
            what = f"the array ends at row {array.shape[0]}, and Zarr readers see no further; gc --yes lengthens it."
            yield Problem("lag", "short_array", f"{path}/zarr.json", what)


@dataclass(frozen=True, eq=False)
class _StoredIndex:
    rollouts: pa.Table
    chunks: pa.Table


def _index(stored: _StoredIndex, record: RunRecord, commits: list[CommitRecord]) -> Iterator[Problem]:
    table, chunks = stored.rollouts, stored.chunks
    truth = index_lines(record, commits)
    indexed = set(table["unit_id"].unique().to_pylist())
    known = {commit.manifest.unit_id for commit in commits}
    lagging = len(known - indexed)
    if lagging:
        what = f"it lacks {lagging} committed units; readers ask their commits."
        yield Problem("lag", "stale_index", layout.INDEX, what)
    shared = pa.array(sorted(known & indexed), pa.string())
    theirs, ours = (in_address_order(lines.filter(pc.field("unit_id").isin(shared))) for lines in (table, truth))
    if not theirs.equals(ours):
        yield Problem("damage", "wrong_index", layout.INDEX, _OTHER_LINES)
    if indexed - known:
        what = f"it has {len(indexed - known)} units without a sound commit record, such as {min(indexed - known)}."
        yield Problem("damage", "wrong_index", layout.INDEX, what)
    order = [("row_block", "ascending"), ("hook_point", "ascending"), ("pooling", "ascending")]
    expected = chunk_table(commit.manifest for commit in commits)
    blocks = pa.array(sorted(set(chunks["row_block"].to_pylist())), pa.int64())
    if not chunks.sort_by(order).equals(expected.filter(pc.field("row_block").isin(blocks)).sort_by(order)):
        yield Problem("damage", "wrong_index", layout.CHUNKS, _OTHER_LINES)
    lacking = len(set(expected["row_block"].to_pylist()) - set(blocks.to_pylist()))
    if lacking:
        yield Problem("lag", "stale_index", layout.CHUNKS, f"it lacks {lacking} units; readers ask their commits.")


def _reduction(location: Location) -> Iterator[Problem]:
    try:
        read_current_reduction(location)
    except StoreError as error:
        path = (error.file or layout.CURRENT_REDUCTION).removeprefix(f"{location.url}/")
        yield Problem("damage", error.code, path, error.message)


def _scores(location: Location) -> Iterator[Problem]:
    for path in location.sizes(layout.SCORES):
        if read_parquet(location, path, SCORE_SCHEMA) is None:
            yield Problem("damage", "bad_object", path, "these scores cannot be read.")
