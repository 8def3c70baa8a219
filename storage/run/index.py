"""``index.parquet``: every committed rollout with its row. It spares a reader one request a unit.

A convenience: commit records are the truth, and whatever the file lacks is read from those. It can only lag, for no
program takes a commit back; when a person does, the next driver drops its lines before it commits anything. Only one
that holds every planned unit is taken at its word; else the commits are listed, for a record may arrive later than
anybody would think.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from ..format import layout
from ..format.records import CommitRecord, RunRecord
from ..format.rollout_tables import in_address_order, index_schema, index_table, read_parquet, to_parquet
from ..locations.location import Location
from .commits import committed_units, read_commits

_PLAN = b"plan_digest"


@dataclass(frozen=True, eq=False)
class Index:
    """What is committed, as one look at the store found it.

    Attributes:
        table: A line a rollout (``index_schema``), in address order.
        committed: Ids of the units in it.
        read_one_by_one: The commit records that the stored index lacked.
        has_dropped: Whether the stored index had units that are not committed any more.
    """

    table: pa.Table
    committed: frozenset[str]
    read_one_by_one: tuple[CommitRecord, ...] = ()
    has_dropped: bool = False


def load_index(location: Location, record: RunRecord, *, ask_commits: bool = False) -> Index:
    """Give the index of all committed units.

    One request when the run is complete and so is the stored index; else the commit records are listed, a thousand a
    request, and those the index lacks are read.

    Args:
        location: The run's store.
        record: Of the run.
        ask_commits: List them in any case: a record may have been deleted by hand, so that its unit is done again.

    Raises:
        StoreError: A commit record is damaged.
    """
    table = read_stored_index(location, record)
    indexed = set(table["unit_id"].unique().to_pylist())
    if len(indexed) == record.num_units and not ask_commits:
        return Index(table, frozenset(indexed))
    committed = committed_units(location)
    has_dropped = not indexed <= committed
    if has_dropped:
        indexed &= committed
        table = table.filter(pc.field("unit_id").isin(pa.array(sorted(indexed), pa.string())))
    missing = sorted(committed - indexed)
    if not missing:
        return Index(table, frozenset(indexed), has_dropped=has_dropped)
    commits = read_commits(location, missing)
    added = index_lines(record, commits)
    table = in_address_order(pa.concat_tables([table, added]))
    return Index(table, frozenset(indexed.union(missing)), tuple(commits), has_dropped)


def index_lines(record: RunRecord, commits: Iterable[CommitRecord]) -> pa.Table:
    """Make the index lines of a run's commits, in no particular order."""
    manifests = (commit.manifest for commit in commits)
    return index_table(manifests, record.rows_per_block, of_conversations=record.of_conversations)


def write_index(location: Location, record: RunRecord, table: pa.Table) -> None:
    """Write ``index.parquet`` anew.

    Args:
        location: The run's store.
        record: Of the run.
        table: Every committed rollout, in address order.
    """
    facts = {_PLAN: record.plan_digest.encode()}
    location.write(layout.INDEX, to_parquet(table.replace_schema_metadata(facts)))


def read_stored_index(location: Location, record: RunRecord) -> pa.Table:
    """Give the stored index; an empty one when there is none that can be used."""
    schema = index_schema(of_conversations=record.of_conversations)
    table = read_parquet(location, layout.INDEX, schema)
    facts = (table.schema.metadata or {}) if table is not None else {}
    if table is None or facts.get(_PLAN) != record.plan_digest.encode():
        return schema.empty_table()
    return table.replace_schema_metadata(None)
