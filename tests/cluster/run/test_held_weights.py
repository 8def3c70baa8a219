"""Whether replicas hold their weights is settled for all that share a memory, before one of them is loaded."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.cluster.pool import assemble
from persona_atlas.cluster.pool.placement import Placement
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.cluster.run.backend import worker_settings
from persona_atlas.cluster.run.held_weights import weights_asked, weights_here
from persona_atlas.cluster.run.prepare import Job
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sizing.known_models import known_models
from persona_atlas.storage.locations.location import open_location
from persona_atlas.workers.models import memory

from fakes import small_plan, small_spec

NAME = "meta-llama/Llama-3.3-70B-Instruct"
FACTS = replace(known_models()[NAME], layer_parameters=855_655_424, outside_parameters=2_101_354_496)
TWO = Placement(2, "cpu", 4, 0)


def job_of(folder: Path, weights: str = "auto", **changes: Any) -> Job:
    asked: dict[str, Any] = {"model": {"source": NAME}, "generation": {"endpoint": "http://gpu:8000/v1"}} | changes
    plan = small_plan(small_spec(placement={"weights": weights, "replicas": 2}, **asked), facts=FACTS)
    return Job(plan, estimate(plan), folder, open_location(str(folder)), None, frozenset())


@pytest.fixture
def has_room(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_free(free: float) -> None:
        monkeypatch.setattr(memory, "free_memory_bytes", lambda: int(free))

    return set_free


def test_replicas_of_this_machine_hold_their_weights_only_if_the_memory_has_room_for_all(has_room: Any, tmp_path: Path):
    job = job_of(tmp_path)
    held, streamed = (estimate(job.plan, "builtin", weights).machine_bytes for weights in ("resident", "streamed"))
    has_room(2.1 * held)
    assert weights_here(job, "builtin", TWO) == "resident"
    has_room(1.9 * held)
    assert weights_here(job, "builtin", TWO) == "streamed"
    # One alone would fit.
    assert weights_here(job, "builtin", replace(TWO, replicas=1)) == "resident"
    settings = worker_settings(job, TWO, "", weights="streamed")
    assert (settings.weights, settings.streamed_bytes) == ("streamed", streamed)
    has_room(1.9 * streamed)
    with pytest.raises(InputError, match=r"2 replica\(s\) need") as caught:
        weights_here(job, "builtin", TWO)
    assert (caught.value.code, caught.value.field) == ("not_enough_memory", "placement.replicas")


@pytest.mark.parametrize("changes", [{"weights": "resident"}, {"generation": None}])
def test_replicas_that_may_not_stream_are_refused_as_ever(changes: dict[str, Any], has_room: Any, tmp_path: Path):
    job = job_of(tmp_path, **changes)
    has_room(2.1 * job.estimate.machine_bytes)
    assert weights_here(job, "builtin", TWO) == "resident"
    has_room(1.9 * job.estimate.machine_bytes)
    with pytest.raises(InputError, match=r"2 replica\(s\) need"):
        weights_here(job, "builtin", TWO)


def loaded_as(settings: WorkerSettings, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return how a worker on this machine would hold its weights."""

    def stop(settings: WorkerSettings) -> None:
        raise InterruptedError(settings.weights)

    monkeypatch.setattr(assemble, "engine_here", stop)
    with pytest.raises(InterruptedError) as caught:
        assemble.load_engine(settings, lambda _: None)
    return str(caught.value)


@pytest.mark.parametrize("threads_are_given", [True, False])
def test_a_worker_of_a_cluster_counts_the_replicas_that_its_node_may_have(
    threads_are_given: bool, has_room: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    job = job_of(tmp_path)
    placement = replace(TWO, node_decides=not threads_are_given)
    settings = worker_settings(job, placement, "", weights=weights_asked(job, "builtin"))
    has_room(1.9 * job.estimate.machine_bytes)
    assert loaded_as(settings.on_node(16, 0), monkeypatch) == "streamed"
    assert loaded_as(settings.on_node(7, 0), monkeypatch) == "resident"
    if threads_are_given:
        assert settings.on_node(16, 0).engine.threads == 4
    has_room(2.1 * job.estimate.machine_bytes)
    assert loaded_as(settings.on_node(16, 0), monkeypatch) == "resident"


def test_replicas_with_gpus_share_no_memory(tmp_path: Path):
    job = job_of(tmp_path)
    placement = Placement(2, "cuda", 4, 1)
    assert weights_here(job, "builtin", placement) == "auto"
    assert worker_settings(job, placement, "", weights="auto").on_node(16, 2).copies == 1
    # vLLM holds its weights, whatever the spec leaves open.
    assert weights_here(job, "vllm", placement) == "resident"


def test_a_gpu_that_torch_cannot_use_is_refused_before_its_memory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    # Put back afterwards, should loading set it.
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "")
    settings = worker_settings(job_of(tmp_path), Placement(1, "cuda", 1, 1), "", weights="auto")
    with pytest.raises(InputError, match="its torch cannot use it") as caught:
        assemble.load_engine(settings, lambda _: None)
    assert caught.value.code == "no_gpu"
