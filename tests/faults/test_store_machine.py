"""A store under random histories of drivers, workers, readers and gc, held against a dict in memory.

Drivers start, commit, stall, lose their lease, die and come back; workers bring their blocks in any order, some far too
late. Every attempt has numbers and words of its own, so that one taken for another shows. Time is the test's.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from persona_atlas.jobs.errors import InputError, StoreError, TransientError, UnitError
from persona_atlas.storage.arrays.unit_writer import write_unit_result
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import CommitRecord, Manifest
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.run import lease as lease_module
from persona_atlas.storage.run.commits import commit_unit, now_iso, read_commits
from persona_atlas.storage.run.index_keeper import IndexKeeper, refresh_index
from persona_atlas.storage.run.lease import LEASE_SECONDS, HeldLease, acquire, newest_lease
from persona_atlas.storage.verification.garbage import GarbageObject, find_garbage, remove_garbage
from persona_atlas.storage.verification.verify import verify_run

from fakes import FakeEngine, block_of, small_plan, small_spec, vector_of
from fault_jobs import IS_THOROUGH
from stored_runs import begin, record_of
from whole_run import PRECISION, addresses_of

SETTINGS = settings(
    max_examples=60 if IS_THOROUGH else 10,
    stateful_step_count=60 if IS_THOROUGH else 30,
    derandomize=not IS_THOROUGH,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
_COUNTS = {"prompts": 1, "questions": 2}
PLAN = small_plan(
    small_spec(
        personas={"roles": {"names": ["pirate", "poet", "teacher"], **_COUNTS}, "default": _COUNTS},
        capture={"poolings": ["response_mean", "prompt_last"]},
    )
)
UNITS = sorted(PLAN.by_id)
ARRAYS = (("resid_post", "response_mean"), ("resid_post", "prompt_last"))
ROW_BLOCKS_EACH = 12


@dataclass
class Clock:
    """What leases go by."""

    now: float = 0.0

    def time(self) -> float:
        return self.now


CLOCK = Clock()


class MortalLocation:
    """A driver's way to the store: when the driver is dead, nothing it does arrives."""

    def __init__(self, inner: Location) -> None:
        self._inner = inner
        self.is_dead = False

    def __getattr__(self, name: str) -> Any:
        if self.is_dead:
            raise TransientError("its driver is dead.", code="dead")
        return getattr(self._inner, name)


class DriverOf:
    """A start of the job, alive, stalled or dead."""

    def __init__(self, location: MortalLocation, held: HeldLease, keeper: IndexKeeper) -> None:
        self.location = location
        self.held = held
        self.keeper = keeper
        self.row_blocks: Iterator[int] = iter(held.row_blocks)
        self.expires_at = CLOCK.now + LEASE_SECONDS
        self.is_over = False
        self.is_lost = False

    def __repr__(self) -> str:
        return f"<driver {self.held.generation}>"

    @property
    def holds_the_run(self) -> bool:
        return not self.is_over and CLOCK.now <= self.expires_at


class Attempt:
    """What a worker wrote for a driver."""

    def __init__(self, driver: DriverOf, manifest: Manifest, objects: dict[str, bytes]) -> None:
        self.driver = driver
        self.manifest = manifest
        self.objects = objects

    def __repr__(self) -> str:
        return f"<{self.unit_id} in row block {self.row_block} for {self.driver}>"

    @property
    def unit_id(self) -> str:
        return self.manifest.unit_id

    @property
    def row_block(self) -> int:
        return self.manifest.row_block


