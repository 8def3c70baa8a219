"""The pool of one that is this process: it asks for more, reports as units end, and stops when it is told."""

from __future__ import annotations

import gc
import io
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run.drive import drive
from persona_atlas.cluster.run.local import InProcessExecutor
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.ledger import Ledger
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt
from persona_atlas.storage.format.records import Manifest
from persona_atlas.workers.engine import CapturedRollout, EngineSettings
from rich.console import Console

from fakes import FakeEngine, small_plan


@pytest.fixture
def plan() -> Plan:
    return small_plan()


def executor_of(plan: Plan, store: Path, engine: FakeEngine) -> InProcessExecutor:
    spec = plan.spec
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, plan.layers, spec.sampling, spec.capture)
    settings = WorkerSettings(
        engine=unused,
        needed_bytes=0,
        store_url=str(store),
        endpoint_url=None,
        rows_per_block=plan.rows_per_block,
        mantissa_bits=10,
    )
    engines = [engine]
    return InProcessExecutor(settings, load=lambda *_: engines.pop())


def work(plan: Plan, executor: InProcessExecutor) -> tuple[Ledger, list[Manifest]]:
    ledger = Ledger(plan, set(), iter(range(1000)), rollouts_per_assignment=1)
    manifests: list[Manifest] = []
    executor.start()
    drive(ledger, executor, manifests.append, Progress(Console(file=io.StringIO())))
    return ledger, manifests


def test_every_unit_is_worked_once(plan: Plan, tmp_path: Path):
    engine = FakeEngine()
    ledger, manifests = work(plan, executor_of(plan, tmp_path, engine))
    assert sorted(manifest.unit_id for manifest in manifests) == sorted(plan.by_id)
    assert ledger.num_done == len(plan.units)
    assert sum(map(len, engine.calls)) == plan.num_rollouts


def test_a_unit_that_fails_is_tried_three_times_and_the_others_go_on(plan: Plan, tmp_path: Path):
    ledger, manifests = work(plan, executor_of(plan, tmp_path, FakeEngine(fail_personas=frozenset({"poet"}))))
    poets = [unit.unit_id for unit in plan.units if unit.persona == "poet"]
    assert sorted(ledger.failed) == sorted(poets)
    assert {failure.attempt for failure in ledger.failed.values()} == {3}
    assert len(manifests) == len(plan.units) - len(poets)


def test_nothing_is_handed_out_before_the_model_is_loaded(plan: Plan, tmp_path: Path):
    executor = executor_of(plan, tmp_path, FakeEngine())
    assert (executor.ready, executor.idle, executor.views[0].doing) == ([], [], "loading")
    executor.start()
    assert (executor.ready, executor.idle, executor.views[0].doing) == (["this-process"], ["this-process"], "idle")


class Thinking(FakeEngine):
    """Answers only once it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        self.go_on.wait(60)
        yield from super().generate(next_request)


def test_no_wait_for_a_busy_model_is_without_end_so_that_every_signal_is_heeded(plan: Plan, tmp_path: Path):
    engine = Thinking()
    executor = executor_of(plan, tmp_path, engine)
    executor.start()
    executor.assign("this-process", [UnitAttempt(plan.units[0], plan.requests(plan.units[0]), 1, 0)])
    assert executor.wait(0.05) == []
    engine.go_on.set()
    answers = executor.wait(30)
    while not answers:
        answers = executor.wait(30)
    assert [manifest.unit_id for answer in answers for manifest in answer.manifests] == [plan.units[0].unit_id]
    executor.close()


def test_a_closed_pool_lets_go_of_the_model_though_somebody_holds_the_pool(plan: Plan, tmp_path: Path):
    engine = FakeEngine()
    model = weakref.ref(engine)
    before = set(threading.enumerate())
    executor = executor_of(plan, tmp_path, engine)
    work(plan, executor)
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
    executor.close()
    del engine
    gc.collect()
    assert model() is None
    assert executor.views


def test_a_pool_is_gone_without_the_garbage_collector(plan: Plan, tmp_path: Path):
    executor = executor_of(plan, tmp_path, FakeEngine())
    pool = weakref.ref(executor)
    gc.collect()
    gc.disable()
    try:
        executor.start()
        del executor
        assert pool() is None
    finally:
        gc.enable()


def test_a_closed_pool_leaves_no_thread_behind(plan: Plan, tmp_path: Path):
    before = set(threading.enumerate())
    executor = executor_of(plan, tmp_path, FakeEngine())
    work(plan, executor)
    executor.close()
    for thread in set(threading.enumerate()) - before:
        thread.join(5)
        assert not thread.is_alive(), thread.name
