"""Commit records: one object per unit, which names the attempt that readers see. They are the truth of a run.

An attempt writes its objects first and is committed last, so readers never see half a unit. The record is created with
a conditional write, so a unit is committed once, whatever drivers, retries and lost answers there are. Other objects
that list commits (``index.parquet``, ``chunks.parquet``) are caches of these records.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256

import pyarrow as pa

from ...jobs.errors import StoreError, UnitError
from ..format import layout
from ..format.parquet import from_parquet
from ..format.records import CommitRecord, Manifest, parse_record
from ..locations.location import Location
from .lease import HeldLease
from .run_store import refuse_vectors_only

PARALLEL_READS = 32
"""Small objects that are read at a time: each costs a round trip and few bytes."""

LISTED_PER_REQUEST = 1000
"""Names in a page of a listing, by the S3 API."""


def now_iso() -> str:
    """Return the current time as ISO 8601, in UTC, to the second."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def committed_units(location: Location) -> set[str]:
    """List the ids of the committed units, from the records' names alone: one request per 1000 units on S3."""
    return {name.removesuffix(".json") for name in location.names(layout.COMMITS) if name.endswith(".json")}


def committed_among(location: Location, planned: Sequence[str], unit_ids: Collection[str]) -> set[str]:
    """List which units are committed of a few, without listing the records of all: a request per 1000 planned units.

    Args:
        location: The run's store.
        planned: Ids of all planned units.
        unit_ids: The units in question, some of the planned ones.
    """
    names = sorted(f"{unit_id}.json" for unit_id in planned)
    asked = {f"{unit_id}.json" for unit_id in unit_ids}
    ranges: list[tuple[str, str]] = []
    end = 0
    for place, name in enumerate(names):
        if name not in asked:
            continue
        if place < end:
            ranges[-1] = (ranges[-1][0], name)
        else:
            # Units that follow one another in the plan are often missing together: one range for as many as a page has.
            ranges.append((name, name))
            end = place + LISTED_PER_REQUEST
    found = location.names_between(layout.COMMITS, ranges)
    return {name.removesuffix(".json") for name in found if name in asked}


def commit_unit(location: Location, lease: HeldLease, manifest: Manifest) -> CommitRecord:
    """Commit an attempt, unless another attempt of its unit is committed already.

    Args:
        location: The run's store.
        lease: This driver's lease.
        manifest: What the attempt wrote.

    Returns:
        The unit's commit record. It has another manifest when another attempt was committed first; the objects of this
        attempt are then garbage.

    Raises:
        StoreError: This driver no longer holds the run.
        UnitError: An object of the manifest does not exist, or has another length; nothing is committed.
        TransientError: The store cannot be reached. The record may or may not have been written; calling again is safe.
    """
    lease.check()
    # Read back from here, not trusted: a worker on another machine may have written to a disk or an endpoint of its own
    # under the same URL. Lengths are enough for that, and cost no transfer; ``verify`` compares checksums.
    for stored in manifest.objects:
        if location.size(stored.path) != stored.num_bytes:
            raise UnitError(
                f"{stored.path}, which {manifest.worker} wrote, is not at {location.url} as seen from here: does every "
                "machine use the same store?",
                code="not_written",
            )
    record = CommitRecord.of(manifest, generation=lease.generation, committed_at=now_iso())
    path = layout.commit_path(manifest.unit_id)
    if location.create(path, record.to_bytes()):
        return record
    # The unit has a record: another attempt's, or this one's, written by an earlier try whose answer was lost. Either
    # way the stored record is the answer; that makes a retry of this function safe.
    existing = location.read(path)
    if existing is None:
        raise StoreError(
            "a commit record was deleted while it was read.", code="bad_record", file=f"{location.url}/{path}"
        )
    return parse_record(CommitRecord, existing, f"{location.url}/{path}")


def read_commit(location: Location, unit_id: str) -> CommitRecord:
    """Read a unit's commit record.

    Raises:
        InputError: The store is a copy that has the run's vectors only.
        StoreError: The unit is not committed, or its record is damaged or another unit's.
    """
    path = layout.commit_path(unit_id)
    data = location.read(path)
    if data is None:
        refuse_vectors_only(location)
        raise StoreError(
            "the commit record is missing.",
            code="missing_object",
            file=f"{location.url}/{path}",
            hint="If it was deleted, verify --repair rebuilds the index without its unit, which the next run redoes.",
        )
    record = parse_record(CommitRecord, data, f"{location.url}/{path}")
    if record.manifest.unit_id != unit_id:
        raise StoreError(
            f"this is the commit record of {record.manifest.unit_id}, stored under another unit's name.",
            code="wrong_unit",
            file=f"{location.url}/{path}",
            hint="Delete this copy.",
        )
    return record


def read_commits(location: Location, unit_ids: Collection[str]) -> list[CommitRecord]:
    """Read commit records, ``PARALLEL_READS`` at a time, in the order of the ids.

    Raises:
        StoreError: A record is missing or damaged.
    """
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return list(pool.map(lambda unit_id: read_commit(location, unit_id), unit_ids))


def read_rollouts(location: Location, commit: CommitRecord, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a committed unit's table of rollouts and check its SHA-256 against the commit record.

    Args:
        location: The run's store.
        commit: The unit's commit record.
        columns: Names of the columns to decode; all when None.

    Raises:
        StoreError: The file is missing, or its bytes are not those that were committed.
    """
    recorded = commit.manifest.texts
    data = location.read(recorded.path)
    if data is None or sha256(data).hexdigest() != recorded.sha256:
        state = "missing" if data is None else "not the one that was committed"
        raise StoreError(
            f"the texts of unit {commit.manifest.unit_id} are {state}.",
            code="bad_object",
            file=f"{location.url}/{recorded.path}",
            hint="Run verify, which lists all damage; verify --repair lets the next run make damaged units again.",
        )
    try:
        return from_parquet(data, columns)
    except (pa.ArrowException, OSError) as error:
        raise StoreError(
            f"the texts of unit {commit.manifest.unit_id} are no Parquet file: {error}.",
            code="bad_object",
            file=f"{location.url}/{recorded.path}",
        ) from error
