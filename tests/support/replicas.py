"""Jobs of replicas over several processes on a real Ray, and what the fault tests do to them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from persona_atlas.storage.format.layout import commit_path
from persona_atlas.storage.format.records import CommitRecord, parse_record
from persona_atlas.storage.locations.location import Location
from persona_atlas.storage.run.commits import committed_units
from persona_atlas.workers.vllm.ranks import shared_memory_of

from ray_cluster import RayCluster
from vllm_families import save_vllm_family
from whole_run import verified

GONE_WITHIN_S = 10.0
_SHARED = Path("/dev/shm")


@contextmanager
def nodes_of(names: str, num_cpus: int) -> Iterator[RayCluster]:
    """A cluster with a node for each letter."""
    with RayCluster(env={"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "HF_HUB_OFFLINE": "1"}) as cluster:
        for number, name in enumerate(names):
            cluster.add(name, num_cpus=num_cpus)
            # One after the other: each looks for free ports.
            cluster.wait_for_nodes(2 + number, timeout_s=120)
        yield cluster


def write_job(folder: Path, **placement: int) -> Path:
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
        "placement": {"engine": "vllm", "replicas": 1, "batch_tokens": 1600, **placement},
        "store": {"url": str(folder / "run")},
    }
    path = folder / "job.yaml"
    path.write_text(json.dumps(job))
    return path


@contextmanager
def running(cluster: RayCluster, job: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a job on a cluster; it is killed at the end if it has not ended."""
    command = [sys.executable, "-m", "persona_atlas.cluster.cli", "run", str(job), "--address", cluster.gcs_address]
    with log.open("w") as output:
        run = subprocess.Popen(command, stdout=output, stderr=output, env=cluster.client_env)
    try:
        yield run
    finally:
        run.kill()
        run.wait()


def wait_for(what: Callable[[], bool], timeout_s: float, log: Path) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.1)


def ranks_of(actor: psutil.Process) -> list[psutil.Process]:
    """The ranks that an actor has started."""
    return [child for child in actor.children(recursive=True) if _is_rank(child)]


def _is_rank(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        command = " ".join(process.cmdline())
        return "VLLM::Worker" in command or "multiprocessing.spawn" in command
    return False


def kill_node_of(cluster: RayCluster, actor: str) -> None:
    """Kill the node of an actor but for the actor and its ranks, which have to notice themselves."""
    (process,) = cluster.processes(actor)
    node = cluster.nodes.pop(cluster.node_of(actor))
    own = {process.pid, *(child.pid for child in process.children(recursive=True))}
    for process in node.family():
        if process.pid not in own:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    node.process.wait(10)


def assert_gone(processes: Sequence[psutil.Process]) -> None:
    """All of them end in time."""
    _, alive = psutil.wait_procs(processes, timeout=GONE_WITHIN_S)
    assert not alive


def assert_whole(location: Location, log: Path, *, before: int, workers: set[str]) -> None:
    """The store is sound and complete, all of it made by vLLM, and by these workers; more than was there."""
    found = verified(location)
    assert found.is_sound
    assert found.is_complete
    assert found.units_planned > before
    assert set(found.engines) == {"vllm 0.32.0"}
    assert {_commit_of(location, name).manifest.worker for name in committed_units(location)} == workers
    assert "tried again" in log.read_text()


def _commit_of(location: Location, unit_id: str) -> CommitRecord:
    data = location.read(commit_path(unit_id))
    assert data is not None
    return parse_record(CommitRecord, data, commit_path(unit_id))


def shared_memory() -> set[Path]:
    """The shared memory of this machine, as far as the system shows it."""
    return set(_SHARED.iterdir()) if _SHARED.is_dir() else set()


def assert_no_memory_left(before: set[Path]) -> None:
    """No shared memory is left that no process has mapped."""
    left = {path for path in shared_memory() - before - shared_memory_of(psutil.pids()) if path.name.startswith("psm_")}
    assert not left
