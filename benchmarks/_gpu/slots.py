"""The sums of the vLLM engine alone, without vLLM: one pass's update of all layers, against the bytes it must move.

Of every token and layer the hidden state is read once, in bf16; of every slot that a pass adds to, the sum is read and
written once, in float32. What the update takes beyond that, such as copies of the states in float32, shows as a ratio
above 1. It is timed as a worker calls it, and as a replayed CUDA graph, which leaves out what Python and launches cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import torch
from persona_atlas.jobs.poolings import Span
from persona_atlas.workers.vllm.inside import slot_table
from persona_atlas.workers.vllm.inside.slot_table import SlotTable
from persona_atlas.workers.vllm.inside.tracking import Stretch

from _gpu.bench import Bench, median_of

_SLOTS = 256
_BUFFERS_BYTES = 2**30
"""Bytes of hidden states that are in turns those of a layer: more than a cache holds, fewer than all layers take."""

Stretches = Mapping[Span, Sequence[Stretch]]


def slots(bench: Bench) -> None:
    """Time the update by a decoding step and by a pass over prompts."""
    size = bench.sizes
    rows = size.rows[-1]
    step: Stretches = {"response": [Stretch(slot, slot, slot + 1, is_open=True) for slot in range(rows)]}
    tokens = size.slot_prompt_tokens
    num_prompts = max(1, tokens // 256)
    length = tokens // num_prompts
    prompts: Stretches = {
        "prompt": [Stretch(slot, slot * length, (slot + 1) * length, False) for slot in range(num_prompts)]
    }
    cases: dict[str, tuple[Stretches, int, int]] = {
        f"{rows} decoded tokens": (step, rows, rows),
        f"{num_prompts * length} prompt tokens": (prompts, num_prompts * length, num_prompts),
    }
    for name, (stretches, num_tokens, touched) in cases.items():
        with torch.inference_mode():
            _measure(bench, name, stretches, num_tokens, touched)


def _measure(bench: Bench, name: str, stretches: Stretches, num_tokens: int, touched: int) -> None:
    layers, width = bench.sizes.slot_layers, bench.sizes.slot_width
    (span,) = stretches
    table = SlotTable(
        [("mean", span)], num_layers=layers, slots=_SLOTS, d_model=width, stop_ids=[0], device=bench.device
    )
    table.reset(range(_SLOTS))
    hidden = _hidden(bench, num_tokens)
    token_ids_T = torch.randint(1, 1000, (num_tokens,), device=bench.device)
    floor_s = layers * width * (2 * num_tokens + 8 * touched) / bench.ceilings.bytes_per_s

    def update() -> None:
        table.add(stretches, hidden, token_ids_T)

    update()
    _check(table, stretches, hidden)
    (eager,) = bench.timed(lambda: _times(update, 10), repeats=5)
    eager_s = median_of(eager) / 10
    bench.report.most(f"slots: {name}, as called", eager_s * 1e3, "ms")
    bench.report.most(f"slots: {name}, as called against the bytes it must move", eager_s / floor_s, "ratio")
    if not bench.is_gpu:
        return
    # Replayed within the context too, because the graph reads the index that it keeps.
    with _index_kept():
        replay = _graph(update)
        (replayed,) = bench.timed(lambda: _times(replay, 10), repeats=5)
    graph_s = median_of(replayed) / 10
    bench.report.most(f"slots: {name}, as a graph", graph_s * 1e3, "ms")
    bench.report.most(f"slots: {name}, as a graph against the bytes it must move", graph_s / floor_s, "ratio")


def _hidden(bench: Bench, num_tokens: int) -> list[torch.Tensor]:
    layers, width = bench.sizes.slot_layers, bench.sizes.slot_width
    buffers = max(2, min(layers, _BUFFERS_BYTES // (2 * num_tokens * width)))
    made = [torch.randn(num_tokens, width, device=bench.device, dtype=torch.bfloat16) for _ in range(buffers)]
    return [made[layer % buffers] for layer in range(layers)]


def _check(table: SlotTable, stretches: Stretches, hidden: Sequence[torch.Tensor]) -> None:
    """Compare the sums of the first and the last slot with sums of their own."""
    ((span, of_span),) = stretches.items()
    asked = [of_span[0], of_span[-1]]
    found = table.take([one.slot for one in asked]).values["mean", span]
    for layer in (0, len(hidden) - 1):
        for place, one in enumerate(asked):
            expected_D = hidden[layer][one.start : one.stop].double().sum(dim=0).cpu().numpy()
            np.testing.assert_allclose(found[layer, place], expected_D, rtol=1e-3, atol=1e-3)


def _times(work: Callable[[], None], count: int) -> None:
    for _ in range(count):
        work()


def _graph(update: Callable[[], None]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _times(update, 3)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        update()
    return graph.replay


@contextmanager
def _index_kept() -> Iterator[None]:
    """Let the table copy each index to the device once within the context: a graph cannot take memory of the host."""
    copy, kept = slot_table.to_device, dict[bytes, torch.Tensor]()

    def to_device(numbers: npt.NDArray[np.int64], device: torch.device) -> torch.Tensor:
        key = numbers.tobytes()
        if key not in kept:
            kept[key] = copy(numbers, device)
        return kept[key]

    slot_table.to_device = to_device
    try:
        yield
    finally:
        slot_table.to_device = copy
