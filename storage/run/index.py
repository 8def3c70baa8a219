"""``index.parquet``: one line per committed rollout, with its row. Saves readers one request per unit.

The index is a cache of the commit records, so it can lag behind them. It is ahead of them only where a person deletes a
record, to have a unit done again: the next driver removes its lines before it commits anything. ``repair``, which
withdraws records of damaged units, rewrites the index itself.

A reader can tell that the index does not lag only when it lists every planned unit. Otherwise it reads the one object
in which the driver has collected the commit records since (``recent``). While that driver works, the two are all that
is committed, but for the last two seconds. After it, the records that neither has are listed, a request per 1000
planned units or fewer: the driver may have been killed in those seconds, and no driver can declare an incomplete index
up to date, because the PUT of a commit record may time out at the driver and still reach the store later, even after
the driver's lease has ended. Of a small run the records are listed in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
import pyarrow.compute as pc

from ...jobs.errors import StoreError
from ..format import layout
from ..format.parquet import to_parquet
from ..format.planned_units import read_unit_ids
from ..format.records import CommitRecord, RunRecord
from ..format.rollout_tables import index_schema, index_table, merged_in_address_order, read_parquet
from ..locations.location import Location
from .commits import committed_among, committed_units, read_commits
from .lease import live_driver
from .recent import read_recent

_PLAN = b"plan_digest"

_LISTED_AT_ONCE = 2000
"""Planned units up to which all commit records are listed, which takes two requests."""


@dataclass(frozen=True, eq=False)
class Index:
    """The committed rollouts of a run at one point in time. Units that the stored index lacks are read on first use.

    Attributes:
        location: The run's store.
        record: The run's record.
        stored: The lines of the stored index, in address order, without those of units that are not committed any more.
        missing: Ids of the committed units that the stored index lacks, sorted.
        committed: Ids of all committed units.
        has_removed_units: Whether the stored index listed units whose commit records do not exist any more.
        recent: Commit records of missing units that the driver has collected, where they were read already.
    """

    location: Location
    record: RunRecord
    stored: pa.Table
    missing: tuple[str, ...]
    committed: frozenset[str]
    has_removed_units: bool = False
    recent: tuple[CommitRecord, ...] | None = None

    @cached_property
    def missing_commits(self) -> tuple[CommitRecord, ...]:
        """The commit records of the units that the stored index lacks.

        Raises:
            StoreError: A commit record is damaged.
        """
        if not self.missing:
            return ()
        recent = self.recent
        if recent is None:
            recent = read_recent(self.location, self.record, self.missing) or ()
        known = {commit.manifest.unit_id: commit for commit in recent}
        others = [unit_id for unit_id in self.missing if unit_id not in known]
        known |= zip(others, read_commits(self.location, others), strict=True)
        return tuple(known[unit_id] for unit_id in self.missing)

    @cached_property
    def table(self) -> pa.Table:
        """One line per committed rollout (``index_schema``), in address order.

        Raises:
            StoreError: A commit record that the stored index lacks is damaged.
        """
        if not self.missing:
            return self.stored
        return merged_in_address_order(self.stored, index_lines(self.record, self.missing_commits))


def load_index(location: Location, record: RunRecord, *, list_commits: bool = False) -> Index:
    """Load the index and find out which committed units it lacks.

    Takes one request when the stored index lists every planned unit. Otherwise the commit records are listed, 1000 per
    request: all of a small run; of a large one on which no driver works, those that neither the index nor the driver's
    recent ones have, and what is between them.

    Args:
        location: The run's store.
        record: The run's record.
        list_commits: Whether to list all commit records even if the index is complete. A driver does: a person may have
            deleted a record so that its unit is done again, and only the list shows that.
    """
    table = read_stored_index(location, record)
    indexed = set(_distinct(table["unit_id"]))
    if not list_commits:
        if len(indexed) == record.num_units:
            return Index(location, record, table, (), frozenset(indexed))
        if record.num_units > _LISTED_AT_ONCE and (planned := read_unit_ids(location, record)) is not None:
            return _load_large(location, record, table, planned, indexed)
    committed = committed_units(location)
    has_removed_units = not indexed <= committed
    if has_removed_units:
        indexed &= committed
        table = table.filter(pc.field("unit_id").isin(pa.array(sorted(indexed), pa.string())))
    missing = tuple(sorted(committed - indexed))
    return Index(location, record, table, missing, frozenset(committed), has_removed_units)


def _load_large(
    location: Location, record: RunRecord, table: pa.Table, planned: Sequence[str], indexed: set[str]
) -> Index:
    """Complete the index of a large run, whose commit records take long to list."""
    lacking = set(planned) - indexed
    recent = read_recent(location, record, lacking)
    found = {commit.manifest.unit_id for commit in recent or ()}
    if recent is None or not _has_live_driver(location):
        found |= committed_among(location, planned, lacking - found)
    return Index(location, record, table, tuple(sorted(found)), frozenset(indexed | found), recent=tuple(recent or ()))


def _has_live_driver(location: Location) -> bool:
    try:
        return live_driver(location) is not None
    except StoreError:
        return False


def _distinct(column: pa.ChunkedArray) -> list[str]:
    return column.unique().to_pylist()


def index_lines(record: RunRecord, commits: Iterable[CommitRecord]) -> pa.Table:
    """Return the index lines of commit records, in the order of the records."""
    manifests = (commit.manifest for commit in commits)
    return index_table(
        manifests,
        record.rows_per_block,
        of_conversations=record.of_conversations,
        is_served=record.is_served,
        is_edited=record.is_edited,
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
    """Read the stored index; an empty table when it is missing, damaged or of another run.

    One that was written before an addition is behind, and no more than that.
    """
    schema = index_schema(
        of_conversations=record.of_conversations, is_served=record.is_served, is_edited=record.is_edited
    )
    table = read_parquet(location, layout.INDEX, schema)
    metadata = (table.schema.metadata or {}) if table is not None else {}
    if table is None or metadata.get(_PLAN, b"").decode(errors="replace") not in record.plan_digests:
        return schema.empty_table()
    return table.replace_schema_metadata(None)
