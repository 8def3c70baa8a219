"""A device that runs out of memory: smaller batches and passes, and the same rollouts and vectors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from persona_atlas.jobs.specs.spec_parts import SamplingSpec
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import EngineSettings, StreamedRequest

from requests_of import engine_settings, generate, requests_of, texts_of


@pytest.fixture(scope="module")
def settings(tiny_model_directory: Path) -> EngineSettings:
    return engine_settings(tiny_model_directory, layers=(0, 2), batch_tokens=6000)


@contextmanager
def memory_for(engine: BuiltinEngine, tokens: int) -> Iterator[list[int]]:
    """Let passes of more tokens than there is memory for end as torch ends them; yields the sizes of those that ran."""
    ran: list[int] = []

    def check(_module: object, _args: object, output: object) -> None:
        resid = output[0] if isinstance(output, tuple) else output
        assert isinstance(resid, torch.Tensor)
        if resid.numel() // resid.shape[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        ran.append(resid.numel() // resid.shape[-1])

    handle = engine.loaded.decoder_layers[1].register_forward_hook(check)
    try:
        yield ran
    finally:
        handle.remove()


def test_rollouts_go_on_in_smaller_batches(settings: EngineSettings):
    engine = BuiltinEngine(settings)
    asked = requests_of(24)
    expected = generate(engine, asked)
    with memory_for(engine, 400) as ran:
        rows = generate(engine, asked)
    assert ran
    assert engine.batch_tokens < settings.batch_size
    for row, other in zip(rows, expected, strict=True):
        assert row.rollout == other.rollout
        for array, values in other.vectors_LD.items():
            np.testing.assert_allclose(row.vectors_LD[array], values, rtol=2e-4, atol=2e-5)
    # What was learnt is kept for the next requests.
    with memory_for(engine, 400):
        smaller = engine.batch_tokens
        generate(engine, asked)
        assert engine.batch_tokens == smaller


def test_a_rollout_that_does_not_fit_alone_is_an_error(settings: EngineSettings):
    engine = BuiltinEngine(settings)
    with memory_for(engine, 2), pytest.raises(torch.OutOfMemoryError):
        generate(engine, requests_of(3))


def test_other_errors_are_not_taken_for_exhausted_memory(settings: EngineSettings):
    engine = BuiltinEngine(settings)

    def fails(*_: object) -> None:
        raise RuntimeError("another error")

    handle = engine.loaded.decoder_layers[1].register_forward_hook(fails)
    try:
        with pytest.raises(RuntimeError, match="another error"):
            generate(engine, requests_of(6))
    finally:
        handle.remove()
    assert engine.batch_tokens == settings.batch_size


def test_whoever_follows_a_rollout_is_told_each_token_once(settings: EngineSettings):
    engine = BuiltinEngine(settings)
    told: dict[int, list[int]] = {}

    def follow(number: int) -> StreamedRequest:
        tokens = told.setdefault(number, [])

        def on_token(token: int) -> bool:
            tokens.append(token)
            return False

        sampling = SamplingSpec(temperature=1.0, top_p=1.0, max_new_tokens=12)
        return StreamedRequest(requests_of(16)[number], sampling, on_token)

    def run() -> dict[int, tuple[int, ...]]:
        waiting = iter(range(16))
        rows = engine.stream(lambda: None if (number := next(waiting, None)) is None else follow(number))
        content = {row.rollout.address: row.rollout for row in rows}
        return {
            number: content[request.address].response_token_ids[: content[request.address].num_content_tokens]
            for number, request in enumerate(requests_of(16))
        }

    expected = run()
    assert {number: tuple(tokens) for number, tokens in told.items()} == expected
    told.clear()
    passes = 0

    def fails_once(_module: object, _args: object, _output: object) -> None:
        nonlocal passes
        passes += 1
        if passes == 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    handle = engine.loaded.decoder_layers[1].register_forward_hook(fails_once)
    try:
        assert run() == expected
    finally:
        handle.remove()
    assert passes > 4
    assert {number: tuple(tokens) for number, tokens in told.items()} == expected


def test_texts_go_on_in_smaller_passes(settings: EngineSettings):
    engine = BuiltinEngine(replace(settings, batch_tokens=60_000))
    texts = texts_of(generate(engine, requests_of(40)))
    expected = engine.capture(texts)
    with memory_for(engine, 700) as ran:
        found = engine.capture(texts)
        assert ran
        engine.capture(texts)
    for text, other in zip(found, expected, strict=True):
        for array, values in other.vectors_LD[0].items():
            np.testing.assert_allclose(text.vectors_LD[0][array], values, rtol=2e-4, atol=2e-5)
    with memory_for(engine, 5), pytest.raises(torch.OutOfMemoryError):
        engine.capture(texts)
