"""An engine that ends by itself: what was finished counts, the rest has no answer, and its processes are closed."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from persona_atlas.cluster.pool.worker_loop import WorkerLoop
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run.drive import drive
from persona_atlas.cluster.run.local import InProcessExecutor
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.errors import EngineDied
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.ledger import Ledger
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt
from persona_atlas.storage.format.records import Manifest
from persona_atlas.workers.engine import CapturedRollout, EngineSettings
from rich.console import Console

from fakes import FakeEngine, small_plan, small_spec


class Ending(FakeEngine):
    """Ends when it is asked for the poet."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for request in iter(next_request, None):
            if request.address.persona == "poet":
                raise EngineDied("a process of the model ended.", code="engine_died")
            yield self._answer(request)


def settings_of(plan: Plan, store: Path) -> WorkerSettings:
    spec = plan.spec
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, plan.layers, spec.sampling, spec.capture)
    return WorkerSettings(unused, 0, str(store), None, plan.rows_per_block, 10)


def test_a_worker_reports_what_it_finished_and_last_that_its_engine_has_ended(tmp_path: Path):
    plan = small_plan(small_spec(str(tmp_path)))
    engine = Ending()
    loop = WorkerLoop(settings_of(plan, tmp_path), "local", load=lambda *_: engine)
    names = ("role.pirate.pos.p0.b0", "role.poet.pos.p0.b0", "role.teacher.pos.p0.b0")
    loop.take(
        [UnitAttempt(plan.by_id[name], plan.requests(plan.by_id[name]), 1, block) for block, name in enumerate(names)]
    )
    results = []
    while True:
        report = loop.next_report()
        results += report.results
        if report.ended is not None:
            break
    assert [(type(result), result.unit_id) for result in results] == [(Manifest, names[0])]
    assert report.ended.code == "engine_died"
    assert engine.num_closed == 1


def test_the_only_worker_ends_the_job_after_what_it_finished_is_committed(tmp_path: Path):
    plan = small_plan(small_spec(str(tmp_path)))
    engine = Ending()
    executor = InProcessExecutor(settings_of(plan, tmp_path), load=lambda *_: engine)
    ledger = Ledger(plan, set(), iter(range(1000)), rollouts_per_assignment=plan.num_rollouts)
    committed: list[Manifest] = []
    executor.start()
    with pytest.raises(EngineDied):
        drive(ledger, executor, committed.append, Progress(Console(file=io.StringIO())))
    executor.close()
    assert 0 < len(committed) < len(plan.units)
    assert engine.num_closed >= 1


def test_an_idle_engine_is_closed_with_its_pool(tmp_path: Path):
    plan = small_plan(small_spec(str(tmp_path)))
    engine = FakeEngine()
    executor = InProcessExecutor(settings_of(plan, tmp_path), load=lambda *_: engine)
    executor.start()
    assert engine.num_closed == 0
    executor.close()
    assert engine.num_closed == 1


class Releasing(FakeEngine):
    """Has its worker released while it answers."""

    def __init__(self) -> None:
        super().__init__()
        self.release: Callable[[], None] = lambda: None
        self.closed_while_busy: set[int] = set()

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for captured in super().generate(next_request):
            self.release()
            self.closed_while_busy.add(self.num_closed)
            yield captured


def test_a_busy_engine_is_closed_by_its_own_thread(tmp_path: Path):
    plan = small_plan(small_spec(str(tmp_path)))
    engine = Releasing()
    loop = WorkerLoop(settings_of(plan, tmp_path), "local", load=lambda *_: engine)
    engine.release = loop.release
    unit = plan.units[0]
    loop.take([UnitAttempt(unit, plan.requests(unit), 1, 0)])
    while not loop.next_report().results:
        pass
    assert engine.closed_while_busy == {0}
    for _ in range(100):
        if engine.num_closed:
            break
        time.sleep(0.05)
    assert engine.num_closed == 1
