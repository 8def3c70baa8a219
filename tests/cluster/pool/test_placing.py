"""Where Ray places the driver and the workers, and with how many threads: a head, and nodes that join later."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from persona_atlas.cluster.pool.placement import Placement, Resources, place
from persona_atlas.cluster.pool.ray_worker import UnitActor
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.submission import follow
from persona_atlas.jobs.specs.spec_parts import PlacementSpec
from persona_atlas.workers.models.limits import usable_cores

from fakes import FakeEngine
from flow_commands import wait_for
from requests_of import engine_settings

SUPPORT = Path(__file__).parents[2] / "support"
FROM_ZERO = Resources(num_cpus=0, num_gpus=0, cpus_per_node=None, num_nodes=0)


@pytest.mark.parametrize(
    ("asked", "now", "num_cpus", "num_gpus", "places", "threads"),
    [
        # Without nodes yet: one worker a node with all its cores, or one a GPU with its share of them.
        ({}, FROM_ZERO, 8, 0, 1, 8),
        ({"device": "cuda", "replicas": 4}, FROM_ZERO, 16, 2, 2, 8),
        ({"replicas": 4}, FROM_ZERO, 8, 0, 8, 2),
        ({"replicas": 1}, FROM_ZERO, 8, 0, 8, 8),
        # Nodes that join may be larger than those of the start.
        ({}, Resources(4, 0, 2, 2), 32, 0, 1, 32),
        ({}, Resources(16, 2, 8, 2), 64, 4, 4, 16),
        # What is asked for is kept.
        ({"threads": 1}, FROM_ZERO, 2, 0, 1, 1),
        ({"threads": 3}, Resources(4, 0, 4, 1), 32, 0, 1, 3),
        ({"threads": 2, "replicas": 2}, Resources(4, 0, 4, 1), 8, 0, 4, 2),
        # A replica of several GPUs, and one of several processes on a CPU.
        ({"tensor_parallel": 4}, Resources(32, 8, 32, 1, (8,)), 64, 8, 2, 32),
        ({"tensor_parallel": 4}, Resources(32, 8, 32, 1, (8,)), 64, 3, 0, 64),
        ({"tensor_parallel": 2}, FROM_ZERO, 8, 0, 1, 8),
        ({"tensor_parallel": 2}, FROM_ZERO, 1, 0, 0, 2),
    ],
)
def test_the_workers_of_a_node_and_their_threads(
    asked: dict[str, object], now: Resources, num_cpus: int, num_gpus: int, places: int, threads: int
):
    placement = place(PlacementSpec.model_validate(asked), now, may_grow=True)
    assert (placement.places_on(num_cpus, num_gpus), placement.threads_on(num_cpus, num_gpus)) == (places, threads)


def test_a_single_machine_has_one_replica_however_few_threads_it_takes():
    placement = place(PlacementSpec(threads=1), Resources(2, 0))
    assert (placement.replicas, placement.places_on(2, 0), placement.threads_on(2, 0)) == (1, 1, 1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(SUPPORT), prepend=os.pathsep)
        cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        try:
            ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


class Noting(UnitActor):
    """Writes down the threads that its settings give it, and loads no model."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        super().__init__(settings, name)
        folder = Path(settings.store_url)

        def load(found: WorkerSettings, _on_wait: object) -> FakeEngine:
            (folder / name).write_text(str(found.engine.threads))
            return FakeEngine()

        loop: Any = self._loop
        loop._load = load


class Waiting:
    """Stands for the actor that leads a replica over several nodes."""

    def __init__(self, _settings: WorkerSettings, _name: str) -> None: ...

    def node_id(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()


class Home:
    """Stands for the driver: says where it is."""

    def __init__(self, _job: object) -> None: ...

    def node_id(self) -> str:
        import ray

        return ray.get_runtime_context().get_node_id()


@pytest.mark.ray
@pytest.mark.slow
def test_a_worker_of_a_job_that_was_there_before_its_node_uses_all_its_cores(
    cluster: Any, tmp_path: Path, tiny_model_directory: Path
):
    from persona_atlas.cluster.pool.ray_executor import RayExecutor

    placement = place(PlacementSpec(), FROM_ZERO, may_grow=True)
    engine = engine_settings(tiny_model_directory, layers=(0,), max_new_tokens=8, poolings=("response_mean",))
    settings = WorkerSettings(engine, 0, str(tmp_path), None, 3, 10, placement=placement)
    executor = RayExecutor(settings, placement, actor_class=Noting)
    executor.wait(0.1)
    node = cluster.add_node(num_cpus=2)
    try:
        wait_for(lambda: not executor.wait(0.3) and bool(executor.ready))
        # Long enough for a second, for which the node has room.
        executor.wait(4.0)
        assert len(executor.views) == 1
        assert [path.read_text() for path in tmp_path.iterdir()] == [str(min(2, usable_cores()))]
    finally:
        executor.close()
        cluster.remove_node(node)


@pytest.mark.ray
@pytest.mark.slow
def test_a_replica_over_two_nodes_has_a_part_on_each_and_gives_back_all_of_it(
    cluster: Any, tmp_path: Path, tiny_model_directory: Path
):
    import ray
    from persona_atlas.cluster.pool.ray_replica import Replica, remove_groups_left_over

    # One node has room for both parts.
    nodes = [cluster.add_node(num_cpus=num_cpus) for num_cpus in (2, 1, 1)]
    cluster.wait_for_nodes()
    placement = Placement(1, "cpu", 1, 0, num_nodes=2)
    settings = WorkerSettings(engine_settings(tiny_model_directory, layers=(0,)), 0, str(tmp_path), None, 3, 10)

    def started(worker: str, *avoid: Any) -> tuple[Replica, set[str]]:
        left_out = tuple(node.node_id for node in avoid)
        replica = Replica.launch(ray.remote(Waiting), settings, worker, placement, left_out)
        return replica, set(ray.get([actor.node_id.remote() for actor in replica.parts], timeout=120))

    def is_free() -> bool:
        return ray.available_resources().get("CPU") == 4

    try:
        replica, used = started("worker-0")
        assert len(used) == 2
        assert not is_free()
        replica.kill()
        wait_for(is_free)
        # Nobody kills the second, whose driver is gone; a part of it is on neither of the nodes to avoid.
        _, used = started("worker-1", nodes[1])
        assert used == {nodes[0].node_id, nodes[2].node_id}
        remove_groups_left_over("another run")
        assert not is_free()
        remove_groups_left_over(settings.store_url)
        wait_for(is_free)
    finally:
        for node in nodes:
            cluster.remove_node(node)


@pytest.mark.ray
@pytest.mark.slow
def test_the_driver_is_on_the_head_whatever_else_is_free(cluster: Any, monkeypatch: pytest.MonkeyPatch):
    import ray

    monkeypatch.setattr(follow, "DriverActor", Home)
    module: Any = follow
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    jobs: Any = [SimpleNamespace(job_id=f"job-{number}", driver_resource="") for number in range(6)]
    drivers = [module._driver(job) for job in jobs]
    try:
        found = ray.get([driver.node_id.remote() for driver in drivers], timeout=120)
        assert found == [cluster.head_node.node_id] * len(jobs)
    finally:
        for driver in drivers:
            ray.kill(driver)
        for node in nodes:
            cluster.remove_node(node)


def test_a_placement_that_is_fixed_is_that_of_every_node():
    assert Placement(1, "cpu", 3, 0).threads_on(64, 0) == 3
