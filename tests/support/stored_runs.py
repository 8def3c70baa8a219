"""Small runs with FakeEngine's vectors, written to any store as a driver and its workers do."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable
from hashlib import sha256

from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.arrays.unit_writer import write_unit_result
from persona_atlas.storage.format.planned_units import encode_units
from persona_atlas.storage.format.records import CommitRecord, Manifest, RunRecord
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.run.commits import commit_unit
from persona_atlas.storage.run.lease import HeldLease, acquire
from persona_atlas.storage.run.run_store import begin_run, reserve_rows

from fakes import FakeEngine, block_of, small_plan, small_spec


def record_of(plan: Plan) -> RunRecord:
    """Make the run record that a driver would write for a plan."""
    return RunRecord.of(
        plan,
        units_sha256=sha256(encode_units(plan.units)).hexdigest(),
        rendering={},
        versions={"fake": "1"},
        created_at="2026-01-01T00:00:00+00:00",
    )


def write_unit(
    location: Location, plan: Plan, unit_id: str, row_block: int, engine: FakeEngine | None = None
) -> Manifest:
    """Write the objects of one unit without committing it."""
    result = block_of(plan, unit_id, row_block, engine)
    return write_unit_result(
        location,
        result,
        rows_per_block=plan.rows_per_block,
        tokens_per_block=plan.tokens_per_block,
        mantissa_bits=plan.spec.store.mantissa_bits,
        worker="test",
    )


def begin(location: Location, plan: Plan, lease: HeldLease) -> None:
    """Write the run's record and reserve the rows of the lease's row blocks."""
    begin_run(location, record_of(plan), encode_units(plan.units))
    reserve_rows(location, record_of(plan), lease.row_blocks.stop)


def commit(location: Location, lease: HeldLease, manifest: Manifest) -> CommitRecord:
    """Commit an attempt, and check that it is the one that counts."""
    record = commit_unit(location, lease, manifest)
    assert record.manifest == manifest
    return record


def store_run(
    url: str, plan: Plan, *, engine: FakeEngine | None = None, leave_out: Collection[str] = (), uncommitted: bool = True
) -> Location:
    """Write a whole run. Row blocks are assigned at random, so that rows are not sorted by address.

    Args:
        url: Empty store.
        plan: The plan of the run.
        engine: The engine; None: a FakeEngine.
        leave_out: Ids of units that are not committed.
        uncommitted: Whether the objects of these units are written nevertheless.
    """
    location = open_location(url)
    with acquire(location, 2 * len(plan.units)) as lease:
        begin(location, plan, lease)
        row_blocks = list(lease.row_blocks)
        random.Random(0).shuffle(row_blocks)
        for unit, row_block in zip(plan.units, row_blocks, strict=False):
            if unit.unit_id not in leave_out:
                commit(location, lease, write_unit(location, plan, unit.unit_id, row_block, engine))
            elif uncommitted:
                write_unit(location, plan, unit.unit_id, row_block, engine)
    return location


def commit_units(url: str, plan: Plan, unit_ids: Iterable[str], engine: FakeEngine | None = None) -> None:
    """Run and commit units under a new lease, like one start of a driver."""
    location = open_location(url)
    wanted = list(unit_ids)
    with acquire(location, len(wanted)) as lease:
        begin(location, plan, lease)
        for unit_id, row_block in zip(wanted, lease.row_blocks, strict=True):
            commit(location, lease, write_unit(location, plan, unit_id, row_block, engine))


def small_run(
    url: str, spec: JobSpec | None = None, engine: FakeEngine | None = None, *, leave_out: Iterable[str] = ()
) -> Run:
    """Commit every unit of a spec, by default ``small_spec``, except those left out, and open the run."""
    plan = small_plan(spec or small_spec(url))
    left_out = set(leave_out)
    commit_units(url, plan, [unit.unit_id for unit in plan.units if unit.unit_id not in left_out], engine)
    return open_run(url)
