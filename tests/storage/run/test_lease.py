"""The lease on a run: one live driver at a time, whatever became of the last, and row blocks that never overlap."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError, StoreError, TransientError
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.lease_record import Lease
from persona_atlas.storage.format.records import parse_record
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run import lease
from persona_atlas.storage.run.commits import commit_unit
from persona_atlas.storage.run.lease import acquire, live_driver, newest_lease, refuse_if_driven
from persona_atlas.storage.verification.verify import verify_run

from counted import Counted
from fakes import small_plan, small_spec
from stored_runs import begin, commit, commit_units, write_unit

HOLD = """
import sys, time
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.locations.location import open_location
held = acquire(open_location(sys.argv[1]), 5)
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


@pytest.fixture
def other_driver(location: Location) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lease."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, location.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def stored_lease(location: Location, generation: int) -> Lease:
    data = location.read(layout.driver_path(generation))
    assert data is not None
    return parse_record(Lease, data, "a lease")


def change(location: Location, generation: int, **changes: object) -> None:
    """Make a stored lease look as if its driver were elsewhere, late or gone."""
    changed = stored_lease(location, generation).model_copy(update=changes)
    location.write(layout.driver_path(generation), changed.to_bytes())


def wait_until_lost(held: lease.HeldLease) -> StoreError:
    for _ in range(500):
        try:
            held.check()
        except StoreError as error:
            return error
        time.sleep(0.01)
    pytest.fail("the lost lease was not noticed")


def test_a_second_driver_is_refused_while_the_first_works_and_taken_when_it_is_done(store_url: str):
    location = open_location(store_url)
    with acquire(location, 3) as first:
        first.check()
        assert first.is_exclusive
        with pytest.raises(InputError, match=str(os.getpid())) as caught:
            acquire(open_location(store_url), 3)
        assert (caught.value.code, caught.value.field) == ("run_has_driver", "store.url")
        driver = live_driver(location)
        assert driver is not None
        assert driver.pid == os.getpid()
    assert live_driver(location) is None
    with acquire(location, 3) as second:
        assert (first.generation, second.generation) == (1, 2)


def test_a_store_that_ignores_the_condition_is_noticed(location: Location):
    class Careless(Counted):
        def create(self, path: str, data: bytes, *, flush: bool = True) -> bool:
            self.write(path, data)
            return True

    with acquire(Careless(location), 3) as held:
        assert not held.is_exclusive


def test_looking_whether_a_run_could_be_taken_takes_nothing(location: Location):
    refuse_if_driven(location)
    assert location.is_empty()
    with acquire(location, 1), pytest.raises(InputError, match=str(os.getpid())) as caught:
        refuse_if_driven(location)
    assert caught.value.code == "run_has_driver"
    refuse_if_driven(location)
    newest = newest_lease(location)
    assert newest is not None
    assert (newest.generation, newest.released) == (1, True)


def test_a_driver_in_another_process_keeps_others_out_until_it_is_killed(
    location: Location, other_driver: subprocess.Popen[str]
):
    with pytest.raises(InputError, match=f"process {other_driver.pid}"):
        acquire(location, 5)
    other_driver.send_signal(signal.SIGKILL)
    other_driver.wait()
    with acquire(location, 5) as held:
        assert held.generation == 2
        assert held.row_blocks == range(5, 10)


def test_a_killed_driver_that_nobody_reaped_holds_nothing(location: Location, other_driver: subprocess.Popen[str]):
    process = psutil.Process(other_driver.pid)
    other_driver.send_signal(signal.SIGKILL)
    for _ in range(500):
        if process.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.01)
    assert process.status() == psutil.STATUS_ZOMBIE
    with acquire(location, 5) as held:
        assert held.generation == 2


def test_a_process_id_that_was_given_to_another_process_is_not_the_driver(location: Location):
    with acquire(location, 1):
        change(location, 1, started_after_boot_s=psutil.Process().create_time() - psutil.boot_time() - 100)
        with acquire(location, 1) as second:
            assert second.generation == 2


@pytest.mark.parametrize("elsewhere", [{"host": "another"}, {"boot_id": "another"}])
def test_a_driver_on_another_machine_is_waited_for_until_its_lease_runs_out(
    location: Location, elsewhere: dict[str, object]
):
    with acquire(location, 1):
        pass
    change(location, 1, released=False, expires_at=time.time() + 100, **elsewhere)
    with pytest.raises(InputError):
        acquire(location, 1)
    change(location, 1, expires_at=time.time() - 1)
    with acquire(location, 1) as held:
        assert held.generation == 2


def test_of_eight_drivers_that_start_at_once_one_gets_the_run(location: Location):
    start = threading.Barrier(8)
    held: list[lease.HeldLease] = []
    refused: list[InputError] = []

    def begin():
        start.wait()
        try:
            held.append(acquire(location, 2))
        except InputError as error:
            refused.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    with held[0]:
        held[0].check()


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_no_row_block_is_handed_to_two_generations(tmp_path_factory: pytest.TempPathFactory, counts: list[int]):
    location = open_location(str(tmp_path_factory.mktemp("run")))
    handed_out: list[int] = []
    for generation, count in enumerate(counts, start=1):
        with acquire(location, count) as held:
            assert held.generation == generation
            assert len(held.row_blocks) == count
            handed_out.extend(held.row_blocks)
    assert handed_out == list(range(sum(counts)))


def test_a_driver_whose_run_was_taken_over_is_told(location: Location, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.01)
    with acquire(location, 1) as held:
        held.check()
        location.write(layout.driver_path(2), stored_lease(location, 1).to_bytes())
        error = wait_until_lost(held)
        assert error.code == "lease_lost"
        assert "taken over" in str(error)


