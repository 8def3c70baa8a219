"""A small random model with an axis, behind a real server in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from persona_atlas.analysis.axis_source import AxisModel, AxisSource
from persona_atlas.cluster.serving.app import ServerSettings
from persona_atlas.cluster.serving.live_model import LiveModel
from persona_atlas.cluster.serving.placed_reply import Placing
from persona_atlas.cluster.serving.run_server import StoppableServer, listen_on, server_of
from persona_atlas.storage.derived.reductions import Reduction
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.chat.spans import load_renderer

from requests_of import engine_settings
from tiny_families import D_MODEL, N_LAYERS, save_tiny_family

LAYER = 2
NORM = 20.0


def tiny_axis() -> AxisSource:
    """Make an axis of a random model, with projections around 0 and personas whose activations have a known norm."""
    draw = np.random.default_rng(5)
    axis_LD = draw.standard_normal((N_LAYERS, D_MODEL))
    mean_LD = axis_LD * NORM / np.linalg.norm(axis_LD, axis=1, keepdims=True)
    projections_NL = draw.normal(0, 4, (200, N_LAYERS))
    reduction = Reduction(
        reduction_id="tiny",
        layers=tuple(range(N_LAYERS)),
        role_names=(),
        trait_names=(),
        facts={"hook_point": "resid_post", "pooling": "response_mean"},
        personas=(("default", "assistant_default", "pos"),),
        axis=axis_LD.astype(np.float32),
        mean=mean_LD[None].astype(np.float32),
        variance=np.zeros((1, N_LAYERS, D_MODEL), np.float32),
        count=np.array([10]),
        projections=projections_NL.astype(np.float32),
        threshold_labels=("p0.25", "p0.5"),
        floor_on_axis=np.percentile(projections_NL, [75, 50], axis=0).astype(np.float32),
    )
    return AxisSource.of(reduction, AxisModel("tiny/llama", N_LAYERS, D_MODEL), "runs/tiny")


def tiny_live_model(directory: Path, *, batch_tokens: int = 100_000, endless: bool = False) -> LiveModel:
    """Save a random Llama in a directory, and load it with ``tiny_axis``; ``endless``: no token ends a response."""
    save_tiny_family(directory, "llama")
    settings = engine_settings(directory, layers=(LAYER,), poolings=("response_mean",), batch_tokens=batch_tokens)
    engine = BuiltinEngine(settings)
    if endless:
        engine.loaded = replace(engine.loaded, stop_ids=frozenset())
    axis = tiny_axis()
    sizes = (N_LAYERS, D_MODEL, engine.loaded.max_context)
    renderer = load_renderer(directory).renderer
    return LiveModel("llama", engine, engine.loaded.decode, renderer, sizes, axis, Placing(axis, LAYER))


@contextmanager
def serving_model(model: LiveModel, settings: ServerSettings) -> Iterator[tuple[str, StoppableServer]]:
    """Serve a model in a thread while the block lasts; gives the base URL of its API."""
    listening = listen_on("127.0.0.1", 0)
    server = server_of(model, settings)
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", server
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"
