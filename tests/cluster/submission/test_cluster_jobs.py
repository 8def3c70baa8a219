"""Jobs that are submitted to a cluster of three nodes through its dashboard, each with a fault.

Every command is a process that shares only address and token with the cluster. The package is uploaded, unless a test
says otherwise. After each fault every unit is committed once, ``verify`` passes, and no process of ours is left.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from persona_atlas import open_run
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.verification.verify import verify_run

from fault_jobs import by_make_faults
from ray_cluster import RayCluster, free_port
from tcp_switch import TcpSwitch

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SECRET = f"secret{secrets.token_hex(12)}"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with RayCluster(env=CREDENTIALS) as cluster:
        for count, name in enumerate(("a", "b", "c"), start=2):
            cluster.add(name, resources={"steady": 1})
            cluster.wait_for_nodes(count)
        yield cluster


class Laptop:
    """The machine on which commands are run."""

    def __init__(self, cluster: RayCluster, folder: Path, model: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self._model = model
        self.env = cluster.client_env | CREDENTIALS | {"RAY_API_SERVER_ADDRESS": cluster.address}

    def spec(self, store_url: str, *, names: str = "c*", **changes: object) -> Path:
        """Write a spec of many small units in small batches, so that a test can interrupt the job halfway."""
        counts = {"prompts": 1, "questions": 4}
        data: dict[str, object] = {
            "model": {"source": str(self._model)},
            "personas": {"roles": {"names": [names], **counts}, "default": counts},
            "sampling": {"max_new_tokens": 100},
            "placement": {"batch_tokens": 1600},
            "store": {"url": store_url},
        }
        path = self.folder / "job.yaml"
        path.write_text(yaml.safe_dump(data | changes))
        return path

    def run(self, *arguments: str | Path, status: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "persona_atlas.cluster.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
            cwd=self.folder,
            env=self.env | env,
        )
        assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def json(self, *arguments: str | Path, status: int = 0, **env: str) -> dict[str, Any]:
        return json.loads(self.run(*arguments, "--json", status=status, **env).stdout)

    def refused(self, *arguments: str | Path, **env: str) -> dict[str, Any]:
        return json.loads(self.run(*arguments, "--json", status=2, **env).stderr.splitlines()[-1])

    def submit(self, spec: Path, *options: str) -> str:
        return self.json("submit", spec, *options)["job_id"]

    def succeed(self, job_id: str) -> dict[str, Any]:
        """Wait for the end of a job, and check that it has succeeded."""
        view = self.json("status", job_id, "--watch")
        assert view["state"] == "SUCCEEDED", self.run("logs", job_id).stdout
        return view


@pytest.fixture
def laptop(cluster: RayCluster, tmp_path: Path, tiny_model_directory: Path) -> Laptop:
    return Laptop(cluster, tmp_path, tiny_model_directory)


def wait_for(what: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


def commits(store: Path) -> set[str]:
    return {path.name for path in (store / "commits").glob("*.json")}


def assert_whole(url: str, cluster: RayCluster, endpoint_url: str | None = None) -> None:
    """Check that every unit is there once, nothing is damaged, and no worker or driver is left."""
    found = verify_run(open_location(url, endpoint_url))
    assert found.is_sound, found.problems
    assert found.is_complete, found.missing
    run = open_run(url, endpoint_url)
    assert run.index.num_rows == run.record.num_rollouts == len(set(run.index["row"].to_pylist()))
    wait_for(lambda: not cluster.processes("ray::UnitActor") and not cluster.processes("ray::Driver"), 30)


def test_a_job_from_submission_to_report_with_no_secret_anywhere(cluster: RayCluster, laptop: Laptop, tmp_path: Path):
    store = tmp_path / "run"
    personas = {
        "roles": {"names": ["pirate", "poet"], "prompts": 1, "questions": 2},
        "default": {"prompts": 1, "questions": 2},
    }
    spec = laptop.spec(str(store), personas=personas)
    began = time.monotonic()
    job_id = laptop.submit(spec)
    assert time.monotonic() - began < 30
    assert job_id.startswith("run-")
    followed = laptop.run("logs", job_id, "--follow")
    assert "3 of 3 units are committed" in followed.stdout
    view = laptop.succeed(job_id)
    assert (view["units_done"], view["units_planned"]) == (3, 3)
    assert {"name": "reduction", "done": 1, "planned": 1} in view["stages"]
    assert (store / "report.html").is_file()
    listed = laptop.json("list")["jobs"]
    assert [job["state"] for job in listed if job["job_id"] == job_id] == ["SUCCEEDED"]
    assert_whole(str(store), cluster)
    # From the store alone, with no cluster to ask.
    assert laptop.json("status", store, RAY_API_SERVER_ADDRESS="http://127.0.0.1:1")["state"] == "SUCCEEDED"
    assert laptop.refused("cancel", job_id)["code"] == "job_over"
    # Resumed by its store, with the package that the nodes have.
    again = laptop.json("resume", store, "--code", "installed")["job_id"]
    assert laptop.succeed(again)["units_done"] == 3
    assert "0 of 3" not in laptop.run("logs", again).stdout
    assert len(list((store / "drivers").iterdir())) == 1, "a run that is whole needs no driver"
    places = [store, cluster.folder / "r"]
    texts = [json.dumps(cluster.get("/api/jobs/")), followed.stdout]
    for path in (path for place in places for path in place.rglob("*") if path.is_file()):
        texts.append(path.read_bytes().decode("latin-1"))
    assert len(texts) > 20
    assert not [text[:200] for text in texts if SECRET in text]


@by_make_faults
def test_cancel_frees_the_workers_and_resume_does_the_rest(cluster: RayCluster, laptop: Laptop, tmp_path: Path):
    store = tmp_path / "run"
    job_id = laptop.submit(laptop.spec(str(store), names="[cd]*"))
    assert laptop.refused("submit", tmp_path / "job.yaml")["code"] == "run_has_driver"
    wait_for(lambda: len(commits(store)) >= 3)
    began = time.monotonic()
    cancelling = subprocess.Popen(
        [sys.executable, "-m", "persona_atlas.cluster.cli", "cancel", job_id, "--json"],
        env=laptop.env,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: not cluster.processes("ray::UnitActor"), 60)
    # The command itself takes some seconds to start, more on a busy machine.
    assert time.monotonic() - began < 30
    out, _ = cancelling.communicate(timeout=60)
    assert json.loads(out)["state"] == "CANCELLED"
    kept = {name: (store / "commits" / name).read_bytes() for name in commits(store)}
    assert 3 <= len(kept) < 40
    assert laptop.json("status", job_id, status=1)["state"] == "CANCELLED"
    resumed = laptop.json("resume", job_id)["job_id"]
    assert resumed != job_id
    assert laptop.succeed(resumed)["units_done"] == 40
    assert all((store / "commits" / name).read_bytes() == record for name, record in kept.items())
    assert laptop.json("status", job_id)["state"] == "SUCCEEDED"
    assert_whole(str(store), cluster)


@by_make_faults
def test_a_node_that_dies_is_replaced_by_one_that_joins(cluster: RayCluster, laptop: Laptop, tmp_path: Path):
    store = tmp_path / "run"
    job_id = laptop.submit(laptop.spec(str(store), names="[cd]*"))
    wait_for(lambda: len(commits(store)) >= 3)
    cluster.kill("c")
    cluster.add("d", resources={"steady": 1})
    view = laptop.succeed(job_id)
    assert not view["failures"]
    assert_whole(str(store), cluster)


@by_make_faults
def test_a_driver_whose_node_dies_goes_on_elsewhere(cluster: RayCluster, laptop: Laptop, tmp_path: Path):
    store = tmp_path / "run"
    job_id = laptop.submit(laptop.spec(str(store)), "--driver-resource", "steady")
    wait_for(lambda: len(commits(store)) >= 3)
    cluster.kill(cluster.node_of("ray::Driver"))
    laptop.succeed(job_id)
    assert len(list((store / "drivers").iterdir())) == 2
    assert_whole(str(store), cluster)
    cluster.add("e")
    cluster.wait_for_nodes(4)


@pytest.mark.s3
@by_make_faults
def test_a_store_that_is_away_for_a_while_costs_nothing_but_time(
    cluster: RayCluster, laptop: Laptop, s3_endpoint: str, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
):
    url = f"s3://{s3_bucket}/{secrets.token_hex(6)}"
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    with TcpSwitch(s3_endpoint) as wire:
        spec = laptop.spec(url, store={"url": url, "endpoint_url": wire.url})
        job_id = laptop.submit(spec)
        location = open_location(url, s3_endpoint)
        wait_for(lambda: len(location.names("commits")) >= 3)
        wire.cut()
        time.sleep(12)
        wire.join()
        view = laptop.succeed(job_id)
        assert not view["failures"]
        assert_whole(url, cluster, s3_endpoint)
    assert SECRET not in laptop.run("logs", job_id).stdout


def test_bad_input_is_named(cluster: RayCluster, laptop: Laptop, tmp_path: Path):
    spec = laptop.spec(str(tmp_path / "run"))
    nowhere = f"http://127.0.0.1:{free_port()}"
    assert laptop.refused("submit", spec, "--address", nowhere)["code"] == "no_cluster"
    no_gpu = laptop.refused("submit", spec, "--set", "placement.device=cuda")
    assert (no_gpu["code"], no_gpu["field"]) == ("no_gpu", "placement.device")
    for setting, field in (("threads=2", "placement.threads"), (f"batch_tokens={2 * 10**9}", "model.source")):
        too_large = laptop.refused("submit", spec, "--set", f"placement.{setting}")
        assert (too_large["code"], too_large["field"]) == ("does_not_fit", field)
    assert laptop.refused("status", "no-such-job")["code"] == "no_job"
    assert laptop.refused("cancel", "no-such-job")["code"] == "no_job"
    wrong = tmp_path / "token"
    wrong.write_text("0" * 48)
    assert laptop.refused("list", RAY_AUTH_TOKEN_PATH=str(wrong))["code"] == "cluster_denied"
    assert not (tmp_path / "run").exists()
