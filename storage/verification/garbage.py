"""Garbage: objects of uncommitted attempts. Find it, and delete what can never be committed.

An attempt leaves objects behind when its worker or driver crashes, or when another attempt of its unit is committed
first. Garbage takes space and does no other harm. While a unit has no commit record, a stalled driver might still
commit one of its attempts, so those objects must stay; once the unit is committed, or the run is complete, its other
attempts can never be committed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...jobs.errors import StoreError
from ..derived.reductions import current_reduction_id, sums_in_use
from ..format import layout
from ..format.records import Manifest, RunRecord
from ..locations.location import Location
from ..run.commits import committed_units, read_commits
from ..run.index_keeper import rebuild_index
from ..run.lease import acquire
from ..run.run_store import read_run_record, reserve_rows

_TEMPORARY_SUFFIXES = (".part", ".partial")
"""Suffixes of temporary files in a directory store, this package's and Zarr's; a crash leaves one behind."""


@dataclass(frozen=True, slots=True)
class GarbageObject:
    """An object that no commit record names, or a partial result that no reduction needs.

    Attributes:
        path: Path in the store.
        num_bytes: Length in bytes.
        unit_id: Unit of the attempt that wrote it; None when unknown.
        is_removable: Whether no commit record can ever name it.
    """

    path: str
    num_bytes: int
    unit_id: str | None
    is_removable: bool


def find_garbage(
    location: Location, manifests: Iterable[Manifest], *, is_complete: bool = False
) -> list[GarbageObject]:
    """Find the objects of uncommitted attempts, and the partial results of earlier reductions.

    Args:
        location: The run's store.
        manifests: The manifests of all commit records.
        is_complete: Whether every planned unit is committed.

    Returns:
        Garbage objects, sorted by path.
    """
    manifests = list(manifests)
    named = {stored.path for manifest in manifests for stored in manifest.objects}
    committed = {manifest.unit_id for manifest in manifests}
    everything = location.sizes("")
    texts = {path for path in everything if path.startswith(f"{layout.ROLLOUTS}/")}
    shards = {path for path in everything if path.startswith(f"{layout.ACTIVATIONS}/")}
    temporary = {path for path in everything if path.endswith(_TEMPORARY_SUFFIXES)}
    # A shard's path has the row block and not the unit; the attempt's table of rollouts, written before, has both.
    owner: dict[int | None, str | None] = {
        row_block: unit_id for unit_id, row_block in map(_parse_rollouts_path, texts)
    }
    garbage: list[GarbageObject] = []
    for path in sorted(texts | shards | temporary):
        is_metadata = path.endswith("zarr.json")
        if path in named or is_metadata:
            continue
        unit_id = _parse_rollouts_path(path)[0] if path in texts else owner.get(_row_block(path))
        is_removable = is_complete or unit_id in committed or path in temporary
        garbage.append(GarbageObject(path, everything[path], unit_id, is_removable))
    unused = _unused_partials(location, everything) - temporary
    garbage += [GarbageObject(path, everything[path], None, True) for path in unused]
    return sorted(garbage, key=lambda found: found.path)


def _unused_partials(location: Location, paths: Iterable[str]) -> set[str]:
    """Return the partial results that the current reduction was not made of; none while there is no reduction."""
    try:
        if current_reduction_id(location) is None:
            return set()
        in_use = sums_in_use(location)
    except StoreError:
        # The pointer is damaged; ``verify`` says so.
        return set()
    folders = (f"{layout.SUMS}/", f"{layout.PROJECTIONS}/")
    return {path for path in paths if path.startswith(folders)} - in_use


def remove_garbage(location: Location, record: RunRecord, garbage: Iterable[GarbageObject]) -> int:
    """Delete removable garbage, and bring index and array lengths up to date, under the run's lease.

    Args:
        location: The run's store.
        record: The run's record.
        garbage: Objects to delete, from ``find_garbage``. Each is checked again under the lease.

    Returns:
        Number of deleted objects.

    Raises:
        InputError: A driver works on the run.
        StoreError: A commit record is damaged; nothing is deleted.
    """
    wanted = {garbage_object.path for garbage_object in garbage}
    with acquire(location, 0) as lease:
        # The run may have grown since it was opened, and only under the lease it stays as it is.
        record = read_run_record(location) or record
        commits = read_commits(location, sorted(committed_units(location)))
        manifests = [commit.manifest for commit in commits]
        again = find_garbage(location, manifests, is_complete=len(commits) == record.num_units)
        paths = [found.path for found in again if found.is_removable and found.path in wanted]
        lease.check()
        location.delete(paths)
        # A late write of a crashed driver may have replaced either by an older state. Readers of this package do not
        # mind, for they go by the commit records; other Zarr readers see an array that is too short.
        reserve_rows(location, record, max((manifest.row_block + 1 for manifest in manifests), default=0))
        rebuild_index(location, record, commits)
    return len(paths)


def _parse_rollouts_path(path: str) -> tuple[str | None, int | None]:
    """Parse ``rollouts/<unit>-<row_block>.parquet``; (None, None) for other paths."""
    unit_id, _, number = path.removeprefix(f"{layout.ROLLOUTS}/").removesuffix(".parquet").rpartition("-")
    return (unit_id, int(number)) if unit_id and number.isdecimal() else (None, None)


def _row_block(path: str) -> int | None:
    """Parse the row block of ``activations/<hook_point>/<pooling>/c/<row_block>/0/0``; None for other paths."""
    parts = path.split("/")
    return int(parts[4]) if len(parts) > 4 and parts[4].isdecimal() else None
