"""The run loop on a real store with a scripted engine, and where replicas are placed."""

from __future__ import annotations

import io
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.cluster import retry
from persona_atlas.cluster.pool import assemble, row_count
from persona_atlas.cluster.pool.placement import Placement, Resources, place
from persona_atlas.cluster.pool.worker_loop import WorkerLoop, WorkerReport
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run.drive import drive
from persona_atlas.cluster.run.local import InProcessExecutor
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.status_reporter import StatusReporter
from persona_atlas.jobs.errors import InputError, TransientError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.ledger import Failure, Ledger, row_blocks_needed
from persona_atlas.jobs.scheduling.worker_load import WorkRequest
from persona_atlas.jobs.specs.spec_parts import PlacementSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt
from persona_atlas.storage.format.records import Manifest
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.run.commits import commit_unit, committed_units
from persona_atlas.storage.run.lease import acquire
from persona_atlas.workers.engine import CapturedRollout, EngineSettings
from rich.console import Console

from fakes import FakeEngine, small_plan, small_spec, vector_of
from local_executor import LocalExecutor
from stored_runs import begin

ARRAY = ("resid_post", "response_mean")
Commit = Callable[[Manifest], object]


@dataclass
class Driven:
    """What came of one start."""

    plan: Plan
    ledger: Ledger
    engine: FakeEngine
    run: Run

    @property
    def times_worked(self) -> Counter[str]:
        """How often the engine was asked for each unit."""
        unit_of = {address: unit.unit_id for unit in self.plan.units for address in unit.addresses()}
        return Counter(unit for call in self.engine.calls for unit in sorted({unit_of[address] for address in call}))


def drive_store(
    url: str,
    engine: FakeEngine,
    *,
    rollouts_per_assignment: int = 1,
    around: Callable[[Commit], Commit] = lambda commit: commit,
) -> Driven:
    """Start a driver on a store as a job does, with this process as its worker."""
    spec = small_spec(url)
    plan = small_plan(spec)
    location = open_location(url)
    committed = committed_units(location)
    with acquire(location, row_blocks_needed(plan, committed)) as lease:
        begin(location, plan, lease)
        ledger = Ledger(plan, committed, iter(lease.row_blocks), rollouts_per_assignment)
        unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, plan.layers, spec.sampling, spec.capture)
        settings = WorkerSettings(unused, 0, url, None, plan.rows_per_block, spec.store.mantissa_bits)
        executor = LocalExecutor(WorkerLoop(settings, "local", load=lambda *_: engine))
        executor.start()
        commit = around(lambda manifest: commit_unit(location, lease, manifest))
        drive(ledger, executor, commit, Progress(Console(stderr=True)))
        executor.close()
    return Driven(plan, ledger, engine, open_run(url))


def assert_stored_numbers_are_right(run: Run, num_rollouts: int) -> None:
    """Every stored vector is that of its own rollout, to float16's precision."""
    found = run.activations(layer="all")
    assert found.values.shape == (num_rollouts, 4, 16)
    columns = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
    for line, values_LD in zip(found.rollouts.to_pylist(), found.values, strict=True):
        address = RolloutAddress(*(line[name] for name in columns))
        np.testing.assert_allclose(values_LD, vector_of(address, ARRAY, 4, 16), rtol=2**-11)


@pytest.mark.parametrize("rollouts_per_assignment", [1, 7, 1000])
def test_every_unit_runs_once_and_its_numbers_are_stored(tmp_path: Path, rollouts_per_assignment: int):
    driven = drive_store(str(tmp_path / "run"), FakeEngine(), rollouts_per_assignment=rollouts_per_assignment)
    assert driven.times_worked == dict.fromkeys(driven.plan.by_id, 1)
    assert not driven.ledger.failed
    assert driven.run.completeness.is_complete
    assert_stored_numbers_are_right(driven.run, driven.plan.num_rollouts)


def test_a_call_that_fails_is_made_again_and_its_unit_committed_with_an_attempt_of_its_own(tmp_path: Path):
    driven = drive_store(str(tmp_path / "run"), FakeEngine(fail_on_calls=frozenset({2, 5})))
    assert sorted(driven.times_worked.values()) == [1] * 10 + [2] * 2
    assert sorted(driven.ledger.num_attempts.values()) == [1] * 10 + [2] * 2
    assert driven.run.completeness.is_complete
    rows = driven.run.index["row"].to_pylist()
    assert len(set(rows)) == len(rows)
    assert_stored_numbers_are_right(driven.run, driven.plan.num_rollouts)


