"""What a driver does with a run's store before it works: create or rejoin the run, and lengthen its arrays."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import zarr
from zarr.abc.store import Store

from ...jobs.errors import InputError, StoreError
from ...jobs.files.store_url import is_s3, normal_store_url
from ...jobs.plan import Plan
from ...jobs.specs.differences import first_difference
from ...jobs.work.run_edits import RunEdits
from ..arrays.codec import create_array
from ..arrays.geometry import geometry_of
from ..format import layout
from ..format.records import RunRecord, parse_record
from ..format.stored_edits import edits_of
from ..locations.location import Location
from .additions import grown_meanwhile, with_additions


def read_run_record(location: Location) -> RunRecord | None:
    """Read ``run.json`` and the run's additions; None when there is no run.

    There is none when the location is empty, or a driver crashed before it wrote the record.

    Raises:
        InputError: The location holds other objects and no run.
        StoreError: The record is damaged or of another layout version, or is missing although there are commits; or the
            run is split over two prefixes.
    """
    data = location.read(layout.RUN_RECORD)
    if data is not None:
        record = parse_record(RunRecord, data, f"{location.url}/{layout.RUN_RECORD}")
        _refuse_split(location, record)
        return with_additions(location, record)
    if location.is_empty():
        return None
    if location.names(layout.COMMITS):
        raise StoreError(
            f"the store has commit records but no {layout.RUN_RECORD}: part of it was deleted, or a copy is not "
            "complete.",
            code="half_deleted",
            file=location.url,
            hint="Copy, push or pull it again, or delete the rest.",
        )
    if location.names(layout.DRIVERS):
        # A driver took the lease and crashed before it wrote the record: the run does not exist yet.
        return None
    if location.size(layout.VECTORS_RECORD) is not None:
        raise InputError(
            f"{location.url} holds imported vectors, without a run: it has no rollouts, activations or plan.",
            code="vectors_only",
            field="store.url",
            hint="show, report and export read it.",
        )
    raise InputError(
        f"{location.url} holds something that is not a run: it has no {layout.RUN_RECORD}.",
        code="not_a_run",
        field="store.url",
        hint="Choose an empty location or an existing run.",
    )


def _refuse_split(location: Location, record: RunRecord) -> None:
    """Refuse a run of a version that took an S3 prefix with ``//`` or ``./`` for two: Zarr's objects are elsewhere."""
    url = record.spec.store.url
    # The group at the root is what Zarr writes first, before any unit can be committed.
    if not is_s3(url) or not _has_other_form(url):
        return
    if location.size("zarr.json") is None and location.names(layout.COMMITS):
        raise StoreError(
            f"the run was started as {url!r} by an earlier version, which kept Zarr's metadata and the reductions "
            "under that prefix, and everything else under this one.",
            code="split_store",
            file=location.url,
            hint=f"Copy them here: aws s3 cp --recursive {shlex.quote(url.rstrip('/') + '/')} "
            f"{shlex.quote(location.url + '/')}",
        )


def _has_other_form(url: str) -> bool:
    try:
        return normal_store_url(url) != url.rstrip("/")
    except InputError:
        return False


def refuse_vectors_only(location: Location) -> None:
    """Raise if a store is a copy that has a run's vectors and not its rollouts.

    Raises:
        InputError: It is one.
    """
    if location.size(layout.VECTORS_ONLY) is not None:
        raise InputError(
            f"{location.url} is a copy of a run that has the vectors only: no texts, activations or commit records.",
            code="vectors_only",
            field="store.url",
            hint="show and export read it. persona-atlas push --only all shares a whole run.",
        )


def check_same_run(record: RunRecord, plan: Plan, url: str) -> None:
    """Raise unless a plan is that of the stored run.

    Args:
        record: The stored run's record.
        plan: The plan of the job to run.
        url: The store's URL, for the message.

    Raises:
        InputError: The stored run has another spec, model, catalog or conversations; names the first field that
            differs.
    """
    if record.plan_digest == plan.digest:
        return
    hint = "Give this job its own store.url, or restore the spec."
    difference = first_difference(record.spec, plan.spec)
    other = other_edits(record, plan)
    if other is not None and (difference is None or difference[0] == "interventions"):
        field = "interventions"
        message = f"the run at {url} {other}"
    elif difference:
        field, was, now = difference
        message = f"the run at {url} was begun with {json.dumps(was)}, the spec says {json.dumps(now)}."
    elif record.model.fingerprint != plan.facts.fingerprint:
        field = "model.source"
        message = f"the run at {url} was made with other model files of the same name."
    elif record.model.chat_template_sha256 != plan.facts.chat_template_sha256:
        field = "model.chat_template"
        message = f"the run at {url} was begun with another chat template."
    elif record.of_conversations:
        field = plan.spec.texts_field
        message = f"the run at {url} was made from other {field.partition('.')[0]}."
    else:
        field = "personas.catalog"
        message = f"the run at {url} was made with other prompts or questions of the same names."
        hint = "Give this job its own store.url, or name a directory with the texts of that run as personas.catalog."
    raise InputError(message, code="other_run", field=field, hint=hint)


