"""The pool of actors on a real Ray of three nodes: it follows the cluster; whatever a worker does, no unit is lost."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.cluster.pool.executor import Answer
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.pool.ray_map import map_in_ray_tasks, mapper_here
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run.drive import drive
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.jobs.errors import InputError, JobError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling import worker_health
from persona_atlas.jobs.scheduling.ledger import Failure, Ledger, row_blocks_needed
from persona_atlas.jobs.work.units import UnitAttempt
from persona_atlas.storage.derived.reduction import ARRAYS
from persona_atlas.storage.format.layout import driver_path
from persona_atlas.storage.format.records import Manifest
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.commits import commit_unit
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.verification.verify import verify_run
from rich.console import Console

from fakes import small_plan, small_spec
from faulty_workers import GO, Fault
from requests_of import engine_settings
from stored_runs import begin, small_run

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONE_CORE = Placement(replicas=1, device="cpu", threads=1, num_gpus=0)
SUPPORT = Path(__file__).parents[2] / "support"


class Nodes:
    """A head without cores and two nodes of one core each, which this process has joined."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.a, self.b = (self.cluster.add_node(num_cpus=1) for _ in range(2))
        self.cluster.wait_for_nodes()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    from persona_atlas.cluster.pool.ray_environment import prepare_ray_environment

    prepare_ray_environment()
    import ray

    with pytest.MonkeyPatch.context() as patch:
        # The workers find their fakes where this process does.
        patch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
        nodes = Nodes()
        try:
            ray.init(nodes.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield nodes
        finally:
            ray.shutdown()
            nodes.cluster.shutdown()


@pytest.fixture
def settings(tmp_path: Path, tiny_model_directory: Path) -> WorkerSettings:
    engine = engine_settings(tiny_model_directory, layers=(0, 1, 2), max_new_tokens=8, poolings=("response_mean",))
    return WorkerSettings(engine, 0, str(tmp_path / "run"), None, 3, 10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


def pool(settings: WorkerSettings, fault: Fault | None = None, **how: Any) -> Any:
    from persona_atlas.cluster.pool.ray_executor import RayExecutor

    if fault is not None:
        how["actor_class"] = fault.actor_class()
    return RayExecutor(settings, how.pop("placement", ONE_CORE), **how)


def worker_processes() -> list[psutil.Process]:
    """The actors of this process's own Ray."""
    family = psutil.Process().children(recursive=True)
    return [child for child in family if " ".join(child.cmdline()).startswith(("ray::UnitActor", "ray::Faulty"))]


def attempts_of(ledger: Ledger, worker: str) -> tuple[UnitAttempt, ...]:
    attempts = ledger.next_assignment(worker)
    assert attempts
    return attempts


def wait_until(executor: Any, what: Callable[[], bool], timeout_s: float = 90) -> None:
    """Turn the pool over until something holds; no answer may come meanwhile."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, executor.views
        assert not executor.wait(0.3)


def answer_of(executor: Any, timeout_s: float = 60) -> Answer:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answers := executor.wait(0.5):
            assert len(answers) == 1
            return answers[0]
    raise AssertionError("no answer came")


def plan_of(settings: WorkerSettings, names: str) -> Plan:
    """A unit of each role of these names and of the default."""
    counts = {"prompts": 1, "questions": 3}
    personas = {"roles": {"names": names.split(), **counts}, "default": counts}
    return small_plan(small_spec(settings.store_url, personas=personas))


def drive_pool(settings: WorkerSettings, names: str, fault: Fault) -> tuple[Ledger, dict[str, str]]:
    """Work a plan as a job does; the store must be sound, and hold each unit that was not given up once."""
    plan = plan_of(settings, names)
    location = open_location(settings.store_url)
    with acquire(location, row_blocks_needed(plan, ())) as lease:
        executor = pool(replace(settings, sentinel=driver_path(lease.generation)), fault)
        try:
            begin(location, plan, lease)
            ledger = Ledger(plan, set(), iter(lease.row_blocks))
            executor.start()
            wait_until(executor, lambda: len(executor.ready) == 2)
            drive(ledger, executor, lambda m: commit_unit(location, lease, m), Progress(Console(stderr=True)))
            left_out = executor.nodes_left_out
        finally:
            executor.close()
    found = verify_run(location)
    assert found.is_sound, found.problems
    assert ledger.committed | set(ledger.failed) == set(plan.by_id)
    assert set(found.missing) == set(ledger.failed)
    return ledger, left_out


def test_a_worker_that_dies_answers_with_failures_and_another_takes_its_place(nodes: Nodes, settings: WorkerSettings):
    url = settings.store_url
    plan = small_plan(small_spec(url))
    location = open_location(url)
    executor = pool(settings, replicas=1)
    try:
        executor.start()
        (view,) = executor.views
        assert (view.name, view.doing, view.units) == ("worker-0", "idle", ())
        assert view.node in (nodes.a.node_id, nodes.b.node_id)
        with acquire(location, 40) as lease:
            begin(location, plan, lease)
            ledger = Ledger(plan, set(), iter(lease.row_blocks))
            attempts = attempts_of(ledger, "worker-0")
            executor.assign("worker-0", attempts)
            answer = answer_of(executor)
            assert answer.worker == "worker-0"
            assert all(isinstance(result, Manifest) for result in answer.results)

            (worker,) = worker_processes()
            attempts = attempts_of(ledger, "worker-0")
            worker.kill()
            executor.assign("worker-0", attempts)
            answer = answer_of(executor)
            assert [type(result) for result in answer.results] == [Failure] * len(attempts)
            assert executor.ready == []
            executor.start()
            assert executor.idle == ["worker-1"]
            assert executor.nodes_left_out == {}
    finally:
        executor.close()
    assert executor.views == []


@pytest.mark.usefixtures("nodes")
def test_a_closed_pool_leaves_its_cores_to_the_tasks_of_a_reduction(settings: WorkerSettings, tmp_path: Path):
    import ray

    executor = pool(settings, replicas=2)
    try:
        executor.start()
        wait_until(executor, lambda: len(executor.ready) == 2)
        assert ray.available_resources().get("CPU", 0) == 0
    finally:
        executor.close()
    expected = reduce_run(small_run(str(tmp_path / "here")))
    # With a core held by a worker, only one of two tasks could run; with both, none ever would.
    assert mapper_here() is map_in_ray_tasks
    found = reduce_run(small_run(str(tmp_path / "there")), mapper=mapper_here())
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


@contextmanager
def doomed(settings: WorkerSettings, folder: Path) -> Iterator[tuple[Any, tuple[UnitAttempt, ...]]]:
    """A worker that has been handed a whole plan, and dies over the poet when GO is there and all else is answered."""
    plan = plan_of(settings, "pirate poet teacher")
    location = open_location(settings.store_url)
    executor = pool(settings, Fault(folder, "dies_later", persona="poet"), replicas=1)
    try:
        executor.start()
        with acquire(location, 40) as lease:
            begin(location, plan, lease)
            ledger = Ledger(plan, set(), iter(lease.row_blocks), rollouts_per_assignment=plan.num_rollouts)
            attempts = attempts_of(ledger, "worker-0")
            executor.assign("worker-0", attempts)
            yield executor, attempts
    finally:
        executor.close()


def results_of(executor: Any, number: int) -> list[Manifest | Failure]:
    results: list[Manifest | Failure] = []
    deadline = time.monotonic() + 60
    while len(results) < number and time.monotonic() < deadline:
        results += [result for answer in executor.wait(0.5) for result in answer.results]
    return results


def test_what_a_worker_answered_before_it_died_counts(nodes: Nodes, settings: WorkerSettings, folder: Path):
    del nodes
    with doomed(settings, folder) as (executor, attempts):
        results = results_of(executor, len(attempts) - 1)
        assert [type(result) for result in results] == [Manifest] * (len(attempts) - 1)
        (folder / GO).touch()
        (failure,) = results_of(executor, 1)
    assert isinstance(failure, Failure)
    assert failure.unit_id == "role.poet.pos.p0.b0"


def test_what_a_worker_reported_before_it_died_counts_though_it_is_read_after(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    import ray

    del nodes
    with doomed(settings, folder) as (executor, attempts):
        wait_until(executor, lambda: executor.requesting == ["worker-0"])
        (outstanding,) = [reference for reference, call in executor._calls.items() if call.kind == "next_report"]
        assert ray.wait([outstanding], timeout=60)[0]
        family = worker_processes()
        (folder / GO).touch()
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        results = results_of(executor, len(attempts))
    assert isinstance(results[0], Manifest)
    assert isinstance(results[-1], Failure)
    assert sorted(result.unit_id for result in results) == sorted(attempt.unit.unit_id for attempt in attempts)


def test_a_worker_that_requests_work_does_so_until_it_is_assigned_some(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    del nodes
    ledger = Ledger(small_plan(small_spec(settings.store_url)), set(), iter(range(9)))
    executor = pool(settings, Fault(folder, "hangs"), replicas=1)
    try:
        executor.start()
        assert (executor.idle, executor.requesting, executor.num_workers) == (["worker-0"], [], 1)
        executor.assign("worker-0", attempts_of(ledger, "worker-0"))
        assert (executor.idle, executor.requesting) == ([], [])
        wait_until(executor, lambda: executor.requesting == ["worker-0"])
        executor.assign("worker-0", attempts_of(ledger, "worker-0"))
        assert executor.requesting == []
    finally:
        executor.close()


def test_a_worker_of_a_suspect_asks_in_vain(nodes: Nodes, settings: WorkerSettings, folder: Path):
    del nodes
    ledger = Ledger(small_plan(small_spec(settings.store_url)), set(), iter(range(9)))
    executor = pool(settings, Fault(folder, "hangs"), replicas=1)
    try:
        executor.start()
        (attempt,) = attempts_of(ledger, "worker-0")
        executor.assign("worker-0", [replace(attempt, number=2, is_suspect=True)])
        (worker,) = executor._pool.workers.by_name.values()
        wait_until(executor, lambda: worker.load.wants_work)
        assert (executor.idle, executor.requesting) == ([], [])
    finally:
        executor.close()


def test_a_model_that_no_worker_can_load_ends_the_job_with_its_own_error(nodes: Nodes, settings: WorkerSettings):
    del nodes
    executor = pool(replace(settings, needed_bytes=10**15))
    try:
        with pytest.raises(InputError) as caught:
            executor.start()
        assert caught.value.code == "not_enough_memory"
    finally:
        executor.close()


def test_the_pool_follows_nodes_and_deaths_that_cost_no_unit_an_attempt(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    executor = pool(settings, Fault(folder, "nothing"))
    try:
        executor.start()
        wait_until(executor, lambda: len(executor.ready) == 2)
        third = nodes.cluster.add_node(num_cpus=1)
        wait_until(executor, lambda: len(executor.ready) == 3)
        before = set(executor.ready)
        nodes.cluster.remove_node(third, allow_graceful=False)
        wait_until(executor, lambda: len(executor.ready) == 2)
        (gone,) = before - set(executor.ready)
        assert gone not in executor.ready
        before = set(executor.ready)
        worker_processes()[0].kill()
        wait_until(executor, lambda: len(executor.ready) == 2 and set(executor.ready) != before)
    finally:
        executor.close()


def test_workers_that_cannot_even_begin_on_one_node_are_asked_for_ever_less_often(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    fault = Fault(folder, "cannot_begin", node=nodes.a.node_id)
    executor = pool(settings, fault)
    try:
        executor.start()
        wait_until(executor, lambda: len(fault.notes()) == 1)
        began = time.monotonic()
        wait_until(executor, lambda: len(fault.notes()) == 3)
        assert time.monotonic() - began > 2
        assert len(executor.ready) == 1
    finally:
        executor.close()


def test_a_poison_unit_is_given_up_after_three_workers_and_the_rest_is_done(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    del nodes
    fault = Fault(folder, "dies", persona="poet")
    ledger, left_out = drive_pool(settings, "pirate poet pilot", fault)
    assert list(ledger.failed) == ["role.poet.pos.p0.b0"]
    assert ledger.failed["role.poet.pos.p0.b0"].attempt == 3
    assert len(fault.notes()) == len(set(fault.notes())) == 3, "three different workers"
    assert left_out == {}


def test_a_node_whose_workers_die_again_and_again_is_left_out(nodes: Nodes, settings: WorkerSettings, folder: Path):
    fault = Fault(folder, "dies", node=nodes.a.node_id, pace=3, enough=3)
    ledger, left_out = drive_pool(settings, "c*", fault)
    assert ledger.failed == {}
    assert list(left_out) == [nodes.a.node_id]
    assert "3 workers died on it" in left_out[nodes.a.node_id]
    assert len(fault.notes()) == 3


def test_what_was_on_a_node_that_goes_is_innocent_and_the_node_is_not_blamed(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    third = nodes.cluster.add_node(num_cpus=1)
    fault = Fault(folder, "hangs", node=third.node_id)
    plan = plan_of(settings, "pirate poet pilot")
    location = open_location(settings.store_url)
    executor = pool(settings, fault)
    try:
        executor.start()
        wait_until(executor, lambda: len(executor.ready) == 3)
        (worker,) = [view.name for view in executor.views if view.node == third.node_id]
        with acquire(location, 40) as lease:
            begin(location, plan, lease)
            ledger = Ledger(plan, set(), iter(lease.row_blocks))
            attempts = attempts_of(ledger, worker)
            executor.assign(worker, attempts)
            wait_until(executor, lambda: bool(fault.notes()))
            nodes.cluster.remove_node(third, allow_graceful=False)
            answer = answer_of(executor)
        assert answer.worker == worker
        assert [isinstance(result, Failure) and result.is_worker_fault for result in answer.results] == [True] * len(
            attempts
        )
        assert executor.nodes_left_out == {}
    finally:
        executor.close()


def test_a_worker_that_fails_every_unit_at_once_does_not_eat_the_queue(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    fault = Fault(folder, "fails", node=nodes.a.node_id, pace=3, enough=15)
    ledger, _ = drive_pool(settings, "[cd]*", fault)
    assert ledger.failed == {}
    assert len(set(fault.notes())) > 1, "it was replaced"


def test_a_worker_that_hangs_is_replaced_and_its_units_are_done_by_another(
    nodes: Nodes, settings: WorkerSettings, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(worker_health, "SILENCE_S", 2.0)
    fault = Fault(folder, "hangs", node=nodes.a.node_id)
    ledger, _ = drive_pool(settings, "pirate poet pilot", fault)
    assert ledger.failed == {}
    assert fault.notes()


def test_a_node_that_looks_at_another_disk_is_left_out_before_it_works_anything(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    elsewhere = Fault(folder, "other_disk", node=nodes.a.node_id)
    location = open_location(settings.store_url)
    with acquire(location, 1) as lease:
        told = replace(settings, sentinel=driver_path(lease.generation))
        executor = pool(told, elsewhere)
        try:
            executor.start()
            wait_until(executor, lambda: bool(executor.nodes_left_out))
            assert list(executor.nodes_left_out) == [nodes.a.node_id]
            assert str(folder / "elsewhere") in executor.nodes_left_out[nodes.a.node_id]
        finally:
            executor.close()
        executor = pool(told, Fault(folder, "other_disk"))
        try:
            with pytest.raises(InputError) as caught:
                executor.start()
        finally:
            executor.close()
        assert (caught.value.code, caught.value.field) == ("other_store", "store.url")
    assert not (folder / "elsewhere").exists()


def test_a_second_job_waits_for_the_places_of_the_first_however_long(
    nodes: Nodes, settings: WorkerSettings, folder: Path
):
    del nodes
    first, second = (pool(settings, Fault(folder, "nothing"), load_timeout_s=3.0) for _ in range(2))
    seen: list[set[str]] = []

    def tick() -> None:
        seen.append({view.doing for view in second.views})
        if time.monotonic() > began + 8:
            first.close()

    try:
        first.start()
        wait_until(first, lambda: len(first.ready) == 2)
        began = time.monotonic()
        second.start(tick)
        assert second.ready
        assert {"waiting"} in seen
    finally:
        first.close()
        second.close()


def test_a_place_that_is_nowhere_is_not_waited_for_forever(nodes: Nodes, settings: WorkerSettings):
    del nodes
    executor = pool(settings, placement=replace(ONE_CORE, threads=64), load_timeout_s=2.0)
    try:
        with pytest.raises(JobError) as caught:
            executor.start()
        assert (caught.value.code, caught.value.field) == ("no_worker", "placement")
    finally:
        executor.close()
