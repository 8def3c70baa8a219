"""``index.parquet``: every committed rollout with its row. It spares a reader one request a unit.

A convenience: commit records are the truth, and whatever the file lacks is read from those. It can only lag, for a
commit is never taken back; whether it does is told by the seal of the driver that wrote it last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa

from . import layout
from .commits import committed_units, read_commits
from .lease import newest_lease
from .location import Location
from .records import CommitRecord, RunRecord
from .texts import in_address_order, index_schema, index_table, read_parquet, to_parquet

_PLAN = b"plan_digest"
_SEALED_BY = b"sealed_by"


@dataclass(frozen=True, eq=False)
class Index:
    """What is committed, as one look at the store found it.

    Attributes:
        table: A line a rollout (``index_schema``), in address order.
        committed: Ids of the units in it.
        read_one_by_one: The commit records that the stored index lacked.
    """

    table: pa.Table
    committed: frozenset[str]
    read_one_by_one: tuple[CommitRecord, ...] = ()


def load_index(location: Location, record: RunRecord) -> Index:
    """Give the index of all committed units.

    Two requests when the run is complete and so is the stored index, two more when a driver that has ended sealed it;
    else the commit records are listed, and those the index lacks are read.

    Raises:
        StoreError: A commit record is damaged.
    """
    table, sealed_by = read_stored_index(location, record)
    indexed = set(table["unit_id"].unique().to_pylist())
    if len(indexed) == record.num_units or (sealed_by is not None and _is_last(location, sealed_by)):
        return Index(table, frozenset(indexed))
    missing = sorted(committed_units(location) - indexed)
    if not missing:
        return Index(table, frozenset(indexed))
    commits = read_commits(location, missing)
    added = index_lines(record, commits)
    table = in_address_order(pa.concat_tables([table, added]))
    return Index(table, frozenset(indexed.union(missing)), tuple(commits))


def index_lines(record: RunRecord, commits: Iterable[CommitRecord]) -> pa.Table:
    """Make the index lines of a run's commits, in no particular order."""
    manifests = (commit.manifest for commit in commits)
    return index_table(manifests, record.rows_per_block, of_conversations=record.of_conversations)


def write_index(location: Location, record: RunRecord, table: pa.Table, sealed_by: int | None) -> None:
    """Write ``index.parquet`` anew.

    Args:
        location: The run's store.
        record: Of the run.
        table: Every committed rollout, in address order.
        sealed_by: Generation of the driver whose last word this is; None while it may commit more.
    """
    facts = {_PLAN: record.plan_digest.encode()}
    if sealed_by is not None:
        facts[_SEALED_BY] = str(sealed_by).encode()
    location.write(layout.INDEX, to_parquet(table.replace_schema_metadata(facts)))


def read_stored_index(location: Location, record: RunRecord) -> tuple[pa.Table, int | None]:
    """Give the stored index and the generation it was sealed by; an empty one when there is none that can be used."""
    schema = index_schema(of_conversations=record.of_conversations)
    table = read_parquet(location, layout.INDEX, schema)
    facts = (table.schema.metadata or {}) if table is not None else {}
    if table is None or facts.get(_PLAN) != record.plan_digest.encode():
        return schema.empty_table(), None
    sealed_by = facts.get(_SEALED_BY)
    return table.replace_schema_metadata(None), int(sealed_by) if sealed_by else None


def _is_last(location: Location, generation: int) -> bool:
    """Whether that driver was the newest and has ended, so that nobody has committed since."""
    lease = newest_lease(location)
    return lease is not None and lease.generation == generation and lease.released
