"""Writers that stall, are given up for dead, and come back: what they bring late changes nothing that counts."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from persona_atlas.jobs.errors import StoreError
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.storage.arrays.unit_writer import write_unit_result
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.lease_record import Lease
from persona_atlas.storage.format.records import CommitRecord, Manifest, parse_record
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run import lease as lease_module
from persona_atlas.storage.run.commits import commit_unit, committed_units, now_iso, read_commits
from persona_atlas.storage.run.index_keeper import refresh_index
from persona_atlas.storage.run.lease import HeldLease, acquire
from persona_atlas.storage.verification.garbage import find_garbage, remove_garbage
from persona_atlas.storage.verification.verify import verify_run

from fakes import FakeEngine, block_of, small_plan
from fault_jobs import small_job, straight, tiny_job
from fault_proxy import FaultProxy, Held
from plain_driver import Driver, finish, start_driver
from stored_runs import begin, commit, write_unit
from whole_run import assert_right, assert_whole, verified

UNIT = "role.pirate.pos.p0.b0"
OTHER = "default.assistant_default.pos.p0.b0"
ARRAYS = (("resid_post", "response_mean"), ("resid_post", "prompt_last"))


def write(location: Location, spec: JobSpec, unit_id: str, row_block: int) -> Manifest:
    return write_unit(location, small_plan(spec), unit_id, row_block, FakeEngine(arrays=ARRAYS))


def write_otherwise(location: Location, spec: JobSpec, unit_id: str, row_block: int) -> Manifest:
    """As a worker would whose sampling went another way: nothing of it may ever be seen."""
    plan = small_plan(spec)
    block = block_of(plan, unit_id, row_block, FakeEngine(arrays=ARRAYS, more=", or not"))
    other = replace(block, arrays_BLD={array: -values_BLD for array, values_BLD in block.arrays_BLD.items()})
    return write_unit_result(
        location, other, rows_per_block=plan.rows_per_block, mantissa_bits=spec.store.mantissa_bits, worker="stalled"
    )


def collect_garbage(spec: JobSpec) -> int:
    """What ``persona-atlas gc --yes`` does; gives how many objects it deleted."""
    run = open_run(spec.store.url, spec.store.endpoint_url)
    manifests = [record.manifest for record in read_commits(run.location, sorted(run.committed))]
    return remove_garbage(run.location, run.record, find_garbage(run.location, manifests))


def begun(spec: JobSpec, lease: HeldLease) -> Location:
    location = open_location(spec.store.url, spec.store.endpoint_url)
    begin(location, small_plan(spec), lease)
    return location


class Clock:
    """The time that leases go by, in this process."""

    def __init__(self) -> None:
        self.ahead_s = 0.0

    def time(self) -> float:
        return time.time() + self.ahead_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that can be put forward."""
    clock = Clock()
    monkeypatch.setattr(lease_module, "time", clock)
    return clock


def run_out(location: Location, held: HeldLease, clock: Clock) -> None:
    """Have a lease of this process run out, for its driver and for everybody."""
    clock.ahead_s = lease_module.LEASE_SECONDS + 1
    path = layout.driver_path(held.generation)
    stored = parse_record(Lease, location.read(path) or b"", path)
    location.write(path, stored.model_copy(update={"expires_at": time.time() - 1}).to_bytes())


