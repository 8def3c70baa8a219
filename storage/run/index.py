"""``index.parquet``: one line per committed rollout, with its row. Saves readers one request per unit.

The index is a cache of the commit records, so it can lag behind them. It is ahead of them only where a person deletes a
record, to have a unit done again: the next driver removes its lines before it commits anything. ``repair``, which
withdraws records of damaged units, rewrites the index itself.

A reader can tell that the index does not lag only when it lists every planned unit. Otherwise it lists the commit
records, one request per 1000, and reads those that the index lacks. No driver can declare an incomplete index up to
date: the PUT of a commit record may time out at the driver and still reach the store later, even after the driver's
lease has ended.
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
    """The committed rollouts of a run at one point in time.

    Attributes:
        table: One line per rollout (``index_schema``), in address order.
        committed: Ids of the units in ``table``.
        missing_commits: The commit records of the units that the stored index lacked.
        has_removed_units: Whether the stored index listed units whose commit records do not exist any more.
    """

    table: pa.Table
    committed: frozenset[str]
    missing_commits: tuple[CommitRecord, ...] = ()
    has_removed_units: bool = False


def load_index(location: Location, record: RunRecord, *, list_commits: bool = False) -> Index:
    """Load the index and complete it from the commit records.

    Takes one request when the stored index lists every planned unit. Otherwise the commit records are listed, 1000 per
    request, and those that the index lacks are read.

    Args:
        location: The run's store.
        record: The run's record.
        list_commits: Whether to list the commit records even if the index is complete. A driver does: a person may have
            deleted a record so that its unit is done again, and only the list shows that.

    Raises:
        StoreError: A commit record is damaged.
    """
    table = read_stored_index(location, record)
    indexed = set(table["unit_id"].unique().to_pylist())
    if len(indexed) == record.num_units and not list_commits:
        return Index(table, frozenset(indexed))
    committed = committed_units(location)
    has_removed_units = not indexed <= committed
    if has_removed_units:
        indexed &= committed
        table = table.filter(pc.field("unit_id").isin(pa.array(sorted(indexed), pa.string())))
    missing = sorted(committed - indexed)
    if not missing:
        return Index(table, frozenset(indexed), has_removed_units=has_removed_units)
    commits = read_commits(location, missing)
    added = index_lines(record, commits)
    table = in_address_order(pa.concat_tables([table, added]))
    return Index(table, frozenset(indexed.union(missing)), tuple(commits), has_removed_units)


def index_lines(record: RunRecord, commits: Iterable[CommitRecord]) -> pa.Table:
    """Return the index lines of commit records, in the order of the records."""
    manifests = (commit.manifest for commit in commits)
    return index_table(
        manifests,
        record.rows_per_block,
        of_conversations=record.of_conversations,
        is_served=record.is_served,
    )


def write_index(location: Location, record: RunRecord, table: pa.Table) -> None:
    """Write ``index.parquet`` and replace the stored one.

    Args:
        location: The run's store.
        record: The run's record.
        table: Every committed rollout, in address order.
    """
    # The digest of the plan goes with it: an index that was copied in from another run must not be believed.
    metadata = {_PLAN: record.plan_digest.encode()}
    location.write(layout.INDEX, to_parquet(table.replace_schema_metadata(metadata)))


def read_stored_index(location: Location, record: RunRecord) -> pa.Table:
    """Read the stored index; an empty table when it is missing, damaged or of another plan."""
    schema = index_schema(of_conversations=record.of_conversations, is_served=record.is_served)
    table = read_parquet(location, layout.INDEX, schema)
    metadata = (table.schema.metadata or {}) if table is not None else {}
    if table is None or metadata.get(_PLAN) != record.plan_digest.encode():
        return schema.empty_table()
    return table.replace_schema_metadata(None)
