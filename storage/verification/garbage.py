"""Objects of attempts that do not count: find them, and delete those that no commit can ever name.

An attempt leaves objects behind when its worker or driver dies, or another attempt of its unit was quicker. They cost
space and nothing else. While a unit is not committed, a driver that was stalled might still commit one of its
attempts, so those stay; once a unit is committed, or the run complete, its other attempts are dead for good.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ..format import layout
from ..format.records import Manifest, RunRecord
from ..locations.location import Location
from ..run.commits import committed_units, read_commits
from ..run.index_keeper import rebuild_index
from ..run.lease import acquire
from ..run.run_store import reserve_rows

_PARTS = (".part", ".partial")
"""How a directory's objects end while they are written, ours and Zarr's; a crash leaves one behind."""


@dataclass(frozen=True, slots=True)
class GarbageObject:
    """An object that no commit names.

    Attributes:
        path: In the store.
        num_bytes: It takes.
        unit_id: Whose attempt wrote it; None when that cannot be told.
        is_removable: Whether no commit can ever name it.
    """

    path: str
    num_bytes: int
    unit_id: str | None
    is_removable: bool


def find_garbage(location: Location, live: Iterable[Manifest], *, is_complete: bool = False) -> list[GarbageObject]:
    """Find the objects of attempts that do not count.

    Args:
        location: The run's store.
        live: The manifests of every commit.
        is_complete: Whether every planned unit is committed.

    Returns:
        Sorted by path.
    """
    live = list(live)
    named = {stored.path for manifest in live for stored in manifest.objects}
    committed = {manifest.unit_id for manifest in live}
    everything = location.sizes("")
    texts = {path for path in everything if path.startswith(f"{layout.ROLLOUTS}/")}
    blocks = {path for path in everything if path.startswith(f"{layout.ACTIVATIONS}/")}
    parts = {path for path in everything if path.endswith(_PARTS)}
    owner: dict[int | None, str | None] = {row_block: unit_id for unit_id, row_block in map(_texts_name, texts)}
    dead: list[GarbageObject] = []
    for path in sorted(texts | blocks | parts):
        is_metadata = path.endswith("zarr.json")
        if path in named or is_metadata:
            continue
        unit_id = _texts_name(path)[0] if path in texts else owner.get(_row_block(path))
        is_removable = is_complete or unit_id in committed or path in parts
        dead.append(GarbageObject(path, everything[path], unit_id, is_removable))
    return dead


def remove_garbage(location: Location, record: RunRecord, dead: Iterable[GarbageObject]) -> int:
    """Delete the removable of these, and put index and lengths of arrays in order. Takes the run's lease meanwhile.

    Args:
        location: The run's store.
        record: Of the run.
        dead: As ``find_dead`` gave them; looked at again under the lease.

    Returns:
        How many were deleted.

    Raises:
        InputError: A driver works on the run.
        StoreError: A commit record is damaged; nothing is deleted.
    """
    wanted = {thing.path for thing in dead}
    with acquire(location, 0) as lease:
        commits = read_commits(location, sorted(committed_units(location)))
        manifests = [commit.manifest for commit in commits]
        again = find_garbage(location, manifests, is_complete=len(commits) == record.num_units)
        paths = [thing.path for thing in again if thing.is_removable and thing.path in wanted]
        lease.check()
        location.delete(paths)
        # Both are for readers' convenience, and either may have been written over by a driver long dead.
        reserve_rows(location, record, max((manifest.row_block + 1 for manifest in manifests), default=0))
        rebuild_index(location, record, commits)
    return len(paths)


def _texts_name(path: str) -> tuple[str | None, int | None]:
    """Take a texts' path apart: ``rollouts/<unit>-<row_block>.parquet``."""
    unit_id, _, number = path.removeprefix(f"{layout.ROLLOUTS}/").removesuffix(".parquet").rpartition("-")
    return (unit_id, int(number)) if unit_id and number.isdecimal() else (None, None)


def _row_block(path: str) -> int | None:
    """Take the row block out of ``activations/<hook>/<pooling>/c/<row_block>/0/0``."""
    parts = path.split("/")
    return int(parts[4]) if len(parts) > 4 and parts[4].isdecimal() else None