@pytest.mark.s3
@pytest.mark.parametrize("where", ["rollouts/*", "activations/*/c/*"])
def test_a_worker_that_wakes_in_the_middle_of_its_upload_when_its_unit_is_committed_does_not_count(
    proxy: FaultProxy, tiny: JobSpec, where: str
):
    held = Held()
    spec = straight(tiny, proxy)
    location = open_location(spec.store.url, spec.store.endpoint_url)
    with ThreadPoolExecutor(1) as stalled, acquire(location, 3) as lease:
        begun(spec, lease)
        proxy.script(held, "PUT", f"?*/{where}")
        slow = open_location(tiny.store.url, proxy.endpoint_url)
        late = stalled.submit(write_otherwise, slow, tiny, UNIT, 0)
        held.wait_until_held()
        counts = commit(location, lease, write(location, spec, UNIT, 1))
        commit(location, lease, write(location, spec, OTHER, 2))
        held.let_go()
        assert commit_unit(location, lease, late.result()) == counts
    found = verify_run(location)
    # Nobody has written the index so far.
    assert (found.is_sound, found.is_complete, found.garbage_objects) == (True, True, 3)
    assert_whole_numbers(spec)
    assert collect_garbage(spec) == 3
    assert verified(location).garbage_objects == 0
    assert_whole_numbers(spec)


def assert_whole_numbers(spec: JobSpec) -> None:
    """Like ``assert_whole`` while the index may lag."""
    run = open_run(spec.store.url, spec.store.endpoint_url)
    assert_right(run, spec, set(small_plan(spec).by_id))


@pytest.mark.s3
def test_what_a_dead_drivers_worker_brings_after_gc_is_dead_and_the_next_gc_finds_it(proxy: FaultProxy, tiny: JobSpec):
    held = Held()
    proxy.script(held, "PUT", f"?*/rollouts/{UNIT}*")
    driver = start_driver(tiny)
    held.wait_until_held()
    driver.kill()
    spec = straight(tiny, proxy)
    finish(spec)
    assert_whole(spec)
    collect_garbage(spec)
    held.let_go()
    assert_whole(spec)
    assert verified(open_location(spec.store.url, spec.store.endpoint_url)).garbage_objects == 1
    assert collect_garbage(spec) == 1
    assert_whole(spec)


@pytest.mark.s3
def test_a_commit_that_arrives_after_another_attempts_commit_is_refused(proxy: FaultProxy, tiny: JobSpec):
    held = Held()
    proxy.script(held, "PUT", f"?*/commits/{UNIT}*")
    driver = start_driver(tiny)
    held.wait_until_held()
    driver.kill()
    spec = straight(tiny, proxy)
    finish(spec)
    location = open_location(spec.store.url, spec.store.endpoint_url)
    counts = location.read(f"commits/{UNIT}.json")
    held.let_go()
    assert location.read(f"commits/{UNIT}.json") == counts
    assert_whole(spec)


@pytest.mark.s3
def test_a_commit_that_arrives_after_its_driver_died_and_gc_ran_is_seen_by_every_reader(
    proxy: FaultProxy, tiny: JobSpec
):
    held = Held()
    proxy.script(held, "PUT", f"?*/commits/{UNIT}*")
    driver = start_driver(tiny)
    held.wait_until_held()
    spec = straight(tiny, proxy)
    location = open_location(spec.store.url, spec.store.endpoint_url)
    wait_for_commits(location, 1)
    driver.kill()
    assert collect_garbage(spec) == 0
    assert_right(open_run(spec.store.url, spec.store.endpoint_url), spec, {OTHER})
    held.let_go()
    assert_right(open_run(spec.store.url, spec.store.endpoint_url), spec, {OTHER, UNIT})
    finish(spec)
    assert_whole(spec)


@pytest.mark.s3
@pytest.mark.parametrize("path", ["activations/resid_post/response_mean/zarr.json", "units-*.parquet", "run.json"])
def test_what_a_dead_driver_began_the_run_with_changes_nothing_when_it_arrives_at_the_end(
    proxy: FaultProxy, tiny: JobSpec, path: str
):
    held = Held()
    proxy.script(held, "PUT", f"?*/{path}")
    driver = start_driver(tiny)
    held.wait_until_held()
    driver.kill()
    spec = straight(tiny, proxy)
    finish(spec)
    held.let_go()
    location = open_location(spec.store.url, spec.store.endpoint_url)
    # At worst a plain Zarr reader's view is too short, until gc has been.
    assert {problem.code for problem in verify_run(location).problems} <= {"short_array"}
    remove_garbage(location, open_run(spec.store.url, spec.store.endpoint_url).record, [])
    assert_whole(spec)


