"""Verify a run: read every committed object and check it against commit records, plan and index.

Problems are of two kinds. *Damage*: a value, text or record is missing or wrong. *Lag*: a cache of the commit records
does not know a commit yet, which costs readers requests and makes no result wrong.
"""

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
from ...jobs.wording import count_of
from ...jobs.work.units import WorkUnit
from ..arrays.geometry import geometry_of
from ..derived.reductions import check_reduction
from ..derived.scores import parse_scores
from ..derived.verdicts import parse_verdicts
from ..format import layout
from ..format.judge_record import parse_judge_record
from ..format.planned_units import read_units
from ..format.records import CommitRecord, RunRecord
from ..format.rollout_tables import in_address_order
from ..format.stored_edits import edits_of
from ..locations.location import Location
from ..run.chunk_index import chunk_table, read_chunks
from ..run.commits import committed_units
from ..run.index import index_lines, read_stored_index
from ..run.run_store import read_run_record, refuse_vectors_only
from .garbage import find_garbage
from .recomputation import Recomputation
from .verify_unit import Problem, UnitCheck

_PARALLEL_UNITS = 8
"""Units that are checked at a time; one object of each is in memory."""

_OTHER_LINES = "its lines differ from the commit records; gc --yes rewrites it."


@dataclass
class Verification:
    """The result of ``verify_run``.

    Attributes:
        units_planned: Number of planned units.
        units_done: Number of committed units.
        missing: Ids of the planned units that are not committed, in the order of the plan.
        problems: All damage and lag.
        rollouts: Number of rollouts of the committed units.
        bytes_read: Bytes of shards and tables that were read.
        canaries: Number of committed units with a rollout that was compared with a plain forward pass.
        canary_rollouts: Number of rollouts that were compared.
        canaries_above: How many of these were above the limit of their job and kept, because ``capture.canary.action``
            was ``warn``.
        unchecked_units: Number of committed units whose job compared none, because ``capture.canary.check`` was
            ``none``.
        worst_relative_error: Largest relative error over all canaries and layers; None without canaries.
        engines: Number of committed units by the engine that captured them, such as ``vllm 0.32.0``.
        garbage_objects: Number of objects of uncommitted attempts.
        garbage_bytes: Their size in bytes.
        recomputation: Comparison of some rollouts with plain forward passes that were run now; None if none were.
    """

    units_planned: int
    units_done: int = 0
    missing: tuple[str, ...] = ()
    problems: list[Problem] = field(default_factory=list)
    rollouts: int = 0
    bytes_read: int = 0
    canaries: int = 0
    canary_rollouts: int = 0
    canaries_above: int = 0
    unchecked_units: int = 0
    worst_relative_error: float | None = None
    engines: dict[str, int] = field(default_factory=dict)
    garbage_objects: int = 0
    garbage_bytes: int = 0
    recomputation: Recomputation | None = None

    @property
    def is_sound(self) -> bool:
        """Whether there is no damage, and no rollout that was recomputed differs; lag is allowed."""
        is_close = self.recomputation is None or self.recomputation.is_close
        return is_close and all(problem.kind == "lag" for problem in self.problems)

    @property
    def damaged_units(self) -> tuple[str, ...]:
        """Ids of the committed units with damage, sorted."""
        damage = (problem for problem in self.problems if problem.kind == "damage")
        return tuple(sorted({problem.unit_id for problem in damage if problem.unit_id is not None}))

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return not self.missing and self.units_done >= self.units_planned


