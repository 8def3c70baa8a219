"""A whole small run, committed through storage's own functions from FakeEngine's blocks."""

from __future__ import annotations

from collections.abc import Iterable

from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.spec import JobSpec
from persona_atlas.storage.blocks import write_block
from persona_atlas.storage.lease import acquire
from persona_atlas.storage.location import open_location
from persona_atlas.storage.query import Run, open_run
from persona_atlas.storage.records import RunRecord
from persona_atlas.storage.run_store import begin_run, commit_unit, now_iso, reserve_rows

from fakes import FakeEngine, block_of, small_plan, small_spec


def begun_run(url: str, plan: Plan) -> RunRecord:
    """Write what the run is, as a driver does at its start."""
    record = RunRecord.of(plan, rendering={}, versions={"fake": "1"}, created_at=now_iso())
    begin_run(open_location(url), record)
    return record


def commit_units(url: str, plan: Plan, unit_ids: Iterable[str], engine: FakeEngine | None = None) -> None:
    """Work and commit units under a lease of their own."""
    location = open_location(url)
    wanted = list(unit_ids)
    with acquire(location, len(wanted)) as lease:
        record = begun_run(url, plan)
        reserve_rows(location, record, lease.row_blocks.stop)
        for unit_id, row_block in zip(wanted, lease.row_blocks, strict=True):
            block = block_of(plan, unit_id, row_block, engine)
            bits = plan.spec.store.mantissa_bits
            manifest = write_block(
                location, block, rows_per_block=plan.rows_per_block, mantissa_bits=bits, worker="test"
            )
            assert commit_unit(location, lease, manifest)


def small_run(
    url: str, spec: JobSpec | None = None, engine: FakeEngine | None = None, *, leave_out: Iterable[str] = ()
) -> Run:
    """Commit every unit of a spec (``small_spec`` when None) but some, and open the run."""
    plan = small_plan(spec or small_spec(url))
    left_out = set(leave_out)
    commit_units(url, plan, [unit.unit_id for unit in plan.units if unit.unit_id not in left_out], engine)
    return open_run(url)