def test_a_unit_that_always_fails_is_tried_three_times_and_reported_and_the_rest_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    driven = drive_store(str(tmp_path / "run"), FakeEngine(fail_personas=frozenset({"poet"})))
    poets = {unit_id for unit_id in driven.plan.by_id if ".poet." in unit_id}
    assert len(poets) == 2
    assert set(driven.ledger.failed) == poets
    for unit_id, times in driven.times_worked.items():
        assert times == (3 if unit_id in poets else 1)
    for unit_id in poets:
        assert driven.ledger.failed[unit_id].message == "scripted failure of poet."
        assert driven.ledger.failed[unit_id].attempt == 3
    assert driven.run.committed == set(driven.plan.by_id) - poets
    assert str(driven.run.completeness) == "10 of 12 units"
    assert_stored_numbers_are_right(driven.run, 30)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("is tried again") == 4
    assert told.err.count("is given up") == 2


def test_a_failing_unit_in_a_shared_batch_costs_its_mates_no_attempt(tmp_path: Path):
    engine = FakeEngine(fail_personas=frozenset({"poet"}))
    driven = drive_store(str(tmp_path / "run"), engine, rollouts_per_assignment=1000)
    for unit_id, attempts in driven.ledger.num_attempts.items():
        assert attempts == (3 if ".poet." in unit_id else 1)
    # All together, then each alone; the two poets twice more, alone.
    assert [len(call) for call in engine.calls] == [36] + [3] * 12 + [3] * 4
    assert_stored_numbers_are_right(driven.run, 30)


def test_a_second_start_does_what_is_missing_and_nothing_else(tmp_path: Path):
    url = str(tmp_path / "run")
    first = drive_store(url, FakeEngine(fail_personas=frozenset({"poet"})))
    kept = {path: path.read_bytes() for path in (tmp_path / "run" / "commits").iterdir()}
    second = drive_store(url, FakeEngine())
    assert set(second.times_worked) == set(first.ledger.failed)
    assert second.run.completeness.is_complete
    assert all(path.read_bytes() == data for path, data in kept.items())
    assert_stored_numbers_are_right(second.run, second.plan.num_rollouts)
    third = drive_store(url, FakeEngine())
    assert third.engine.calls == []


def test_a_commit_that_fails_in_passing_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    tries: Counter[str] = Counter()

    def shaky(commit: Commit) -> Commit:
        def try_to(manifest: Manifest) -> object:
            tries[manifest.unit_id] += 1
            if manifest.unit_id == "role.poet.pos.p0.b0" and tries[manifest.unit_id] <= 2:
                raise TransientError("the bucket is having a moment.", code="store_failed")
            return commit(manifest)

        return try_to

    driven = drive_store(str(tmp_path / "run"), FakeEngine(), around=shaky)
    assert tries.pop("role.poet.pos.p0.b0") == 3
    assert set(tries.values()) == {1}
    assert driven.times_worked == dict.fromkeys(driven.plan.by_id, 1)
    assert driven.run.completeness.is_complete
    assert capsys.readouterr().err.count("the bucket is having a moment.") == 2


def test_a_commit_whose_answer_was_lost_is_asked_again_and_counts_once(tmp_path: Path):
    lost: list[str] = []

    def forgetful(commit: Commit) -> Commit:
        def try_to(manifest: Manifest) -> object:
            made = commit(manifest)
            if not lost:
                lost.append(manifest.unit_id)
                raise TransientError("no answer.", code="store_failed")
            return made

        return try_to

    driven = drive_store(str(tmp_path / "run"), FakeEngine(), around=forgetful)
    assert driven.times_worked == dict.fromkeys(driven.plan.by_id, 1)
    assert_stored_numbers_are_right(driven.run, driven.plan.num_rollouts)


def test_a_commit_that_never_succeeds_ends_the_run_and_keeps_what_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(retry, "_LONGEST_WAIT_S", 0.0)
    url = str(tmp_path / "run")
    tries: Counter[str] = Counter()
    kept: list[str] = []

    def broken(commit: Commit) -> Commit:
        def try_to(manifest: Manifest) -> object:
            tries[manifest.unit_id] += 1
            if manifest.unit_id == "role.poet.pos.p0.b0":
                raise TransientError("the bucket is gone.", code="store_failed")
            made = commit(manifest)
            kept.append(manifest.unit_id)
            return made

        return try_to

    with pytest.raises(TransientError, match="the bucket is gone"):
        drive_store(url, FakeEngine(), around=broken)
    assert tries.pop("role.poet.pos.p0.b0") == retry.TRIES
    assert set(tries.values()) <= {1}
    assert open_run(url).committed == set(kept)
    assert drive_store(url, FakeEngine()).run.completeness.is_complete