def verify_run(
    location: Location, *, quick: bool = False, on_progress: Callable[[int, int], None] = lambda *_: None
) -> Verification:
    """Verify a run: checksums, rows against texts and token counts, finite values, canaries, index, metadata.

    Damage is collected, not raised, so that one call lists all of it.

    Args:
        location: The run's store.
        quick: Whether to check records and object lengths only, and read no object.
        on_progress: Called after each unit with the numbers of checked and of committed units.

    Raises:
        InputError: There is no run, or a copy of one that has the vectors only.
        StoreError: ``run.json`` or an addition is damaged, so nothing can be checked.
        TransientError: The store cannot be reached.

    Example:
        >>> from persona_atlas.storage.locations.location import open_location
        >>> report = verify_run(open_location("runs/demo"))
        >>> report.is_sound, report.is_complete, report.rollouts
        (True, True, 32)
    """
    refuse_vectors_only(location)
    record = read_run_record(location)
    if record is None:
        raise InputError(
            f"there is no run at {location.url}.", code="no_run", field="store.url", hint="Check the path."
        )
    found = Verification(record.num_units)
    planned = _planned(location, record, found)
    # Caches are read before the commits are listed: if a driver commits in between, they merely lag. Read in the other
    # order, they could have units that the list lacks, which would look like damage.
    stored = _StoredIndex(read_stored_index(location, record), read_chunks(location))
    names = sorted(committed_units(location))
    found.units_done = len(names)
    if planned is not None:
        if len(planned) != record.num_units:
            message = f"it says {count_of(record.num_units, 'unit')}, the list of them has {len(planned)}."
            found.problems.append(Problem("damage", "wrong_count", layout.RUN_RECORD, message))
        found.missing = tuple(unit_id for unit_id in planned if unit_id not in set(names))
    check = UnitCheck(location, record, planned, quick=quick)
    commits: list[CommitRecord] = []
    with ThreadPoolExecutor(_PARALLEL_UNITS) as pool:
        for number, checked in enumerate(pool.map(check.run, names), start=1):
            found.problems += checked.problems
            found.bytes_read += checked.bytes_read
            if checked.commit is not None:
                commits.append(checked.commit)
            on_progress(number, len(names))
    _add_totals(found, commits)
    found.problems += shared_row_blocks(commits)
    found.problems += _arrays(location, record, commits)
    found.problems += _index(stored, record, commits, committed=set(names), planned=planned)
    found.problems += _edits(location, record)
    found.problems += _reduction(location)
    found.problems += _scores(location)
    found.problems += _verdicts(location)
    garbage = find_garbage(location, [commit.manifest for commit in commits])
    found.garbage_objects, found.garbage_bytes = len(garbage), sum(found_object.num_bytes for found_object in garbage)
    return found


def _planned(location: Location, record: RunRecord, found: Verification) -> dict[str, WorkUnit] | None:
    try:
        return read_units(location, record)
    except StoreError as error:
        path = (error.file or layout.units_path(record.units_sha256)).removeprefix(f"{location.url}/")
        found.problems.append(Problem("damage", error.code, path, error.message))
        return None


def _add_totals(found: Verification, commits: Iterable[CommitRecord]) -> None:
    for commit in commits:
        found.rollouts += commit.manifest.num_rows
        found.engines[commit.manifest.engine] = found.engines.get(commit.manifest.engine, 0) + 1
        canary, rule = commit.manifest.canary, commit.manifest.canary_rule
        found.unchecked_units += rule is not None and rule.check == "none"
        if canary is not None:
            found.canaries += 1
            found.canary_rollouts += canary.num_rollouts
            found.canaries_above += canary.num_above
            found.worst_relative_error = max(canary.worst_relative_error, found.worst_relative_error or 0.0)


def shared_row_blocks(commits: Iterable[CommitRecord]) -> Iterator[Problem]:
    """Find row blocks that several units name; which of them is right cannot be told, so each is damaged.

    Args:
        commits: The commit records to compare.
    """
    owners: dict[int, list[str]] = {}
    for commit in commits:
        owners.setdefault(commit.manifest.row_block, []).append(commit.manifest.unit_id)
    for row_block, unit_ids in owners.items():
        for unit_id in unit_ids if len(unit_ids) > 1 else ():
            others = ", ".join(other for other in unit_ids if other != unit_id)
            message = f"row block {row_block} belongs to {others} too."
            yield Problem("damage", "shared_row_block", layout.commit_path(unit_id), message, unit_id)


def _arrays(location: Location, record: RunRecord, commits: Iterable[CommitRecord]) -> Iterator[Problem]:
    """Check the arrays' metadata, by which other Zarr readers go; this package reads by the commit records."""
    num_blocks = max((commit.manifest.row_block + 1 for commit in commits), default=0)
    for hook_point, pooling in record.arrays:
        path = layout.array_path(hook_point, pooling)
        geometry = geometry_of(record, pooling)
        # Caught here, inside ``errors()``, which would report a missing array as a missing bucket.
        with location.errors():
            try:
                array: Any = zarr.open_array(location.zarr(read_only=True), path=path, mode="r")
                metadata = (array.shape[1:], array.shards, array.chunks, str(array.dtype), list(array.attrs["layers"]))
                is_nan_filled = bool(np.isnan(array.fill_value))
            except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
                message = f"the array's metadata cannot be read: {error}."
                yield Problem("damage", "bad_array", f"{path}/zarr.json", message)
                continue
        shard = (geometry.rows_per_block, len(geometry.layers), geometry.d_model)
        chunk = (geometry.rows_per_chunk, 1, geometry.d_model)
        expected = (shard[1:], shard, chunk, "float32", list(geometry.layers))
        if metadata != expected or not is_nan_filled:
            yield Problem("damage", "bad_array", f"{path}/zarr.json", "the array's metadata does not match the run.")
        elif array.shape[0] < num_blocks * geometry.rows_per_block:
            # A late write of a crashed driver may have shortened it. Queries go by the commit records.
            message = f"the array ends at row {array.shape[0]}, so Zarr readers miss the rest; gc --yes lengthens it."
            yield Problem("lag", "short_array", f"{path}/zarr.json", message)