@pytest.mark.s3
@pytest.mark.parametrize("path", ["index.parquet", "chunks.parquet"])
def test_an_index_of_a_driver_that_lost_its_run_hides_nothing_when_it_arrives_at_the_end(
    proxy: FaultProxy, tiny: JobSpec, clock: Clock, path: str
):
    held = Held()
    proxy.script(held, "PUT", f"?*/{path}")
    spec = straight(tiny, proxy)
    location = open_location(spec.store.url, spec.store.endpoint_url)
    slow = open_location(tiny.store.url, proxy.endpoint_url)
    with acquire(location, 2) as first, ThreadPoolExecutor(1) as stalled:
        begun(spec, first)
        commit(location, first, write(location, spec, UNIT, first.row_blocks[0]))
        late = stalled.submit(refresh_index, slow, open_run(spec.store.url, spec.store.endpoint_url).record)
        held.wait_until_held()
        run_out(location, first, clock)
        finish(spec)
        held.let_go()
        late.result()
    assert_whole_numbers(spec)
    finish(spec)
    assert_whole(spec)


def wait_for_commits(location: Location, count: int) -> None:
    for _ in range(1000):
        if len(committed_units(location)) >= count:
            return
        time.sleep(0.02)
    pytest.fail("waited in vain for commits")


def suspended(driver: Driver, location: Location) -> Driver:
    """Stop a driver in its tracks, as a machine that is put to sleep does, until its lease has run out."""
    wait_for_commits(location, 2)
    assert driver.process.pid is not None
    os.kill(driver.process.pid, signal.SIGSTOP)
    return driver


@pytest.mark.slow
def test_a_driver_that_slept_while_another_took_its_run_over_is_told_and_changes_nothing(tmp_path: Path):
    spec = small_job(str(tmp_path / "run"))
    location = open_location(spec.store.url)
    driver = suspended(start_driver(spec, seconds_per_unit=0.5, lease_s=5.0), location)
    assert len(committed_units(location)) < 12
    time.sleep(5.1)
    finish(spec)
    before = {name: location.read(f"commits/{name}.json") for name in committed_units(location)}
    assert len(before) == 12
    assert driver.process.pid is not None
    os.kill(driver.process.pid, signal.SIGCONT)
    end = driver.wait()
    assert end is not None
    assert (end.status, end.error.get("code")) == (1, "lease_lost"), end.output
    assert {name: location.read(f"commits/{name}.json") for name in committed_units(location)} == before
    assert_whole(spec)


def test_what_the_worker_of_a_driver_brings_that_has_lost_its_run_is_not_committed(store_url: str, clock: Clock):
    spec = tiny_job(store_url)
    location = open_location(store_url)
    with acquire(location, 2) as first:
        begun(spec, first)
        late = write_otherwise(location, spec, UNIT, first.row_blocks[0])
        run_out(location, first, clock)
        finish(spec)
        with pytest.raises(StoreError) as caught:
            commit_unit(location, first, late)
    assert caught.value.code == "lease_lost"
    assert_whole(spec)


def test_a_stalled_commit_of_a_driver_that_has_lost_its_run_decides_nothing(store_url: str, clock: Clock):
    spec = tiny_job(store_url)
    location = open_location(store_url)
    with acquire(location, 2) as first:
        begun(spec, first)
        late = write_otherwise(location, spec, UNIT, first.row_blocks[0])
        # It had looked at its lease and stalled before the conditional write.
        record = CommitRecord.of(late, generation=first.generation, committed_at=now_iso())
        run_out(location, first, clock)
        finish(spec)
        assert not location.create(f"commits/{UNIT}.json", record.to_bytes())
    assert_whole(spec)