def test_a_slow_commit_keeps_no_worker_waiting(tmp_path: Path):
    engine = FakeEngine()
    all_made = threading.Event()
    waited: list[bool] = []

    class Busy(FakeEngine):
        def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
            made = list(engine.generate(next_request))
            if len(engine.calls) == 12:
                all_made.set()
            yield from made

    def slow(commit: Commit) -> Commit:
        def try_to(manifest: Manifest) -> object:
            waited.append(all_made.wait(30))
            return commit(manifest)

        return try_to

    driven = drive_store(str(tmp_path / "run"), Busy(), around=slow)
    assert waited == [True] * 12
    assert_stored_numbers_are_right(driven.run, driven.plan.num_rollouts)


def test_a_unit_whose_objects_the_driver_does_not_see_is_made_again(tmp_path: Path):
    removed: list[str] = []

    def lossy(commit: Commit) -> Commit:
        def try_to(manifest: Manifest) -> object:
            if manifest.unit_id == "role.poet.pos.p0.b0" and manifest.attempt == 1:
                removed.append(manifest.blocks[0].path)
                (tmp_path / "run" / removed[0]).unlink()
            return commit(manifest)

        return try_to

    driven = drive_store(str(tmp_path / "run"), FakeEngine(), around=lossy)
    assert len(removed) == 1
    assert driven.times_worked == dict.fromkeys(driven.plan.by_id, 1) | {"role.poet.pos.p0.b0": 2}
    assert_stored_numbers_are_right(driven.run, driven.plan.num_rollouts)


def results_of(loop: WorkerLoop, number: int, requesting: list[int] | None = None) -> list[Manifest | Failure]:
    """Read the reports of a worker until it has answered so many units."""
    results: list[Manifest | Failure] = []
    while len(results) < number:
        report = loop.next_report()
        results += report.results
        if report.work_request is not None and requesting is not None:
            requesting.append(report.work_request.num_units)
    return results


class _Gated(FakeEngine):
    """Answers as it is asked, and one persona only when the gate is open."""

    def __init__(self, closed_to: str) -> None:
        super().__init__()
        self._closed_to = closed_to
        self.gate = threading.Event()

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for request in iter(next_request, None):
            if request.address.persona == self._closed_to:
                assert self.gate.wait(30)
            yield self._answer(request)


def test_a_unit_is_answered_when_it_is_done_and_not_with_its_assignment(tmp_path: Path):
    plan = small_plan(small_spec(str(tmp_path)))
    engine = _Gated(closed_to="poet")
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, plan.layers, plan.spec.sampling, plan.spec.capture)
    loop = WorkerLoop(WorkerSettings(unused, 0, str(tmp_path), None, 3, 10), "local", load=lambda *_: engine)
    names = ("role.pirate.pos.p0.b0", "role.poet.pos.p0.b0", "role.teacher.pos.p0.b0")
    attempts = [
        UnitAttempt(plan.by_id[name], plan.requests(plan.by_id[name]), 1, block) for block, name in enumerate(names)
    ]
    loop.take(attempts)
    first = results_of(loop, 1)
    assert [result.unit_id for result in first] == [names[0]]
    engine.gate.set()
    assert sorted(result.unit_id for result in results_of(loop, 2)) == sorted(names[1:])


def test_an_engine_that_prefetches_has_its_next_units_before_it_has_finished_the_last(tmp_path: Path):
    plan = small_plan(small_spec(str(tmp_path)))
    engine = _Gated(closed_to="poet")
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, plan.layers, plan.spec.sampling, plan.spec.capture)
    engine.prefetch = 1
    settings = WorkerSettings(unused, 0, str(tmp_path), None, 3, 10)
    loop = WorkerLoop(settings, "local", load=lambda *_: engine)
    unit = plan.by_id["role.poet.pos.p0.b0"]
    loop.take([UnitAttempt(unit, plan.requests(unit), 1, 0)])
    assert loop.next_report() == WorkerReport((), WorkRequest(1))
    engine.gate.set()
    assert [result.unit_id for result in results_of(loop, 1)] == [unit.unit_id]