def other_edits(record: RunRecord, plan: Plan) -> str | None:
    """Say how the edits of a run differ from those of a plan, as a predicate of the run; None where they do not.

    Args:
        record: The run's record.
        plan: The plan of another start.
    """
    was, now = record.interventions, plan.edits
    if (was and was.digest) == (now and now.digest):
        return None
    if was is None or now is None:
        return f"was begun {'with' if was else 'without'} interventions, and the spec has {'some' if now else 'none'}."
    reductions = sorted({entry.reduction for entry in was.entries if entry.reduction})
    is_other = bool(reductions) and reductions != sorted({entry.reduction for entry in now.entries if entry.reduction})
    since = f" Its axis is that of reduction {', '.join(reductions)}: name it as reduction." if is_other else ""
    return (
        f"was begun with other edits than those that the spec resolves to now: {'; '.join(now.lines)}. Another axis, "
        f"floor or strength is another run.{since}"
    )


def read_edits(location: Location, record: RunRecord) -> RunEdits | None:
    """Read the edits of a run, as they were resolved when it was begun; None for a run without interventions.

    Args:
        location: The run's store.
        record: The run's record.

    Raises:
        StoreError: Their table is missing or damaged.
    """
    stored = record.interventions
    return None if stored is None else edits_of(stored, location.read(stored.path), location.url)


def begin_run(location: Location, record: RunRecord, units: bytes, edits: bytes | None = None) -> None:
    """Create a run unless it exists: write its lists of units and edits, then its record. The caller holds the lease.

    Args:
        location: The run's store.
        record: The run's record.
        units: The encoded list of planned units, as ``encode_units`` returns it.
        edits: The encoded table of its edits, as ``stored_edits`` returns it; None for a run without interventions.

    Raises:
        InputError: Another run was created here in the meantime, or this one has grown.
    """
    if location.read(layout.RUN_RECORD) is None:
        # The list first, so that a run that has a record always has its list too.
        location.write(layout.units_path(record.units_sha256), units)
        if record.interventions is not None and edits is not None:
            location.write(record.interventions.path, edits)
        if location.create(layout.RUN_RECORD, record.to_bytes()):
            return
    stored = read_run_record(location)
    if stored is not None and stored.plan_digest != record.plan_digest and record.plan_digest in stored.plan_digests:
        raise grown_meanwhile(location)
    if stored is None or stored.plan_digest != record.plan_digest:
        raise InputError(
            f"another run was started at {location.url} in the meantime.", code="other_run", field="store.url"
        )


def write_skipped(location: Location, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write the list of what was left out of a run's input, as JSON Lines.

    Args:
        location: The run's store.
        lines: One JSON object each.
    """
    location.write(layout.SKIPPED, "".join(json.dumps(line) + "\n" for line in lines).encode())


def reserved_row_blocks(location: Location) -> int:
    """Return how many row blocks the arrays cover: the first block that no driver has ever assigned.

    The longest array counts, for a driver may have crashed while it lengthened them one by one.

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
    """Return an array's number of rows from its ``zarr.json``; 0 when that is missing or unreadable."""
    try:
        return int(json.loads(metadata or b"")["shape"][0])
    except (ValueError, TypeError, KeyError, IndexError, RecursionError):
        return 0


def reserve_rows(location: Location, record: RunRecord, num_row_blocks: int) -> None:
    """Create the activation arrays, or lengthen them, so that they cover a number of row blocks.

    Row blocks without a shard take no space and read as NaN, the fill value. Workers never write array metadata, so
    only the driver that holds the lease changes an array's shape.

    Args:
        location: The run's store.
        record: The run's record.
        num_row_blocks: Row blocks that the arrays must have room for; longer arrays are left as they are.
    """
    with location.errors():
        _reserve(location.zarr(read_only=False), record, num_row_blocks)


def _reserve(store: Store, record: RunRecord, num_row_blocks: int) -> None:
    root = zarr.open_group(store, mode="a")
    for hook_point, pooling in record.arrays:
        path = layout.array_path(hook_point, pooling)
        geometry = geometry_of(record, pooling)
        num_rows = num_row_blocks * geometry.rows_per_block
        if path not in root:
            create_array(
                store,
                path,
                num_rows=num_rows,
                rows_per_block=geometry.rows_per_block,
                layers=geometry.layers,
                d_model=geometry.d_model,
                mantissa_bits=record.spec.store.mantissa_bits,
                rows_per_chunk=geometry.rows_per_chunk,
            )
            continue
        array = root[path]
        if isinstance(array, zarr.Array) and array.shape[0] < num_rows:
            array.resize((num_rows, *array.shape[1:]))
