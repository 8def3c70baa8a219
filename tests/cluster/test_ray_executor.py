"""The pool of actors on a real Ray of this process: it grows to what there is, and losses become failures."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from persona_atlas.cluster.executor import Answer
from persona_atlas.cluster.session import Placement, ray_session
from persona_atlas.cluster.unit_task import WorkerSettings
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.ledger import Failure, Ledger
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.units import UnitOrder
from persona_atlas.storage.lease import acquire
from persona_atlas.storage.location import open_location
from persona_atlas.storage.records import Manifest

from fakes import small_plan, small_spec
from requests_of import engine_settings
from stored_runs import begin

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ONE_CORE = Placement(replicas=1, device="cpu", threads=1, num_gpus=0)


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    with ray_session(None):
        yield


@pytest.fixture
def settings(tmp_path: Path, tiny_model_directory: Path) -> WorkerSettings:
    engine = engine_settings(tiny_model_directory, layers=(0, 1, 2), max_new_tokens=8, poolings=("response_mean",))
    return WorkerSettings(engine, 0, str(tmp_path / "run"), None, 3, 10)


def worker_processes() -> list[psutil.Process]:
    """The actors of this process's own Ray."""
    family = psutil.Process().children(recursive=True)
    return [child for child in family if " ".join(child.cmdline()).startswith("ray::UnitActor")]


def orders_of(plan: Plan, ledger: Ledger, worker: str) -> tuple[UnitOrder, ...]:
    orders = ledger.next_assignment(worker)
    assert orders
    return orders


def answer_of(executor: Any, timeout_s: float = 60) -> Answer:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answers := executor.wait(0.5):
            assert len(answers) == 1
            return answers[0]
    raise AssertionError("no answer came")


def test_a_worker_that_dies_answers_with_failures_and_another_takes_its_place(settings: WorkerSettings):
    import ray
    from persona_atlas.cluster.ray_executor import RayExecutor

    url = settings.store_url
    plan = small_plan(small_spec(url))
    location = open_location(url)
    executor = RayExecutor(settings, ONE_CORE, replicas=1)
    try:
        executor.start()
        (view,) = executor.views
        assert (view.name, view.doing, view.units) == ("worker-0", "idle", ())
        assert view.node == ray.get_runtime_context().get_node_id()
        with acquire(location, 40) as lease:
            begin(location, plan, lease)
            ledger = Ledger(plan, set(), iter(lease.row_blocks))
            orders = orders_of(plan, ledger, "worker-0")
            executor.hand_out("worker-0", orders)
            answer = answer_of(executor)
            assert answer.worker == "worker-0"
            assert all(isinstance(result, Manifest) for result in answer.results)

            (worker,) = worker_processes()
            orders = orders_of(plan, ledger, "worker-0")
            worker.kill()
            executor.hand_out("worker-0", orders)
            answer = answer_of(executor)
            assert [type(result) for result in answer.results] == [Failure] * len(orders)
            assert executor.ready == []
            executor.start()
            assert executor.idle == ["worker-1"]
            assert executor.nodes_left_out == {}
    finally:
        executor.close()
    assert executor.views == []


def test_a_worker_is_offered_work_until_it_holds_two_batches_and_none_beside_a_retry(settings: WorkerSettings):
    from dataclasses import replace

    from persona_atlas.cluster.ray_executor import RayExecutor

    url = settings.store_url
    plan = small_plan(small_spec(url))
    location = open_location(url)
    executor = RayExecutor(settings, ONE_CORE, replicas=1, batch_rollouts=6)
    worker = ["worker-0"]
    try:
        executor.start()
        with acquire(location, 40) as lease:
            begin(location, plan, lease)
            ledger = Ledger(plan, set(), iter(lease.row_blocks))
            assert (executor.idle, executor.hungry, executor.ahead) == (worker, [], [])
            # Units of three rollouts; what has come back counts when it is waited for.
            for hungry, ahead in ((worker, worker), ([], worker), ([], worker), ([], [])):
                executor.hand_out("worker-0", orders_of(plan, ledger, "worker-0"))
                assert (executor.idle, executor.hungry, executor.ahead) == ([], hungry, ahead)
            answered = 0
            while answered < 4:
                answered += len(executor.wait(1.0))
            assert executor.idle == worker
            (order,) = orders_of(plan, ledger, "worker-0")
            executor.hand_out("worker-0", [replace(order, attempt=2, is_suspect=True)])
            assert (executor.idle, executor.hungry, executor.ahead) == ([], [], [])
    finally:
        executor.close()


def test_an_idle_worker_s_death_is_noticed_and_costs_no_unit_an_attempt(settings: WorkerSettings):
    from persona_atlas.cluster.ray_executor import RayExecutor

    executor = RayExecutor(settings, ONE_CORE)
    try:
        executor.start()
        deadline = time.monotonic() + 60
        while len(executor.ready) < (os.cpu_count() or 1) and time.monotonic() < deadline:
            executor.wait(0.5)
        assert len(executor.views) == (os.cpu_count() or 1), "left out, replicas are as many as there is room for"
        before = set(executor.ready)
        worker_processes()[0].kill()
        while before <= set(executor.ready) and time.monotonic() < deadline:
            for answer in executor.wait(0.5):
                assert answer.results == ()
        assert len(before - set(executor.ready)) == 1
    finally:
        executor.close()


def test_a_model_that_no_worker_can_load_ends_the_job_with_its_own_error(settings: WorkerSettings):
    from dataclasses import replace

    from persona_atlas.cluster.ray_executor import RayExecutor

    executor = RayExecutor(replace(settings, needed_bytes=10**15), ONE_CORE, replicas=1)
    try:
        with pytest.raises(InputError) as caught:
            executor.start()
        assert caught.value.code == "not_enough_memory"
    finally:
        executor.close()
