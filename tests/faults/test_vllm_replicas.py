"""kill -9 of a part of a replica of two ranks, in the middle of its units: the rest of it is gone within seconds.

Nodes on this machine, a random model of 8 heads, vLLM on CPUs. The replica that dies is replaced, its units are made
again, and the store is sound and whole. A replica is on one node, or has a stage of its pipeline on each of two.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import persona_atlas
import psutil
import pytest
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.commits import committed_units

from ray_cluster import RayCluster
from replicas import (
    assert_gone,
    assert_no_memory_left,
    assert_whole,
    kill_node_of,
    nodes_of,
    ranks_of,
    running,
    shared_memory,
    wait_for,
    write_job,
)

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

LEADS, FOLLOWS = "ray::UnitActor", "ray::FollowerActor"


@pytest.mark.parametrize("victim", ["actor", "rank", "node"])
def test_a_replica_that_loses_a_part_is_gone_at_once_and_replaced(tmp_path: Path, victim: str):
    log, location = tmp_path / "log.txt", open_location(str(tmp_path / "run"))
    shared_before = shared_memory()
    with nodes_of("ab", num_cpus=2) as cluster, running(cluster, write_job(tmp_path, tensor_parallel=2), log) as run:
        wait_for(lambda: len(committed_units(location)) >= 2, 300, log)
        (actor,) = cluster.processes(LEADS)
        ranks = ranks_of(actor)
        assert len(ranks) == 2
        before = len(committed_units(location))
        if victim == "node":
            kill_node_of(cluster, LEADS)
        else:
            {"actor": actor, "rank": ranks[0]}[victim].kill()
        assert_gone([actor, *ranks])
        wait_for(lambda: run.poll() is not None, 300, log)
        assert run.returncode == 0, log.read_text()[-4000:]
        assert_whole(location, log, before=before, workers={"worker-0", "worker-1"})
        # Where its Ray ends, a worker kills what could clean up; the machine is gone then, or is started again.
        if victim != "node":
            assert_no_memory_left(shared_before)


def parts_of(cluster: RayCluster) -> dict[str, psutil.Process]:
    """The processes of the only replica, a stage on each of two nodes."""
    (leader,), (follower,) = cluster.processes(LEADS), cluster.processes(FOLLOWS)
    assert cluster.node_of(LEADS) != cluster.node_of(FOLLOWS)
    (first,), (last,) = ranks_of(leader), ranks_of(follower)
    return {"leader": leader, "first rank": first, "follower": follower, "last rank": last}


@pytest.mark.parametrize("victim", ["follower", "last rank", "node", "leader", "first rank"])
def test_a_replica_over_two_nodes_that_loses_a_part_is_gone_at_once_and_replaced(tmp_path: Path, victim: str):
    log, location = tmp_path / "log.txt", open_location(str(tmp_path / "run"))
    shared_before = shared_memory()
    # A spare node, for that which is killed.
    nodes = nodes_of("abc" if victim == "node" else "ab", num_cpus=1)
    with nodes as cluster, running(cluster, write_job(tmp_path, pipeline_parallel=2), log) as run:
        wait_for(lambda: len(committed_units(location)) >= 2, 300, log)
        parts = parts_of(cluster)
        before = len(committed_units(location))
        if victim == "node":
            kill_node_of(cluster, FOLLOWS)
        else:
            parts[victim].kill()
        assert_gone(list(parts.values()))
        wait_for(lambda: run.poll() is not None, 300, log)
        assert run.returncode == 0, log.read_text()[-4000:]
        assert_whole(location, log, before=before, workers={"worker-0", "worker-1"})
        if victim != "node":
            assert_no_memory_left(shared_before)
    if victim == "follower":
        # The numbers are those of plain passes of the whole model.
        again = persona_atlas.verify(tmp_path / "run", recompute=20, progress=False).recomputation
        assert again is not None
        assert (again.rollouts, again.deviations, again.left_out) == (20, (), {})


def test_a_replica_over_two_nodes_ends_with_its_driver(tmp_path: Path):
    log, location = tmp_path / "log.txt", open_location(str(tmp_path / "run"))
    with nodes_of("ab", num_cpus=1) as cluster:
        with running(cluster, write_job(tmp_path, pipeline_parallel=2), log):
            wait_for(lambda: bool(committed_units(location)), 300, log)
            parts = parts_of(cluster)
        # It was killed, and the cluster is left.
        assert_gone(list(parts.values()))
        wait_for(lambda: not cluster.processes(FOLLOWS), 10, log)
