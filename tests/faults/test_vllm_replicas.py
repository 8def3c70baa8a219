"""kill -9 of a part of a replica of two ranks, in the middle of its units: the rest of it is gone within seconds.

Two nodes on this machine, a random model of 8 heads, vLLM on CPUs. The replica that dies is replaced, its units are
made again, and the store is sound and whole.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from persona_atlas.storage.format.layout import commit_path
from persona_atlas.storage.format.records import CommitRecord, parse_record
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run.commits import committed_units
from persona_atlas.workers.vllm.ranks import shared_memory_of

from ray_cluster import RayCluster
from vllm_families import save_vllm_family
from whole_run import verified

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

GONE_WITHIN_S = 10.0
SHARED = Path("/dev/shm")


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    with RayCluster(env={"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "HF_HUB_OFFLINE": "1"}) as cluster:
        for number, name in enumerate(("a", "b")):
            cluster.add(name, num_cpus=2)
            # One after the other: each looks for free ports.
            cluster.wait_for_nodes(2 + number, timeout_s=120)
        yield cluster


def write_job(folder: Path) -> Path:
    """Some thirty small units, a few at a time, so that there is a middle to be killed in."""
    model = save_vllm_family(
        folder / "model",
        "llama",
        hidden_size=256,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        eos_token_id=[2],
    )
    counts = {"prompts": 1, "questions": 24}
    job = {
        "model": {"source": str(model)},
        "personas": {"roles": {"names": ["c*"], **counts}, "default": counts},
        "sampling": {"max_new_tokens": 100},
        "placement": {"engine": "vllm", "tensor_parallel": 2, "replicas": 1, "batch_tokens": 1600},
        "store": {"url": str(folder / "run")},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


def wait_for(what: Callable[[], bool], timeout_s: float, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.1)


def replica_of(cluster: RayCluster) -> tuple[psutil.Process, list[psutil.Process]]:
    """The only actor, and its ranks."""
    (actor,) = cluster.processes("ray::UnitActor")
    return actor, [child for child in actor.children(recursive=True) if is_rank(child)]


def is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        command = " ".join(process.cmdline())
        return "VLLM::Worker" in command or "multiprocessing.spawn" in command
    return False


def kill_node(cluster: RayCluster) -> None:
    """Kill the node's processes but those of the replica, which have to notice themselves."""
    actor, ranks = replica_of(cluster)
    node = cluster.nodes.pop(cluster.node_of("ray::UnitActor"))
    own = {actor.pid, *(child.pid for child in actor.children(recursive=True)), *(rank.pid for rank in ranks)}
    for process in node.family():
        if process.pid not in own:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    node.process.wait(10)


def commit_of(location: Location, unit_id: str) -> CommitRecord:
    data = location.read(commit_path(unit_id))
    assert data is not None
    return parse_record(CommitRecord, data, commit_path(unit_id))


@pytest.mark.parametrize("victim", ["actor", "rank", "node"])
def test_a_replica_that_loses_a_part_is_gone_at_once_and_replaced(cluster: RayCluster, tmp_path: Path, victim: str):
    job, log = write_job(tmp_path), tmp_path / "log.txt"
    location = open_location(str(tmp_path / "run"))
    shared_before = set(SHARED.iterdir()) if SHARED.is_dir() else set()
    command = [sys.executable, "-m", "persona_atlas.cluster.cli", "run", str(job), "--address", cluster.gcs_address]
    with log.open("w") as output:
        run = subprocess.Popen(command, stdout=output, stderr=output, env=cluster.client_env)
    try:
        wait_for(lambda: len(committed_units(location)) >= 2, 300, log)
        actor, ranks = replica_of(cluster)
        assert len(ranks) == 2
        before = len(committed_units(location))
        if victim == "node":
            kill_node(cluster)
        else:
            {"actor": actor, "rank": ranks[0]}[victim].kill()
        _, alive = psutil.wait_procs([actor, *ranks], timeout=GONE_WITHIN_S)
        assert not alive
        wait_for(lambda: run.poll() is not None, 300, log)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, log.read_text()[-4000:]
    found = verified(location)
    assert found.is_sound
    assert found.is_complete
    assert found.units_planned > before
    assert set(found.engines) == {"vllm 0.32.0"}
    workers = {commit_of(location, name).manifest.worker for name in committed_units(location)}
    assert workers == {"worker-0", "worker-1"}
    assert "tried again" in log.read_text()
    # Where its Ray ends, a worker kills what could clean up; the machine is gone then, or is started again.
    if SHARED.is_dir() and victim != "node":
        mapped = shared_memory_of(psutil.pids())
        left = {path for path in set(SHARED.iterdir()) - shared_before - mapped if path.name.startswith("psm_")}
        assert not left
