"""A replica over two nodes without Ray: this process leads, another one follows, each with a stage of a tiny model."""

from __future__ import annotations

import importlib.util
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from persona_atlas.workers.engine import EngineSettings
from persona_atlas.workers.vllm.arguments import VllmOptions
from persona_atlas.workers.vllm.over_nodes.follower import follow
from persona_atlas.workers.vllm.over_nodes.lifeline import FollowerLifeline, LeaderLifeline
from persona_atlas.workers.vllm.over_nodes.node_group import NodeGroup, NodePlace
from persona_atlas.workers.vllm.ranks import end_this_process
from persona_atlas.workers.vllm.vllm_engine import VllmEngine

from conformance import assert_equal_to_plain
from requests_of import engine_settings, generate, requests_of
from tiny_families import N_LAYERS
from vllm_engines import plain_model
from vllm_families import save_vllm_family

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.timeout(400),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]

HERE = "127.0.0.1"
WITHIN_S = 10.0
OPTIONS = VllmOptions(max_num_seqs=8, max_num_batched_tokens=64, kv_cache_bytes=2**26)


def follower(settings: EngineSettings, group: NodeGroup) -> None:
    lifeline = FollowerLifeline(group.address, group.lifeline_port, group.secret, lambda _: end_this_process())
    follow(settings, NodePlace(group, 1, HERE), lifeline.loaded, OPTIONS)
    # Not by returning: vLLM would wait for its ranks first.
    end_this_process()


@contextmanager
def over_two_nodes(directory: Path) -> Iterator[tuple[VllmEngine, psutil.Process, threading.Event]]:
    """The engine that leads, the process that follows, and whether this one was to end with it."""
    is_lost = threading.Event()
    lifeline = LeaderLifeline(HERE, 1, lambda _: is_lost.set())
    group = NodeGroup.led_from(HERE, 2, lifeline.port, lifeline.secret)
    settings = replace(engine_settings(directory, layers=range(N_LAYERS)), pipeline_parallel=2, threads=1)
    process = multiprocessing.get_context("spawn").Process(target=follower, args=(settings, group))
    process.start()
    following = psutil.Process(process.pid)
    engine = None
    try:
        engine = VllmEngine(settings, OPTIONS, place=NodePlace(group, 0, HERE))
        lifeline.loaded()
        assert len(engine.ranks.pids) == 1
        yield engine, following, is_lost
    finally:
        lifeline.close()
        # By psutil here too: the exit status of a process is given once, and multiprocessing would wait for its own.
        _, alive = psutil.wait_procs([following], timeout=WITHIN_S)
        process.kill()
        if engine is not None:
            engine.close()
    # It ends when the process that leads closes its lifeline.
    assert not alive


def test_vectors_are_those_of_plain_passes_and_the_rest_ends_with_a_rank(tmp_path: Path):
    directory = save_vllm_family(tmp_path, "llama")
    with over_two_nodes(directory) as (engine, process, is_lost):
        rows = generate(engine, requests_of(12))
        assert_equal_to_plain(rows, plain_model(directory, engine))
        (last_rank,) = [child for child in process.children() if "Worker" in " ".join(child.cmdline())]
        last_rank.kill()
        _, alive = psutil.wait_procs([process], timeout=WITHIN_S)
        assert not alive
        # The process that leads ends when it hears this: vLLM would wait for ever for what the last stage hands on.
        assert is_lost.wait(WITHIN_S)
