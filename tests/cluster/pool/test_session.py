"""Sessions on a real Ray: one that is started on this machine, and one that joins nodes which others have started."""

from __future__ import annotations

import os
from typing import Any

import pytest
from persona_atlas.cluster.pool.session import ray_session

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def priority_of_a_worker() -> int:
    import ray

    remote: Any = ray.remote(num_cpus=0)
    return ray.get(remote(lambda: os.getpriority(os.PRIO_PROCESS, 0)).remote())


@pytest.fixture
def _without_a_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment as a user has it, to which the session may add."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.delenv("RAY_worker_niceness")


@pytest.mark.usefixtures("_without_a_niceness")
def test_workers_of_a_ray_that_is_started_here_have_the_priority_of_this_process():
    with ray_session(None):
        assert priority_of_a_worker() == os.getpriority(os.PRIO_PROCESS, 0)


@pytest.mark.usefixtures("_without_a_niceness")
def test_workers_on_nodes_of_others_have_the_priority_of_their_node():
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        with ray_session(cluster.address):
            assert priority_of_a_worker() == os.getpriority(os.PRIO_PROCESS, 0)
    finally:
        cluster.shutdown()
