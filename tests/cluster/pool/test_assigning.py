"""What the run loop assigns to whom: nobody gets more than it can begin, and towards the end assignments are small."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from persona_atlas.cluster.pool.executor import Answer
from persona_atlas.cluster.pool.pooled_executor import PooledExecutor
from persona_atlas.cluster.run.drive import drive
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.ledger import Failure, Ledger, row_blocks_needed
from persona_atlas.jobs.scheduling.pool import WorkerPool
from persona_atlas.jobs.scheduling.pool_commands import ClusterNodes
from persona_atlas.jobs.scheduling.worker_load import WorkRequest
from persona_atlas.jobs.work.units import UnitAttempt
from persona_atlas.storage.format.records import Manifest
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.commits import commit_unit
from persona_atlas.storage.run.lease import acquire
from rich.console import Console

from fakes import small_plan, small_spec
from stored_runs import begin, write_unit

BATCH = 6
"""Rollouts; two units."""


NAMES = {"worker-0": "quick", "worker-1": "slow"}


class Pool(PooledExecutor):
    """Two workers with batches; ``quick`` answers whenever it is waited for, ``slow`` when quick has nothing to do."""

    def __init__(self, work: Callable[[UnitAttempt], Answer]) -> None:
        super().__init__(WorkerPool[Manifest](2, load_timeout_s=60), clock=lambda: 0.0)
        self._work = work
        self._waiting: dict[str, deque[tuple[UnitAttempt, ...]]] = {name: deque() for name in NAMES}
        self._num_units: Counter[str] = Counter()
        self.handed_out: list[tuple[str, str, int]] = []
        self.sizes: list[int] = []
        self._carry_out(self._pool.follow(ClusterNodes({"node": 2}), 0.0))

    def _launch(self, worker: str, avoid: tuple[str, ...]) -> None:
        assert not avoid
        self._carry_out(self._pool.placed(worker, "node", 0.0))
        self._carry_out(self._pool.loaded(worker, 0.0))

    def _kill(self, worker: str) -> None:
        del self._waiting[worker]

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        self.sizes.append(len(attempts))
        for attempt in attempts:
            self.handed_out.append((NAMES[worker], attempt.unit.unit_id, self._rollouts(worker)))
        super().assign(worker, attempts)

    def _send(self, worker: str, attempts: tuple[UnitAttempt, ...]) -> None:
        self._num_units[worker] += len(attempts)
        self._waiting[worker].append(attempts)

    def _rollouts(self, worker: str) -> int:
        return self._pool.workers.by_name[worker].load.rollouts

    def wait(self, timeout_s: float) -> list[Answer]:
        del timeout_s
        loads = {worker.name: worker.load for worker in self._pool.workers.by_name.values()}
        asking = [name for name, load in loads.items() if 0 < load.rollouts < BATCH and not load.wants_work]
        for name in asking:
            self._carry_out(self._pool.reported(name, (), WorkRequest(self._num_units[name]), 0.0))
        if asking:
            return []
        worker = next((worker for worker in self.ready if self._waiting[worker]), None)
        if worker is None:
            return []
        results = [result for attempt in self._waiting[worker].popleft() for result in self._work(attempt).results]
        return self._carry_out(self._pool.reported(worker, results, None, 0.0))


def drive_pool(plan: Plan, url: str, *, rollouts: int = 3, fail: frozenset[str] = frozenset()) -> Pool:
    """Work a plan off with such a pool, so many rollouts an assignment; some units fail the first time."""
    location = open_location(url)
    with acquire(location, row_blocks_needed(plan, ())) as lease:
        begin(location, plan, lease)

        def work(attempt: UnitAttempt) -> Answer:
            unit_id = attempt.unit.unit_id
            if unit_id in fail and attempt.number == 1:
                return Answer("", (Failure(unit_id, 1, "scripted"),))
            return Answer("", (write_unit(location, plan, unit_id, attempt.row_block),))

        pool = Pool(work)
        ledger = Ledger(plan, set(), iter(lease.row_blocks), rollouts)
        drive(ledger, pool, lambda manifest: commit_unit(location, lease, manifest), Progress(Console(stderr=True)))
    return pool


def test_nobody_is_dealt_more_than_it_can_begin_and_all_are_dealt_to_in_turn(tmp_path: Path):
    url = str(tmp_path / "run")
    plan = small_plan(small_spec(url))
    pool = drive_pool(plan, url)
    assert [(worker, held) for worker, _, held in pool.handed_out[:4]] == [
        ("quick", 0),
        ("slow", 0),
        ("quick", 3),
        ("slow", 3),
    ]
    assert [(worker, held) for worker, _, held in pool.handed_out[4:]] == [("quick", 3)] * 8
    assert sorted(unit_id for _, unit_id, _ in pool.handed_out) == sorted(plan.by_id)
    assert open_run(url).completeness.is_complete


def test_at_the_end_little_is_dealt_at_a_time(tmp_path: Path):
    url = str(tmp_path / "run")
    pool = drive_pool(small_plan(small_spec(url)), url, rollouts=12)
    assert pool.sizes == [4, 4, 1, 1, 1, 1]


def test_a_retry_is_handed_only_to_a_worker_that_has_nothing_else(tmp_path: Path):
    url = str(tmp_path / "run")
    plan = small_plan(small_spec(url))
    poet = "role.poet.pos.p0.b0"
    pool = drive_pool(plan, url, fail=frozenset({poet}))
    assert [held for _, unit_id, held in pool.handed_out if unit_id == poet][1:] == [0]
    assert open_run(url).completeness.is_complete


def test_a_pause_after_a_refusal_shows_why_no_worker_is_there():
    pool: Any = Pool(lambda attempt: Answer("worker-0", ()))
    error = InputError("1 replica(s) need 4 GB of cpu memory; 2 GB is free.", code="not_enough_memory")
    nodes = ClusterNodes({"node": 2})
    for name in list(NAMES):
        pool._carry_out(pool._pool.died(name, "killed", nodes, 1.0))
    pool._launch = lambda worker, avoid: None
    pool._kill = lambda worker: None
    pool._carry_out(pool._pool.follow(nodes, 2.0))
    for view in pool.views:
        pool._carry_out(pool._pool.placed(view.name, "node", 2.0))
    for view in pool.views:
        pool._carry_out(pool._pool.refused(view.name, error, nodes, 2.0))
    (view,) = pool.views
    assert (view.name, view.doing) == ("the next worker", "waiting")
    assert view.wait is not None
    assert view.wait.reason == str(error)
