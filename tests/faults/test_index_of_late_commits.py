"""A commit that lands between two looks of the driver that took the run over is in its index once."""

from __future__ import annotations

from pathlib import Path

from persona_atlas.storage.format.records import CommitRecord
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.commits import commit_unit, now_iso
from persona_atlas.storage.run.index_keeper import IndexKeeper
from persona_atlas.storage.run.lease import acquire

from fakes import FakeEngine, small_plan
from fault_jobs import tiny_job
from plain_driver import finish
from stored_runs import begin, record_of, write_unit
from whole_run import assert_right, assert_whole

UNIT = "role.pirate.pos.p0.b0"
ARRAYS = (("resid_post", "response_mean"), ("resid_post", "prompt_last"))


def test_a_unit_that_a_stalled_driver_commits_while_the_next_one_begins_is_indexed_once(tmp_path: Path):
    spec = tiny_job(str(tmp_path / "run"))
    plan, location = small_plan(spec), open_location(spec.store.url)
    with acquire(location, 1) as stalled:
        begin(location, plan, stalled)
        early = write_unit(location, plan, UNIT, stalled.row_blocks[0], FakeEngine(arrays=ARRAYS))
    with acquire(location, 1) as lease:
        begin(location, plan, lease)
        late = CommitRecord.of(early, generation=stalled.generation, committed_at=now_iso())
        # After the new driver saw what was left to do, and before it read the index.
        location.create(f"commits/{UNIT}.json", late.to_bytes())
        with IndexKeeper(location, record_of(plan)) as keeper:
            own = write_unit(location, plan, UNIT, lease.row_blocks[0], FakeEngine(arrays=ARRAYS))
            keeper.add(commit_unit(location, lease, own))
    assert_right(open_run(spec.store.url), spec, {UNIT})
    finish(spec)
    assert_whole(spec)
