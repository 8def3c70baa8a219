"""A model in another type than its files takes the memory of that type, and never that of both."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from persona_atlas.workers.builtin.loaded_model import load_model

from requests_of import engine_settings
from tiny_models import save_tokenizer

STATUS = Path("/proc/self/status")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 34 MB in float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    made = tmp_path_factory.mktemp("model")
    shape: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": 8,
    }
    with torch.random.fork_rng():
        LlamaForCausalLM(LlamaConfig(**shape, vocab_size=266)).save_pretrained(made)
    save_tokenizer(made)
    return made


def own_bytes() -> int:
    """Memory of this process that is no mapped file."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


@contextmanager
def watched() -> Iterator[list[int]]:
    """Keep the most memory that was taken within the context, as the only entry of a list."""
    begun, ended = own_bytes(), threading.Event()
    most = [0]

    def watch() -> None:
        while not ended.wait(0.001):
            most[0] = max(most[0], own_bytes() - begun)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells the memory that is no mapped file")
@pytest.mark.parametrize(("dtype", "share"), [("float32", 0.0), ("bfloat16", 0.5)])
def test_weights_are_mapped_or_take_the_memory_of_their_new_type(directory: Path, dtype: str, share: float):
    settings = engine_settings(directory, layers=(0,), dtype=dtype)
    # What is imported and made once does not count.
    load_model(settings)
    with watched() as most:
        model, _ = load_model(settings)
    stored_bytes = (directory / "model.safetensors").stat().st_size
    assert next(model.parameters()).dtype == getattr(torch, dtype)
    # Both types at once would be 1.5.
    assert most[0] < (share + 0.3) * stored_bytes