class StoreMachine(RuleBasedStateMachine):
    """The rules; ``committed`` is the truth: the row block of each committed unit's attempt."""

    def __init__(self) -> None:
        super().__init__()
        CLOCK.now = time.time()
        self.folder = Path(tempfile.mkdtemp(prefix="atlas-machine-"))
        self.location = open_location(str(self.folder / "run"))
        self.committed: dict[str, int] = {}
        self.drivers: list[DriverOf] = []
        self.attempts: list[Attempt] = []
        self.old_run: Run | None = None

    @property
    def alive(self) -> list[DriverOf]:
        return [driver for driver in self.drivers if not driver.is_over]

    @rule()
    def a_driver_starts(self) -> None:
        mortal = MortalLocation(self.location)
        location = cast(Location, mortal)
        if any(driver.holds_the_run for driver in self.drivers):
            with pytest.raises(InputError, match="is being worked"):
                acquire(location, ROW_BLOCKS_EACH)
            return
        held = acquire(location, ROW_BLOCKS_EACH)
        begin(location, PLAN, held)
        keeper = IndexKeeper(location, record_of(PLAN))
        keeper.__enter__()
        self.drivers.append(DriverOf(mortal, held, keeper))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), unit_id=st.sampled_from(UNITS))
    def a_worker_writes_a_unit(self, data: st.DataObject, unit_id: str) -> None:
        driver = data.draw(st.sampled_from(self.alive))
        row_block = next(driver.row_blocks, None)
        if row_block is None:
            return
        manifest = self._write(unit_id, row_block)
        objects = {stored.path: self.location.read(stored.path) or b"" for stored in manifest.objects}
        self.attempts.append(Attempt(driver, manifest, objects))

    def _write(self, unit_id: str, row_block: int) -> Manifest:
        """Write an attempt whose words and numbers are its own."""
        block = block_of(PLAN, unit_id, row_block, FakeEngine(arrays=ARRAYS, more=f", try {row_block}"))
        own = {array: values_BLD * np.float32(1 + row_block) for array, values_BLD in block.arrays_BLD.items()}
        return write_unit_result(
            self.location,
            replace(block, arrays_BLD=own),
            rows_per_block=PLAN.rows_per_block,
            mantissa_bits=PLAN.spec.store.mantissa_bits,
            worker="machine",
        )

    @precondition(lambda self: any(not attempt.driver.is_over for attempt in self.attempts))
    @rule(data=st.data())
    def a_driver_commits(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from([a for a in self.attempts if not a.driver.is_over]))
        driver = attempt.driver
        location = cast(Location, driver.location)
        if not driver.holds_the_run and not self._may_renew(driver):
            driver.is_lost = True
            with pytest.raises(StoreError) as lost:
                commit_unit(location, driver.held, attempt.manifest)
            assert lost.value.code == "lease_lost"
            return
        # One that ran out is renewed with the commit when nobody has taken the run.
        driver.expires_at = max(driver.expires_at, CLOCK.now + LEASE_SECONDS * (not driver.holds_the_run))
        if any(self.location.size(path) is None for path in attempt.objects):
            # Another attempt counts, and gc has deleted this one.
            with pytest.raises(UnitError) as gone:
                commit_unit(location, driver.held, attempt.manifest)
            assert gone.value.code == "not_written"
            assert self.committed[attempt.unit_id] != attempt.row_block
            return
        record = commit_unit(location, driver.held, attempt.manifest)
        assert record.manifest.row_block == self.committed.setdefault(attempt.unit_id, attempt.row_block)
        driver.keeper.add(record)

    def _may_renew(self, driver: DriverOf) -> bool:
        newest = newest_lease(self.location)
        if driver.is_lost or newest is None or newest.generation != driver.held.generation:
            return False
        return range(newest.first_row_block, newest.end_row_block) == driver.held.row_blocks

    @precondition(lambda self: any(not attempt.driver.holds_the_run for attempt in self.attempts))
    @rule(data=st.data())
    def a_commit_arrives_long_after_its_driver_looked_at_its_lease(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from([a for a in self.attempts if not a.driver.holds_the_run]))
        record = CommitRecord.of(attempt.manifest, generation=attempt.driver.held.generation, committed_at=now_iso())
        was_first = self.location.create(layout.commit_path(attempt.unit_id), record.to_bytes())
        assert was_first == (attempt.unit_id not in self.committed)
        self.committed.setdefault(attempt.unit_id, attempt.row_block)

    @precondition(lambda self: self.attempts)
    @rule(data=st.data())
    def a_worker_that_was_given_up_writes_its_objects_at_last(self, data: st.DataObject) -> None:
        attempt = data.draw(st.sampled_from(self.attempts))
        for path, content in attempt.objects.items():
            self.location.write(path, content)

    @rule()
    def the_leases_run_out(self) -> None:
        CLOCK.now += LEASE_SECONDS + 1

    @precondition(lambda self: self.drivers and not any(driver.holds_the_run for driver in self.drivers))
    @rule(newest_only=st.booleans())
    def somebody_deletes_leases_that_nobody_holds(self, newest_only: bool) -> None:
        names = self.location.names(layout.DRIVERS)
        self.location.delete(f"{layout.DRIVERS}/{name}" for name in (names[-1:] if newest_only else names))

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), in_order=st.booleans())
    def a_driver_ends(self, data: st.DataObject, in_order: bool) -> None:
        self._end(data.draw(st.sampled_from(self.alive)), in_order=in_order)

    def _end(self, driver: DriverOf, *, in_order: bool) -> None:
        driver.is_over = True
        error = None if in_order else TransientError("killed.", code="killed")
        if not in_order:
            driver.location.is_dead = True
            # Nobody waits for the dead: its process is gone, and the lease says so by running out.
            CLOCK.now = max(CLOCK.now, driver.expires_at + 1)
        with suppress(TransientError):
            driver.keeper.__exit__(None, error, None)
            with suppress(StoreError):
                driver.held.check()
            driver.held.__exit__()
        # Stops the lease's thread, whatever came before.
        driver.location.is_dead = True
        with suppress(TransientError):
            driver.held.__exit__()

    @precondition(lambda self: self.drivers)
    @rule()
    def the_index_is_refreshed(self) -> None:
        refresh_index(self.location, record_of(PLAN))

    @precondition(lambda self: self.drivers)
    @rule()
    def garbage_is_collected(self) -> None:
        dead = self._dead()
        if any(driver.holds_the_run for driver in self.drivers):
            with pytest.raises(InputError, match="is being worked"):
                remove_garbage(self.location, record_of(PLAN), dead)
            return
        remove_garbage(self.location, record_of(PLAN), dead)
        left = self._dead()
        assert not [thing for thing in left if thing.is_removable or thing.unit_id in self.committed]

    def _dead(self) -> list[GarbageObject]:
        manifests = [commit.manifest for commit in read_commits(self.location, sorted(self.committed))]
        return find_garbage(self.location, manifests, is_complete=len(manifests) == len(UNITS))

    @precondition(lambda self: self.drivers)
    @rule()
    def a_reader_opens_the_run(self) -> None:
        run = open_run(self.location.url)
        assert run.committed == set(self.committed)
        assert run.completeness.is_complete == (len(self.committed) == len(UNITS))
        self._assert_reads(run)
        self.old_run = run

    @precondition(lambda self: self.old_run is not None)
    @rule()
    def a_reader_reads_what_it_opened_before(self) -> None:
        assert self.old_run is not None
        self._assert_reads(self.old_run)

    def _assert_reads(self, run: Run) -> None:
        """Exactly what was committed when it looked: each rollout with the words and numbers of what counts."""
        expected = sorted(address for unit_id in run.committed for address in PLAN.by_id[unit_id].addresses())
        lines = run.rollouts()
        assert addresses_of(lines) == expected
        attempts = [self.committed[unit_id] for unit_id in lines["unit_id"].to_pylist()]
        said = [f"I answer {address}, try {attempt}" for address, attempt in zip(expected, attempts, strict=True)]
        assert lines["response"].to_pylist() == said
        if not expected:
            return
        for array in ARRAYS:
            found = run.activations(hook_point=array[0], pooling=array[1], layer="all")
            made = [
                vector_of(address, array, 4, 16) * np.float32(1 + attempt)
                for address, attempt in zip(expected, attempts, strict=True)
            ]
            np.testing.assert_allclose(found.values, np.stack(made), rtol=PRECISION)

    @precondition(lambda self: self.drivers)
    @rule()
    def everything_is_verified(self) -> None:
        found = verify_run(self.location)
        assert found.is_sound, found.problems
        assert set(found.missing) == set(UNITS) - set(self.committed)

    def teardown(self) -> None:
        """Whatever happened, the same command completes the run, and gc leaves nothing dead."""
        try:
            for driver in self.alive:
                self._end(driver, in_order=False)
            self.a_driver_starts()
            driver = self.drivers[-1]
            for unit_id in sorted(set(UNITS) - set(self.committed)):
                manifest = self._write(unit_id, next(driver.row_blocks))
                driver.keeper.add(commit_unit(self.location, driver.held, manifest))
                self.committed[unit_id] = manifest.row_block
            self._end(driver, in_order=True)
            self.a_reader_opens_the_run()
            self.garbage_is_collected()
            found = verify_run(self.location)
            assert (found.problems, found.missing, found.garbage_objects) == ([], (), 0)
        finally:
            for driver in self.alive:
                self._end(driver, in_order=False)
            shutil.rmtree(self.folder)


@pytest.mark.timeout(3000 if IS_THOROUGH else 300)
def test_a_store_is_what_a_dict_would_be_under_any_history(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease_module, "time", CLOCK)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 10**6)
    run_state_machine_as_test(StoreMachine, settings=SETTINGS)
