"""The index: every committed rollout with its row. A convenience; where it lags, the commit records are read."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.compute as pc

from ..jobs.errors import StoreError
from . import layout
from .location import Location
from .records import CommitRecord, parse_record
from .texts import ADDRESS_ORDER, INDEX_SCHEMA, from_parquet

_PARALLEL_READS = 16


def read_index(location: Location, committed: Collection[str]) -> tuple[pa.Table, int]:
    """Give the index of the committed units, in address order.

    Args:
        location: The run's store.
        committed: Ids of the units that count; lines of others are left out.

    Returns:
        The table (``INDEX_SCHEMA``), and how many units the stored index lacked and were read one by one.

    Raises:
        StoreError: A commit record or a file it names is missing or damaged.
    """
    stored = location.read(layout.INDEX)
    table = INDEX_SCHEMA.empty_table()
    if stored is not None:
        try:
            table = from_parquet(stored).select(INDEX_SCHEMA.names).cast(INDEX_SCHEMA)
        except (pa.ArrowException, OSError, KeyError):
            # Damaged: as good as absent, the commits have it all.
            table = INDEX_SCHEMA.empty_table()
        table = table.filter(pc.field("unit_id").isin(pa.array(sorted(committed), pa.string())))
    indexed = set(table["unit_id"].unique().to_pylist())
    missing = sorted(set(committed) - indexed)
    if missing:
        with ThreadPoolExecutor(_PARALLEL_READS) as pool:
            units = list(pool.map(lambda unit: _read_unit(location, unit), missing))
        table = pa.concat_tables([table, *units])
    return table.sort_by(ADDRESS_ORDER), len(missing)


def read_commit(location: Location, unit_id: str) -> CommitRecord:
    """Read a unit's commit record.

    Raises:
        StoreError: There is none, or it is damaged.
    """
    path = layout.commit_path(unit_id)
    data = location.read(path)
    if data is None:
        raise StoreError("the commit record is missing.", code="missing_object", file=f"{location.url}/{path}")
    return parse_record(CommitRecord, data, f"{location.url}/{path}")


def read_rollouts(location: Location, unit_id: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a committed unit's rollouts, all columns or some, checked against the commit record.

    Raises:
        StoreError: The file is missing, or is not the one that was committed.
    """
    from hashlib import sha256

    recorded = read_commit(location, unit_id).manifest.objects[-1]
    data = location.read(recorded.path)
    if data is None or sha256(data).hexdigest() != recorded.sha256:
        state = "missing" if data is None else "not the one that was committed"
        raise StoreError(
            f"the texts of unit {unit_id} are {state}.", code="bad_object", file=f"{location.url}/{recorded.path}"
        )
    return from_parquet(data, columns)


def _read_unit(location: Location, unit_id: str) -> pa.Table:
    return read_rollouts(location, unit_id, INDEX_SCHEMA.names)
