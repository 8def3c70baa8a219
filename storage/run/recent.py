"""``recent/<generation>.parquet``: the commit records that a driver has written since the index, in one object.

The index is written every half minute or less often, so a reader of a running store lacks hundreds of units, each of
which would cost it a request. The driver collects their records here every few seconds. A cache like the index, and
trusted as it is: a driver adds a unit once its record is written, and readers take only what the driver of the newest
lease has written. Whoever withdraws a record (``repair``) takes a newer lease first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import StoreError
from ..format import layout
from ..format.parquet import to_parquet
from ..format.records import CommitRecord, RunRecord, parse_record
from ..format.rollout_tables import read_parquet
from ..locations.location import Location
from .lease import newest_generation

_PLAN = b"plan_digest"

_SCHEMA = pa.schema([("unit_id", pa.string()), ("record", pa.binary())])
"""A line for each unit; ``record`` has the bytes of its commit record."""


def write_recent(location: Location, record: RunRecord, generation: int, commits: Iterable[CommitRecord]) -> int:
    """Write the commit records that the index may lack, and replace those that this driver wrote before.

    Args:
        location: The run's store.
        record: The run's record.
        generation: Number of the driver's lease.
        commits: The commit records.

    Returns:
        The length of the object in bytes.

    Raises:
        TransientError: The store cannot be reached.
    """
    lines = [{"unit_id": commit.manifest.unit_id, "record": commit.to_bytes()} for commit in commits]
    schema = _SCHEMA.with_metadata({_PLAN: record.plan_digest.encode()})
    data = to_parquet(pa.Table.from_pylist(lines, schema=schema))
    location.write(layout.recent_path(generation), data)
    return len(data)


def forget_recent(location: Location, record: RunRecord, generation: int) -> None:
    """Empty what an earlier driver of the same number wrote, whose lease was deleted; does nothing where there is none.

    Readers would take that driver's attempts for those of the new one. The object is written empty and not deleted, so
    that a run needs no right to delete.

    Args:
        location: The run's store.
        record: The run's record.
        generation: Number of the new driver's lease.

    Raises:
        TransientError: The store cannot be reached.
    """
    if location.size(layout.recent_path(generation)) is not None:
        write_recent(location, record, generation, [])


def read_recent(location: Location, record: RunRecord, unit_ids: Collection[str]) -> list[CommitRecord] | None:
    """Read those commit records of some units that the newest driver has collected; damaged ones are left out.

    Args:
        location: The run's store.
        record: The run's record.
        unit_ids: Units that the index lacks.

    Returns:
        The records; None where that driver has not collected any yet, or what there is cannot be read.
    """
    generation = newest_generation(location)
    path = layout.recent_path(generation)
    table = read_parquet(location, path, _SCHEMA) if generation else None
    metadata = (table.schema.metadata or {}) if table is not None else {}
    if table is None or metadata.get(_PLAN, b"").decode(errors="replace") not in record.plan_digests:
        return None
    chosen = table.filter(pc.field("unit_id").isin(pa.array(sorted(unit_ids), pa.string())))
    commits: dict[str, CommitRecord] = {}
    for unit_id, data in zip(chosen["unit_id"].to_pylist(), chosen["record"].to_pylist(), strict=True):
        try:
            commit = parse_record(CommitRecord, data, f"{location.url}/{path}")
        except StoreError:
            # A damaged cache is as good as none: the record itself is read.
            continue
        if commit.manifest.unit_id == unit_id:
            commits[unit_id] = commit
    return list(commits.values())