def test_a_lease_that_ran_out_is_renewed_when_nobody_took_the_run(location: Location, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.05)
    with acquire(location, 1) as held:
        first = stored_lease(location, 1).expires_at
        time.sleep(0.1)
        held.check()
        assert stored_lease(location, 1).expires_at > first


def test_a_lease_that_ran_out_while_another_took_the_run_is_lost(location: Location, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.05)
    with acquire(location, 1) as held:
        time.sleep(0.1)
        location.write(layout.driver_path(2), stored_lease(location, 1).to_bytes())
        with pytest.raises(StoreError, match="taken over"):
            held.check()


def test_a_lease_that_ran_out_while_the_store_is_away_is_asked_for_again(
    location: Location, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.05)
    with acquire(location, 1) as held:
        time.sleep(0.1)
        with monkeypatch.context() as away:

            def fail(_: object) -> int:
                raise TransientError("the store is away.", code="store_io")

            away.setattr(lease, "newest_generation", fail)
            with pytest.raises(TransientError):
                held.check()
        held.check()


def test_a_driver_takes_over_from_an_earlier_one_of_its_own_job_and_from_no_other(location: Location):
    with acquire(location, 4, "job-1") as first:
        # As on a machine whose driver cannot be looked at.
        change(location, 1, host="another")
        with pytest.raises(InputError, match="job job-1"):
            acquire(location, 4, "job-2")
        with pytest.raises(InputError, match="job job-1"):
            acquire(location, 4)
        with acquire(location, 4, "job-1") as second:
            assert (first.generation, second.generation) == (1, 2)
            assert first.row_blocks == range(4)
            assert second.row_blocks == range(4, 8)


def test_a_driver_that_outlives_its_successor_s_start_doubles_nothing(tmp_path: Path):
    url = str(tmp_path / "run")
    plan = small_plan(small_spec(url))
    location = open_location(url)
    ids = [unit.unit_id for unit in plan.units]
    with acquire(location, len(ids), "job") as early:
        begin(location, plan, early)
        late_manifest = write_unit(location, plan, ids[0], early.row_blocks[0])
        with acquire(location, len(ids), "job") as successor:
            begin(location, plan, successor)
            for unit_id, row_block in zip(ids, successor.row_blocks, strict=True):
                commit(location, successor, write_unit(location, plan, unit_id, row_block))
            # It has not noticed yet that the run was taken over.
            counted = commit_unit(location, early, late_manifest)
            assert counted.generation == successor.generation
            assert counted.manifest.row_block in successor.row_blocks
    found = verify_run(location)
    assert found.is_sound, found.problems
    assert found.is_complete


def test_a_lease_is_renewed_while_its_driver_works(location: Location, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.02)
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    with acquire(location, 1) as held:
        first = stored_lease(location, 1).expires_at
        time.sleep(1.3)
        held.check()
        assert stored_lease(location, 1).expires_at > first + 1
    assert stored_lease(location, 1).released


def test_a_damaged_lease_is_named(location: Location):
    location.write(layout.driver_path(1), b"{")
    with pytest.raises(StoreError, match=r"000001\.json") as caught:
        acquire(location, 1)
    assert caught.value.code == "bad_record"


@pytest.mark.parametrize("deleted", [[1, 2], [2], [1]], ids=["all", "the newest", "an older one"])
def test_leases_deleted_by_hand_cost_no_committed_row(store_url: str, deleted: list[int]):
    location = open_location(store_url)
    plan = small_plan(small_spec(store_url))
    ids = [unit.unit_id for unit in plan.units]
    for some in (ids[:4], ids[4:8]):
        commit_units(store_url, plan, some)
    location.delete(layout.driver_path(generation) for generation in deleted)
    commit_units(store_url, plan, ids[8:])
    found = verify_run(location)
    assert found.is_sound, found.problems
    assert found.is_complete


def test_a_driver_whose_lease_was_deleted_is_told_and_the_next_shares_no_row_block_with_it(
    location: Location, monkeypatch: pytest.MonkeyPatch
):
    with acquire(location, 4) as early:
        begin(location, small_plan(small_spec(location.url)), early)
        location.delete([layout.driver_path(1)])
        let_leases_run_out(monkeypatch)
        with pytest.raises(StoreError, match="was deleted"):
            early.check()
        with acquire(location, 4) as late:
            assert not set(early.row_blocks) & set(late.row_blocks)


def test_a_driver_whose_lease_was_deleted_and_its_number_given_again_does_not_take_it_back(
    location: Location, monkeypatch: pytest.MonkeyPatch
):
    with acquire(location, 4) as early:
        begin(location, small_plan(small_spec(location.url)), early)
        location.delete([layout.driver_path(1)])
        with acquire(location, 4) as late:
            assert early.generation == late.generation == 1
            assert not set(early.row_blocks) & set(late.row_blocks)
            let_leases_run_out(monkeypatch)
            with pytest.raises(StoreError, match="taken over"):
                early.check()
            late.check()


def let_leases_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(lease.time, "time", lambda: now + lease.LEASE_SECONDS + 1)


def test_an_array_that_says_no_length_is_no_hindrance(location: Location):
    plan = small_plan(small_spec(location.url))
    with acquire(location, 4) as first:
        begin(location, plan, first)
    location.write("activations/resid_post/response_mean/zarr.json", b"{}")
    with acquire(location, 4) as second:
        assert second.row_blocks == range(4, 8)
