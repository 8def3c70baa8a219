"""The driver's side of a run's store: begin or rejoin a run, commit units, refresh the index."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime

import pyarrow as pa
import zarr
from zarr.abc.store import Store

from ..jobs.errors import InputError, StoreError, UnitError
from ..jobs.plan import Plan
from . import layout
from .codec import create_array
from .index import read_index
from .lease import HeldLease
from .location import Location
from .records import CommitRecord, Manifest, RunRecord, parse_record
from .texts import to_parquet


def now_iso() -> str:
    """Give the present time as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")


def read_run_record(location: Location) -> RunRecord | None:
    """Read what run a store holds; None when the place is empty.

    Raises:
        InputError: The place holds something that is not a run.
        StoreError: The record is damaged or of a newer layout.
    """
    data = location.read(layout.RUN_RECORD)
    if data is not None:
        return parse_record(RunRecord, data, f"{location.url}/{layout.RUN_RECORD}")
    if location.is_empty():
        return None
    if location.names(layout.DRIVERS):
        # A driver took its lease and died before it wrote what the run is.
        return None
    raise InputError(
        f"{location.url} holds something that is not a run: it has no {layout.RUN_RECORD}.",
        code="not_a_run",
        field="store.url",
        mend="Choose an empty place or an existing run.",
    )


def check_same_run(record: RunRecord, plan: Plan, url: str) -> None:
    """Refuse to mix two jobs in one store.

    Raises:
        InputError: The stored run has another spec, model or catalog; names the first field that differs.
    """
    if record.plan_digest == plan.digest:
        return
    stored, asked = record.spec.identity(), plan.spec.identity()
    difference = _first_difference(stored, asked)
    if difference:
        field, was, now = difference
        message = f"the run at {url} was begun with {json.dumps(was)}, the spec says {json.dumps(now)}."
    elif record.model.fingerprint != plan.facts.fingerprint:
        field = "model.source"
        message = f"the run at {url} was made with another model's files of that name."
    else:
        field = "personas.catalog"
        message = f"the run at {url} was made with other prompts or questions of those names."
    raise InputError(
        message, code="other_run", field=field, mend="Give this job its own store.url, or restore the spec."
    )


def _first_difference(a: object, b: object, path: str = "") -> tuple[str, object, object] | None:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            found = _first_difference(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if a == b else (path, a, b)


def begin_run(location: Location, record: RunRecord) -> None:
    """Write the run's record if it has none. The caller holds the lease.

    Raises:
        InputError: Another run got there first.
    """
    if location.create(layout.RUN_RECORD, record.to_bytes()):
        return
    there = read_run_record(location)
    if there is None or there.plan_digest != record.plan_digest:
        raise InputError(f"another run was begun at {location.url} meanwhile.", code="other_run", field="store.url")


def reserve_rows(location: Location, record: RunRecord, num_row_blocks: int) -> None:
    """Make the activation arrays, or lengthen them, so that they cover a number of row blocks.

    Empty blocks take no space. The caller holds the lease; nobody else writes the arrays' metadata.
    """
    with location.errors():
        _reserve(location.zarr(read_only=False), record, num_row_blocks * record.rows_per_block)


def _reserve(store: Store, record: RunRecord, num_rows: int) -> None:
    root = zarr.open_group(store, mode="a")
    for hook_point, pooling in record.arrays:
        path = layout.array_path(hook_point, pooling)
        if path not in root:
            create_array(
                store,
                path,
                num_rows=num_rows,
                rows_per_block=record.rows_per_block,
                layers=record.layers,
                d_model=record.model.d_model,
                mantissa_bits=record.spec.store.mantissa_bits,
            )
            continue
        array = root[path]
        if isinstance(array, zarr.Array) and array.shape[0] < num_rows:
            array.resize((num_rows, *array.shape[1:]))


def committed_units(location: Location) -> set[str]:
    """List the units that are committed, from the records' names alone."""
    return {name.removesuffix(".json") for name in location.names(layout.COMMITS)}


def commit_unit(location: Location, lease: HeldLease, manifest: Manifest) -> bool:
    """Make an attempt count.

    Returns:
        False when the unit was committed already; then this attempt stays dead.

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
    record = CommitRecord(manifest=manifest, generation=lease.generation, committed_at=now_iso())
    path = layout.commit_path(manifest.unit_id)
    if location.create(path, record.to_bytes()):
        return True
    # Refused: by another attempt's record, or by our own from a try whose answer was lost.
    there = location.read(path)
    if there is None:
        raise StoreError("a commit record vanished.", code="bad_record", file=f"{location.url}/{path}")
    return parse_record(CommitRecord, there, f"{location.url}/{path}").manifest == manifest


def refresh_index(location: Location, committed: Iterable[str]) -> pa.Table:
    """Bring ``index.parquet`` up to all committed units and give it."""
    units = set(committed)
    table, added = read_index(location, units)
    if added:
        location.write(layout.INDEX, to_parquet(table))
    return table