class _Halfway(FakeEngine):
    """Answers one request, and the others when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for number, request in enumerate(iter(next_request, None)):
            assert number == 0 or self.gate.wait(30)
            yield self._answer(request)


def test_a_unit_that_takes_long_is_seen_to_get_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(row_count, "TELL_EVERY_S", 0.0)
    plan = small_plan(small_spec(str(tmp_path)))
    engine = _Halfway()
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, plan.layers, plan.spec.sampling, plan.spec.capture)
    executor = InProcessExecutor(WorkerSettings(unused, 0, str(tmp_path), None, 3, 10), load=lambda *_: engine)
    ledger = Ledger(plan, set(), iter(range(100)), rollouts_per_assignment=1)
    executor.start()
    executor.assign("local", ledger.next_assignment()[:1])
    while executor.views[0].num_rows == 0:
        assert executor.wait(10.0) == []
    assert executor.views[0].num_rows == 1
    shown = io.StringIO()
    progress = Progress(Console(file=shown, width=200))
    progress.rollouts(ledger, 1)
    progress.rollouts(ledger, 1)
    assert shown.getvalue() == "0 of 12 units; 1 of 36 rollouts are finished\n"
    reporter = StatusReporter()
    reporter.update(ledger, executor)
    assert reporter.rollouts_finished == 1
    engine.gate.set()
    while not (answers := executor.wait(10.0)):
        pass
    assert len(answers[0].manifests) == 1
    assert executor.views[0].num_rows == 0
    executor.close()


class _Reading(FakeEngine):
    """Takes all that waits before it answers anything, and answers when the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        requests = iter(list(iter(next_request, None)))
        assert self.gate.wait(30)
        yield from super().generate(lambda: next(requests, None))


def test_a_worker_requests_work_once_and_again_when_it_was_assigned_more(tmp_path: Path):
    plan = small_plan(small_spec(str(tmp_path)))
    engine = _Reading()
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, plan.layers, plan.spec.sampling, plan.spec.capture)
    loop = WorkerLoop(WorkerSettings(unused, 0, str(tmp_path), None, 3, 10), "local", load=lambda *_: engine)
    names = ("role.pirate.pos.p0.b0", "role.poet.pos.p0.b0", "role.teacher.pos.p0.b0")
    attempts = [
        UnitAttempt(plan.by_id[name], plan.requests(plan.by_id[name]), 1, block) for block, name in enumerate(names)
    ]
    loop.take(attempts[:2])
    assert loop.next_report() == WorkerReport((), WorkRequest(2))
    loop.take(attempts[2:])
    engine.gate.set()
    requesting: list[int] = []
    results = results_of(loop, 3, requesting)
    assert sorted(result.unit_id for result in results) == sorted(names)
    assert requesting == [3]


def test_a_worker_that_does_not_see_what_the_driver_wrote_loads_no_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(assemble, "_SENTINEL_PAUSES_S", (0.0,))
    spec = small_spec()
    unused = EngineSettings(Path("none"), "float32", "cpu", 1, 64, (0,), spec.sampling, spec.capture)
    settings = WorkerSettings(unused, 0, str(tmp_path / "mine"), None, 3, 10, sentinel="drivers/000001.json")
    loaded: list[str] = []
    loop = WorkerLoop(settings, "far", load=lambda settings, _: loaded.append(settings.store_url) or FakeEngine())
    with pytest.raises(InputError) as caught:
        loop.prepare()
    assert (caught.value.code, caught.value.field) == ("other_store", "store.url")
    assert str(tmp_path / "mine") in caught.value.message
    assert loaded == []
    with acquire(open_location(settings.store_url), 1):
        loop.prepare()
    assert loaded == [settings.store_url]


