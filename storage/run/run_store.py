"""The driver's side of a run's store: begin or rejoin a run, make room for its rows."""

from __future__ import annotations

import json

import zarr
from zarr.abc.store import Store

from ...jobs.errors import InputError, StoreError
from ...jobs.plan import Plan
from ..arrays.codec import create_array
from ..arrays.geometry import geometry_of
from ..format import layout
from ..format.records import RunRecord, parse_record
from ..locations.location import Location


def read_run_record(location: Location) -> RunRecord | None:
    """Read what run a store holds; None when the place is empty.

    Raises:
        InputError: The place holds something that is not a run.
        StoreError: The record is damaged, gone from a store that has commits, or of another layout version.
    """
    data = location.read(layout.RUN_RECORD)
    if data is not None:
        return parse_record(RunRecord, data, f"{location.url}/{layout.RUN_RECORD}")
    if location.is_empty():
        return None
    if location.names(layout.COMMITS):
        raise StoreError(
            f"the store has commit records but no {layout.RUN_RECORD}: part of it was deleted.",
            code="half_deleted",
            file=location.url,
            hint="Restore it from a copy, or delete the rest.",
        )
    if location.names(layout.DRIVERS):
        # A driver took its lease and died before it wrote what the run is.
        return None
    raise InputError(
        f"{location.url} holds something that is not a run: it has no {layout.RUN_RECORD}.",
        code="not_a_run",
        field="store.url",
        hint="Choose an empty place or an existing run.",
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
    elif record.of_conversations:
        field = "conversations.source"
        message = f"the run at {url} was made of other conversations."
    else:
        field = "personas.catalog"
        message = f"the run at {url} was made with other prompts or questions of those names."
    raise InputError(
        message, code="other_run", field=field, hint="Give this job its own store.url, or restore the spec."
    )


def _first_difference(a: object, b: object, path: str = "") -> tuple[str, object, object] | None:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            found = _first_difference(a.get(key), b.get(key), f"{path}.{key}" if path else str(key))
            if found:
                return found
        return None
    return None if a == b else (path, a, b)


def begin_run(location: Location, record: RunRecord, units: bytes) -> None:
    """Write the run's list of units and its record if it has none. The caller holds the lease.

    Args:
        location: The run's store.
        record: What the run is.
        units: The list of its units, as ``encode_units`` gives it.

    Raises:
        InputError: Another run got there first.
    """
    if location.read(layout.RUN_RECORD) is None:
        # Before the record that names its checksum: a run that exists has its list.
        location.write(layout.units_path(record.units_sha256), units)
        if location.create(layout.RUN_RECORD, record.to_bytes()):
            return
    there = read_run_record(location)
    if there is None or there.plan_digest != record.plan_digest:
        raise InputError(f"another run was begun at {location.url} meanwhile.", code="other_run", field="store.url")


def reserved_row_blocks(location: Location) -> int:
    """Give how many row blocks drivers have made room for so far, by the arrays themselves.

    Raises:
        StoreError: The run's record is damaged.
    """
    data = location.read(layout.RUN_RECORD)
    if data is None:
        return 0
    record = parse_record(RunRecord, data, f"{location.url}/{layout.RUN_RECORD}")
    return max(
        _num_rows(location.read(f"{layout.array_path(point, pooling)}/zarr.json"))
        // geometry_of(record, pooling).rows_per_block
        for point, pooling in record.arrays
    )


def _num_rows(metadata: bytes | None) -> int:
    """Take an array's length out of its metadata; 0 where that says none."""
    try:
        return int(json.loads(metadata or b"")["shape"][0])
    except (ValueError, TypeError, KeyError, IndexError):
        return 0


def reserve_rows(location: Location, record: RunRecord, num_row_blocks: int) -> None:
    """Make the activation arrays, or lengthen them, so that they cover a number of row blocks.

    Empty blocks take no space. The caller holds the lease; nobody else writes the arrays' metadata.
    """
    with location.errors():
        _reserve(location.zarr(read_only=False), record, num_row_blocks)


def _reserve(store: Store, record: RunRecord, num_row_blocks: int) -> None:
    root = zarr.open_group(store, mode="a")
    for hook_point, pooling in record.arrays:
        path = layout.array_path(hook_point, pooling)
        cut = geometry_of(record, pooling)
        num_rows = num_row_blocks * cut.rows_per_block
        if path not in root:
            create_array(
                store,
                path,
                num_rows=num_rows,
                rows_per_block=cut.rows_per_block,
                layers=cut.layers,
                d_model=cut.d_model,
                mantissa_bits=record.spec.store.mantissa_bits,
                rows_per_chunk=cut.rows_per_chunk,
            )
            continue
        array = root[path]
        if isinstance(array, zarr.Array) and array.shape[0] < num_rows:
            array.resize((num_rows, *array.shape[1:]))
