"""Commit records: make an attempt count, and read which attempts do. The truth of a run."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256

import pyarrow as pa

from ...jobs.errors import StoreError, UnitError
from ..format import layout
from ..format.records import CommitRecord, Manifest, parse_record
from ..format.rollout_tables import from_parquet
from ..locations.location import Location
from .lease import HeldLease

PARALLEL_READS = 32
"""Small objects asked for at a time."""


def now_iso() -> str:
    """Give the present time as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def committed_units(location: Location) -> set[str]:
    """List the units that are committed, from the records' names alone."""
    return {name.removesuffix(".json") for name in location.names(layout.COMMITS) if name.endswith(".json")}


def commit_unit(location: Location, lease: HeldLease, manifest: Manifest) -> CommitRecord:
    """Make an attempt count, unless another attempt of the unit does already.

    Returns:
        The record that counts; its manifest is another when this attempt stays dead.

    Raises:
        StoreError: This driver no longer holds the run.
        UnitError: What the manifest names is not in the store as this process sees it; nothing is committed.
        TransientError: The store failed; whether the record was written is open, and asking again is safe.
    """
    lease.check()
    for stored in manifest.objects:
        if location.size(stored.path) != stored.num_bytes:
            raise UnitError(
                f"{stored.path}, which {manifest.worker} wrote, is not at {location.url} as seen from here: does every "
                "machine reach the same store?",
                code="not_written",
            )
    record = CommitRecord.of(manifest, generation=lease.generation, committed_at=now_iso())
    path = layout.commit_path(manifest.unit_id)
    if location.create(path, record.to_bytes()):
        return record
    # Refused: by another attempt's record, or by our own from a try whose answer was lost.
    there = location.read(path)
    if there is None:
        raise StoreError("a commit record vanished.", code="bad_record", file=f"{location.url}/{path}")
    return parse_record(CommitRecord, there, f"{location.url}/{path}")


def read_commit(location: Location, unit_id: str) -> CommitRecord:
    """Read a unit's commit record.

    Raises:
        StoreError: There is none, or it is damaged.
    """
    path = layout.commit_path(unit_id)
    data = location.read(path)
    if data is None:
        raise StoreError("the commit record is missing.", code="missing_object", file=f"{location.url}/{path}")
    record = parse_record(CommitRecord, data, f"{location.url}/{path}")
    if record.manifest.unit_id != unit_id:
        raise StoreError(
            f"is the commit record of {record.manifest.unit_id}, under another unit's name.",
            code="wrong_unit",
            file=f"{location.url}/{path}",
            hint="Delete this copy.",
        )
    return record


def read_commits(location: Location, unit_ids: Collection[str]) -> list[CommitRecord]:
    """Read commit records, many at a time, in the order of the ids.

    Raises:
        StoreError: One is missing or damaged.
    """
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return list(pool.map(lambda unit_id: read_commit(location, unit_id), unit_ids))


def read_rollouts(location: Location, commit: CommitRecord, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a committed unit's rollouts, all columns or some, checked against the commit record.

    Raises:
        StoreError: The file is missing, or is not the one that was committed.
    """
    recorded = commit.manifest.texts
    data = location.read(recorded.path)
    if data is None or sha256(data).hexdigest() != recorded.sha256:
        state = "missing" if data is None else "not the one that was committed"
        raise StoreError(
            f"the texts of unit {commit.manifest.unit_id} are {state}.",
            code="bad_object",
            file=f"{location.url}/{recorded.path}",
            hint="Run verify, which names everything that is damaged.",
        )
    try:
        return from_parquet(data, columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"the texts of unit {commit.manifest.unit_id} are no Parquet file: {error}.",
            code="bad_object",
            file=f"{location.url}/{recorded.path}",
        ) from error
