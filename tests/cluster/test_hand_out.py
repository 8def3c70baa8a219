"""Who is handed what: workers hold up to two batches while there is plenty, and at the end no more than they work."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path

from persona_atlas.cluster.drive import drive
from persona_atlas.cluster.executor import Answer, WorkerView
from persona_atlas.cluster.load import Hungry, Load
from persona_atlas.cluster.progress import Progress
from persona_atlas.jobs.ledger import Failure, Ledger, row_blocks_needed
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.units import UnitOrder
from persona_atlas.storage.commits import commit_unit
from persona_atlas.storage.lease import acquire
from persona_atlas.storage.location import open_location
from persona_atlas.storage.query import open_run
from rich.console import Console

from fakes import small_plan, small_spec
from stored_runs import begin, write_unit

BATCH = 6
"""Rollouts; two units."""


class Pool:
    """Two workers with batches; ``quick`` answers whenever it is waited for, ``slow`` when quick has nothing to do."""

    def __init__(self, work: Callable[[UnitOrder], Answer]) -> None:
        self._work = work
        self._held = {"quick": Load(), "slow": Load()}
        self._waiting: dict[str, deque[tuple[int, tuple[UnitOrder, ...]]]] = {name: deque() for name in self._held}
        self._num_units: Counter[str] = Counter()
        self.handed_out: list[tuple[str, str, int]] = []
        self.ready = list(self._held)
        self.nodes_left_out: dict[str, str] = {}

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        del tick

    def _takers(self, has_room: Callable[[Load], bool]) -> list[str]:
        takers = [worker for worker in self.ready if has_room(self._held[worker])]
        return sorted(takers, key=lambda worker: self._held[worker].rollouts)

    @property
    def idle(self) -> list[str]:
        return [worker for worker in self.ready if self._held[worker].is_empty]

    @property
    def num_working(self) -> int:
        return len(self.ready)

    @property
    def hungry(self) -> list[str]:
        return self._takers(lambda load: load.has_room_now)

    @property
    def ahead(self) -> list[str]:
        return self._takers(lambda load: load.has_room_ahead(BATCH))

    @property
    def views(self) -> list[WorkerView]:
        return []

    def hand_out(self, worker: str, orders: Sequence[UnitOrder]) -> None:
        for order in orders:
            self.handed_out.append((worker, order.unit.unit_id, self._held[worker].rollouts))
        call = len(self.handed_out)
        self._held[worker].take(call, orders)
        self._num_units[worker] += len(orders)
        self._waiting[worker].append((call, tuple(orders)))

    def wait(self, timeout_s: float) -> list[Answer]:
        del timeout_s
        worker = next((worker for worker in self.ready if self._waiting[worker]), None)
        if worker is None:
            return []
        call, orders = self._waiting[worker].popleft()
        load = self._held[worker]
        load.give_back(call)
        if load.rollouts < BATCH:
            load.hears(Hungry(self._num_units[worker]))
        return [self._work(order) for order in orders]

    def close(self) -> None:
        self._held.clear()


def drive_pool(plan: Plan, url: str, *, fail: frozenset[str] = frozenset()) -> Pool:
    """Work a plan off with such a pool; some units fail the first time."""
    location = open_location(url)
    with acquire(location, row_blocks_needed(plan, ())) as lease:
        begin(location, plan, lease)

        def work(order: UnitOrder) -> Answer:
            unit_id = order.unit.unit_id
            if unit_id in fail and order.attempt == 1:
                return Answer("", (Failure(unit_id, 1, "scripted"),))
            return Answer("", (write_unit(location, plan, unit_id, order.row_block),))

        pool = Pool(work)
        ledger = Ledger(plan, set(), iter(lease.row_blocks), 3)
        drive(ledger, pool, lambda manifest: commit_unit(location, lease, manifest), Progress(Console(stderr=True)))
    return pool


def test_workers_hold_two_batches_dealt_evenly_and_at_the_end_only_what_they_can_begin(tmp_path: Path):
    url = str(tmp_path / "run")
    plan = small_plan(small_spec(url))
    pool = drive_pool(plan, url)
    first = pool.handed_out[:8]
    assert [held for _, _, held in first] == [0, 0, 3, 3, 6, 6, 9, 9], "a round for everybody before the next"
    assert [worker for worker, _, _ in first[:2]] == ["quick", "slow"]
    rest = pool.handed_out[8:]
    assert [worker for worker, _, _ in rest] == ["quick"] * 4
    assert [held for _, _, held in rest[:-1]] == [9, 9, 9], "while there is plenty, its batch never runs empty"
    assert rest[-1][2] < BATCH, "the last goes to who begins it at once"
    assert sorted(unit_id for _, unit_id, _ in pool.handed_out) == sorted(plan.by_id)
    assert open_run(url).completeness.is_complete


def test_a_retry_is_handed_only_to_a_worker_that_has_nothing_else(tmp_path: Path):
    url = str(tmp_path / "run")
    plan = small_plan(small_spec(url))
    poet = "role.poet.pos.p0.b0"
    pool = drive_pool(plan, url, fail=frozenset({poet}))
    assert [held for _, unit_id, held in pool.handed_out if unit_id == poet][1:] == [0]
    assert open_run(url).completeness.is_complete