@pytest.mark.parametrize(
    ("asked", "resources", "expected"),
    [
        ({}, Resources(8, 0), Placement(1, "cpu", 8, 0, one_per_node=True)),
        ({}, Resources(1, 0), Placement(1, "cpu", 1, 0, one_per_node=True)),
        ({"replicas": 3}, Resources(8, 0), Placement(3, "cpu", 2, 0)),
        ({"replicas": 8}, Resources(8, 0), Placement(8, "cpu", 1, 0)),
        ({"replicas": 2, "threads": 3}, Resources(8, 0), Placement(2, "cpu", 3, 0)),
        ({"threads": 2}, Resources(8, 0), Placement(1, "cpu", 2, 0, one_per_node=True)),
        ({}, Resources(32, 4), Placement(4, "cuda", 8, 1)),
        ({"replicas": 2}, Resources(32, 4), Placement(2, "cuda", 16, 1)),
        ({"device": "cuda"}, Resources(16, 1), Placement(1, "cuda", 16, 1)),
        ({"device": "cuda", "threads": 1}, Resources(16, 2), Placement(2, "cuda", 1, 1)),
        ({"device": "cpu"}, Resources(16, 2), Placement(1, "cpu", 16, 0, one_per_node=True)),
        ({"device": "cpu", "replicas": 4}, Resources(16, 2), Placement(4, "cpu", 4, 0)),
        # A replica of several GPUs has all of them on one node; what is left over on a node is not used.
        ({"tensor_parallel": 2}, Resources(32, 4), Placement(2, "cuda", 16, 2)),
        ({"tensor_parallel": 2, "pipeline_parallel": 2}, Resources(32, 4), Placement(1, "cuda", 32, 4)),
        ({"tensor_parallel": 4}, Resources(96, 14, 32, 3, (6, 4, 4)), Placement(3, "cuda", 32, 4)),
        # Its stages may be on several nodes where no node has GPUs enough; each node has as many of them.
        (
            {"tensor_parallel": 8, "pipeline_parallel": 2},
            Resources(512, 32, 128, 4, (8, 8, 8, 8)),
            Placement(2, "cuda", 128, 8, num_nodes=2),
        ),
        (
            {"tensor_parallel": 4, "pipeline_parallel": 2, "replicas": 2, "threads": 8},
            Resources(512, 16, 128, 3, (8, 4, 4)),
            Placement(2, "cuda", 4, 4, num_nodes=2),
        ),
        (
            {"pipeline_parallel": 2},
            Resources(3, 0, 1, 3, cpus_by_node=(1, 1, 1)),
            Placement(1, "cpu", 1, 0, one_per_node=True, num_nodes=2),
        ),
        # On a CPU each of its processes has a core.
        ({"tensor_parallel": 2}, Resources(2, 0), Placement(1, "cpu", 2, 0, one_per_node=True)),
        ({"tensor_parallel": 2, "replicas": 2}, Resources(4, 0), Placement(2, "cpu", 2, 0)),
    ],
)
def test_replicas_are_laid_out_on_what_is_there(asked: dict[str, object], resources: Resources, expected: Placement):
    assert place(PlacementSpec.model_validate(asked), resources) == expected


@pytest.mark.parametrize(
    ("asked", "resources", "field", "code", "hint"),
    [
        ({"device": "cuda"}, Resources(8, 0), "placement.device", "no_gpu", "auto or cpu"),
        ({"replicas": 9}, Resources(8, 0), "placement.replicas", "too_many_replicas", "at most 8"),
        ({"replicas": 3}, Resources(64, 2), "placement.replicas", "too_many_replicas", "at most 2"),
        ({"threads": 9}, Resources(8, 0), "placement.threads", "too_many_threads", "at most 8"),
        ({"replicas": 3, "threads": 3}, Resources(8, 0), "placement.threads", "too_many_threads", "at most 2"),
        ({"tensor_parallel": 8}, Resources(64, 4), "placement.tensor_parallel", "replica_over_nodes", "at most 4"),
        (
            {"tensor_parallel": 8, "pipeline_parallel": 3},
            Resources(512, 20, 128, 3, (8, 8, 4)),
            "placement.pipeline_parallel",
            "replica_over_nodes",
            "at most 8 GPUs a replica, or add nodes with 8",
        ),
        (
            {"tensor_parallel": 16, "pipeline_parallel": 2},
            Resources(512, 32, 128, 4, (8, 8, 8, 8)),
            "placement.tensor_parallel",
            "replica_over_nodes",
            "more placement.pipeline_parallel, whose stages may be on several nodes",
        ),
        ({"tensor_parallel": 4, "replicas": 2}, Resources(8, 7), "placement.replicas", "too_many_replicas", "most 1"),
        ({"tensor_parallel": 4}, Resources(2, 0), "placement.tensor_parallel", "too_many_ranks", "fewer"),
        ({"tensor_parallel": 2, "threads": 1}, Resources(2, 0), "placement.threads", "too_few_threads", "at least 2"),
    ],
)
def test_what_is_not_there_is_refused(asked: dict[str, object], resources: Resources, field: str, code: str, hint: str):
    with pytest.raises(InputError) as caught:
        place(PlacementSpec.model_validate(asked), resources)
    assert (caught.value.field, caught.value.code) == (field, code)
    assert hint in str(caught.value.hint)