@dataclass(frozen=True, eq=False)
class _StoredIndex:
    rollouts: pa.Table
    chunks: pa.Table


def _index(
    stored: _StoredIndex,
    record: RunRecord,
    commits: list[CommitRecord],
    *,
    committed: set[str],
    planned: dict[str, WorkUnit] | None,
) -> Iterator[Problem]:
    """Compare the index with the commit records.

    Args:
        stored: The stored index.
        record: The run's record.
        commits: The commit records that can be read.
        committed: Ids of all units that have a commit record.
        planned: Planned units by id; None when the list of them cannot be read.
    """
    table, chunks = stored.rollouts, stored.chunks
    expected_lines = index_lines(record, commits)
    indexed = set(table["unit_id"].unique().to_pylist())
    known = {commit.manifest.unit_id for commit in commits}
    lagging = len(known - indexed)
    if lagging:
        message = f"it lacks {lagging} committed units; readers read their commit records."
        yield Problem("lag", "stale_index", layout.INDEX, message)
    shared = pa.array(sorted(known & indexed), pa.string())
    theirs, ours = (
        in_address_order(lines.filter(pc.field("unit_id").isin(shared))) for lines in (table, expected_lines)
    )
    if not theirs.equals(ours):
        yield Problem("damage", "wrong_index", layout.INDEX, _OTHER_LINES)
    strangers = {unit_id for unit_id in indexed - committed if planned is not None and unit_id not in planned}
    if strangers:
        message = f"it has {count_of(len(strangers), 'unit')} that were never planned, such as {min(strangers)}."
        yield Problem("damage", "wrong_index", layout.INDEX, message)
    # A person, or a repair, took the record away so that the unit is done again: the index is only ahead of that.
    withdrawn = indexed - committed - strangers
    if withdrawn:
        message = (
            f"it still has {count_of(len(withdrawn), 'unit')} whose commit record was deleted, such as "
            f"{min(withdrawn)}; the next run or gc --yes removes the lines."
        )
        yield Problem("lag", "index_ahead", layout.INDEX, message)
    order = [("row_block", "ascending"), ("hook_point", "ascending"), ("pooling", "ascending")]
    expected = chunk_table(commit.manifest for commit in commits)
    # Lines of units without a readable commit record were reported above, or with that record.
    unread = table.filter(~pc.field("unit_id").isin(pa.array(sorted(known), pa.string())))
    unread_blocks = {row // record.rows_per_block for row in unread["row"].to_pylist()}
    unread_blocks -= set(expected["row_block"].to_pylist())
    chunks = chunks.filter(~pc.field("row_block").isin(pa.array(sorted(unread_blocks), pa.int64())))
    blocks = pa.array(sorted(set(chunks["row_block"].to_pylist())), pa.int64())
    if not chunks.sort_by(order).equals(expected.filter(pc.field("row_block").isin(blocks)).sort_by(order)):
        yield Problem("damage", "wrong_index", layout.CHUNKS, _OTHER_LINES)
    lacking = len(set(expected["row_block"].to_pylist()) - set(blocks.to_pylist()))
    if lacking:
        yield Problem(
            "lag",
            "stale_index",
            layout.CHUNKS,
            f"it lacks {count_of(lacking, 'unit')}; readers read their commit records.",
        )


def _edits(location: Location, record: RunRecord) -> Iterator[Problem]:
    """Check the table of a run's interventions, without which nobody can tell how its responses were made."""
    stored = record.interventions
    if stored is None:
        return
    try:
        if edits_of(stored, location.read(stored.path), location.url).digest != stored.digest:
            message = "the table does not have the edits of the run's record."
            yield Problem("damage", "other_edits", stored.path, message)
    except StoreError as error:
        yield Problem("damage", error.code, stored.path, error.message)


def _reduction(location: Location) -> Iterator[Problem]:
    try:
        check_reduction(location)
    except StoreError as error:
        path = (error.file or layout.CURRENT_REDUCTION).removeprefix(f"{location.url}/")
        yield Problem("damage", error.code, path, error.message)


def _scores(location: Location) -> Iterator[Problem]:
    yield from _judged(location, layout.SCORES, parse_scores, "scores")


def _verdicts(location: Location) -> Iterator[Problem]:
    yield from _judged(location, layout.VERDICTS, parse_verdicts, "verdicts")


def _judged(location: Location, folder: str, parse: Callable[[bytes], object | None], what: str) -> Iterator[Problem]:
    for path in location.sizes(folder):
        data = location.read(path)
        if data is None:
            continue
        if path.endswith("/judge.json"):
            try:
                parse_judge_record(data, path)
            except StoreError as error:
                yield Problem("damage", error.code, path, "this record of a judge cannot be read.")
        elif parse(data) is None:
            yield Problem("damage", "bad_object", path, f"these {what} cannot be read.")
