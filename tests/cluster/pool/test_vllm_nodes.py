"""The nodes of a real Ray are asked whether they have vLLM before a replica is started on one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.pool.session import ray_session
from persona_atlas.cluster.pool.vllm_nodes import vllm_here, vllm_on_cluster, vllm_problem

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def nodes() -> Iterator[list[str]]:
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        added = [cluster.add_node(num_cpus=num_cpus).node_id for num_cpus in (2, 2, 1)]
        cluster.wait_for_nodes()
        with ray_session(cluster.address):
            yield added
    finally:
        cluster.shutdown()


def test_each_node_with_room_for_a_replica_is_asked_and_no_other(nodes: list[str]):
    found = vllm_on_cluster(Placement(1, "cpu", 2, 0))
    assert sorted(name.split()[1] for name in found.problems) == sorted(node[:8] for node in nodes[:2])
    here = vllm_problem("cpu")
    assert {problem.code if problem else "" for problem in found.problems.values()} == {here.code if here else ""}
    assert found.is_any_able == vllm_here(Placement(1, "cpu", 2, 0)).is_any_able


def test_where_no_node_has_room_nobody_is_asked(nodes: list[str]):
    del nodes
    assert vllm_on_cluster(Placement(1, "cuda", 2, 8)).problems == {}
