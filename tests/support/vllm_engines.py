"""Engines inside vLLM for tests: on the CPU, with a small KV cache and small passes, so that prompts are split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from persona_atlas.workers.vllm.arguments import VllmOptions
from persona_atlas.workers.vllm.loading import beside_vllm
from persona_atlas.workers.vllm.vllm_engine import VllmEngine

from plain_forward import PlainModel
from requests_of import engine_settings
from tiny_families import N_LAYERS

SEQUENCES = 8
PASS_TOKENS = 64


@contextmanager
def vllm_engine(
    directory: Path,
    *,
    layers: Sequence[int] = range(N_LAYERS),
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    options: VllmOptions | None = None,
    **settings: Any,
) -> Iterator[VllmEngine]:
    """An engine that is closed at the end; keywords as for ``engine_settings``."""
    wanted = engine_settings(directory, layers=layers, **settings)
    options = options or VllmOptions(max_num_seqs=SEQUENCES, max_num_batched_tokens=PASS_TOKENS)
    if options.kv_cache_bytes is None:
        options = replace(options, kv_cache_bytes=2**26)
    engine = VllmEngine(replace(wanted, tensor_parallel=tensor_parallel, pipeline_parallel=pipeline_parallel), options)
    try:
        yield engine
    finally:
        engine.close()


def plain_model(directory: Path, engine: VllmEngine) -> PlainModel:
    """The reference, in a process in which an engine has loaded a model of the same class."""
    with beside_vllm(engine.vllm):
        return PlainModel(directory)
