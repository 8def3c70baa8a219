"""Weights that are loaded layer by layer from the host's memory: tokens a second, share of the matrix rate, waiting.

Two shapes: a model of 32B parameters, in a third of the device's memory, and blocks of one of 70B. All layers of a
model have the same weights, so the host holds one layer; the device fetches each of them anew, as it would others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from persona_atlas.workers.builtin.streaming.reader import StreamedReader
from persona_atlas.workers.builtin.streaming.skeleton import Skeleton, make_skeleton, parameters_on_meta
from persona_atlas.workers.engine import EngineSettings

from _gpu.bench import Bench, median_of
from _gpu.model import ModelSize, config_of, make_settings, make_texts

_DEVIATION = 0.02

_TEXT_TOKENS = 512

_THIRD = 1 / 3
"""Part of the device's memory that the 32B-shaped model gets."""


class RepeatedLayer:
    """Random weights of one layer, which are those of every layer; see ``TensorSource``.

    Args:
        model: The model on the meta device.
    """

    def __init__(self, model: Any) -> None:
        self._shapes = dict(model.state_dict())
        self._made: dict[tuple[str, torch.Size], torch.Tensor] = {}
        # Made before anything is timed.
        for name in self._shapes:
            self.tensor(name)

    def names(self) -> Iterable[str]:
        """Return the names of all tensors."""
        return self._shapes.keys()

    def tensor(self, name: str) -> torch.Tensor:
        """Return the weights of that part of a layer."""
        like = self._shapes[name]
        key = (name.rsplit(".", 2)[-2], like.shape)
        if key not in self._made:
            made = torch.empty(like.shape, dtype=like.dtype)
            self._made[key] = made.fill_(1) if made.dim() == 1 else made.normal_(0, _DEVIATION)
        return self._made[key]

    def will_need(self, names: Iterable[str]) -> None:
        """Do nothing: the tensors are in memory."""

    def let_go(self, names: Iterable[str]) -> None:
        """Do nothing: the tensors stay in memory."""


def streaming(bench: Bench) -> None:
    """Measure both shapes."""
    sizes, report = bench.sizes, bench.report
    with _limited(bench, _THIRD):
        seconds, tokens, operations, reader = _measured(bench, sizes.streamed_model)
    name = f"streamed, {sizes.streamed_model.layer_parameters / 1e9:.0f}B parameters"
    loads = reader.stream.loads
    report.least(f"{name}: tokens at a time, as measured", reader.tokens_per_capture, "tokens")
    report.least(f"{name}: read", tokens / seconds, "tokens/s")
    report.least(f"{name}: against the matrix rate", operations / seconds / bench.ceilings.operations_per_s, "ratio")
    report.least(f"{name}: loading a layer from the host's memory", loads.bytes / loads.seconds / 1e9, "GB/s")
    report.most(f"{name}: weights on the device", reader.weight_bytes / 1e9, "GB")
    reader.close()
    del reader
    _blocks(bench, sizes.streamed_block)


def _blocks(bench: Bench, size: ModelSize) -> None:
    """Compare a block whose weights are fetched with one whose weights are there: of two layers, both are."""
    report = bench.report
    found: dict[int, float] = {}
    for layers in (2, 4):
        shape = replace(size, layers=layers)
        seconds, tokens, operations, reader = _measured(bench, shape)
        found[layers] = tokens * layers / seconds
        if layers == 4:
            rate = operations / seconds / bench.ceilings.operations_per_s
            report.least("streamed, one 70B-shaped block: read", found[layers], "tokens/s")
            report.least("streamed, one 70B-shaped block: against the matrix rate", rate, "ratio")
        reader.close()
    ratio = found[4] / found[2]
    report.least("streamed, one 70B-shaped block: against one that is held", ratio, "ratio", bench.goal(0.9))


def _measured(bench: Bench, size: ModelSize) -> tuple[float, int, int, StreamedReader]:
    """Read as many tokens as are walked at a time; return seconds, tokens, operations and the reader."""
    settings = replace(make_settings(size, bench.device, bench.scratch), batch_tokens=None)
    reader = StreamedReader(settings, lambda asked: _random_skeleton(size, asked))
    texts = make_texts(size, max(1, reader.tokens_per_capture // _TEXT_TOKENS), _TEXT_TOKENS)
    lengths = [len(text.token_ids) for text in texts]
    (seconds,) = bench.timed(lambda: reader.capture(texts), repeats=2)
    return median_of(seconds), sum(lengths), size.prefill_operations(lengths), reader


def _random_skeleton(size: ModelSize, settings: EngineSettings) -> tuple[Skeleton, Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(settings.directory, trust_remote_code=False)
    with parameters_on_meta():
        model: Any = AutoModelForCausalLM.from_config(
            config_of(size), dtype=getattr(torch, settings.dtype), trust_remote_code=False
        )
    return make_skeleton(model, RepeatedLayer(model), settings.device, str(Path(settings.directory))), tokenizer


@contextmanager
def _limited(bench: Bench, part: float) -> Iterator[None]:
    """Let this process have a part of the device's memory within the context."""
    if not bench.is_gpu:
        yield
        return
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(part)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
