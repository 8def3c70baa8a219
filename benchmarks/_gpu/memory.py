"""Memory: what ``plan`` says a replica needs against the measured peak, and what happens when there is too little."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from persona_atlas.jobs.model_facts import ModelFacts
from persona_atlas.jobs.plan import make_plan
from persona_atlas.jobs.sizing.estimate import Estimate, device_bytes, estimate
from persona_atlas.jobs.sources.load import load_source
from persona_atlas.jobs.specs.spec import make_spec

from _gpu.bench import Bench
from _gpu.decode import generated, new_generation, requests_for
from _gpu.model import make_texts


def memory(bench: Bench) -> None:
    """Compare planned and measured memory of generation and of reading; then run out of it, and go on.

    Raises:
        AssertionError: Memory that should not have been enough was.
    """
    sizes = bench.sizes
    rows = sizes.rows[-1]
    asked = requests_for(bench, rows)
    texts = make_texts(sizes.model, sizes.texts, sizes.text_tokens)
    planned = planned_bytes(bench, rows)
    works: dict[str, tuple[float, Callable[[], object]]] = {
        "generation": (planned["generation"], lambda: generated(new_generation(bench, rows), asked)),
        "reading": (planned["reading"], lambda: bench.engine.capture(texts)),
    }
    for name, (plan, work) in works.items():
        peak, reserved = _peak_bytes(bench, work)
        bench.report.most(f"memory of {name}: peak", peak / 1e9, "GB")
        bench.report.most(f"memory of {name}: peak that torch held", reserved / 1e9, "GB")
        bench.report.least(f"memory of {name}: peak against planned", peak / plan, "ratio", bench.goal(0.9))
        bench.report.most(f"memory of {name}: peak against planned", peak / plan, "ratio", bench.goal(1.1))
    _run_out(bench)


def planned_bytes(bench: Bench, rows: int) -> dict[str, float]:
    """Return the bytes that ``plan`` says a replica needs to generate, and to read texts.

    The plan guesses how many rollouts a batch has by the length of their texts; the sums are those of ``rows`` here.

    Args:
        bench: Its sizes.
        rows: Rollouts of a batch.
    """
    figures = planned(bench, rows)
    figures = replace(figures, capture_bytes=figures.capture_bytes * rows // figures.rows_per_batch)
    return {
        "generation": device_bytes(figures, 1),
        "reading": device_bytes(replace(figures, cache_bytes=0), 1),
    }


def planned(bench: Bench, rows: int) -> Estimate:
    """Estimate a job with the model and the batch of the benchmark.

    Args:
        bench: Its sizes.
        rows: Rollouts of a batch.
    """
    sizes = bench.sizes
    size = sizes.model
    # Memory is asked about, not the length of real prompts, for which the small model has no room.
    data: dict[str, Any] = {
        "model": {"source": str(bench.settings.directory), "dtype": size.dtype},
        "personas": {"roles": {"names": ["pirate"], "prompts": 1, "questions": 1, "samples": rows}},
        "sampling": {"max_new_tokens": sizes.new_tokens},
        "placement": {
            "engine": "builtin",
            "device": bench.device,
            "batch_tokens": max(64, rows * (sizes.prompt_tokens + sizes.new_tokens)),
        },
        "store": {"url": str(bench.scratch / "store")},
    }
    facts = ModelFacts(
        n_layers=size.layers,
        d_model=size.width,
        num_parameters=sum(one.numel() for one in bench.engine.model.parameters()),
        kv_values_per_token=size.kv_values_per_token,
        dtype=size.dtype,
        family="llama",
        max_context=8192,
        fingerprint="",
    )
    spec = make_spec(data)
    return estimate(make_plan(spec, load_source(spec), facts))


def _peak_bytes(bench: Bench, work: Callable[[], object]) -> tuple[int, int]:
    """Return the most bytes in use and held by torch during some work; on a CPU what the process grew by, twice."""
    model = sum(one.numel() * one.element_size() for one in bench.engine.model.parameters())
    if bench.is_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        work()
        bench.finish()
        return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()
    # Writing 5 resets the highest resident size of the process.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    work()
    grown = model + _status("VmHWM") - before
    return grown, grown


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{name}:")).split()[1])


def _run_out(bench: Bench) -> None:
    """Generate with too little memory, report the error with which the batch ends, and generate again with enough.

    The engine does not shrink its batch yet: whoever runs it gets the error, and the units of the batch have failed.
    """
    few = requests_for(bench, bench.sizes.rows[0])
    many = requests_for(bench, bench.sizes.rows[-1])
    before = generated(new_generation(bench, len(few)), few)
    held = torch.cuda.memory_allocated() if bench.is_gpu else 0
    ended = ""
    with _little_memory(bench):
        try:
            generated(new_generation(bench, len(many)), many)
        except (RuntimeError, MemoryError) as error:
            ended = type(error).__name__
    if not ended:
        raise AssertionError("a batch that needs more memory than there is was generated")
    if bench.is_gpu:
        gc.collect()
        torch.cuda.empty_cache()
        left = torch.cuda.memory_allocated() - held
        bench.report.most("memory that an exhausted batch leaves in use", left / 1e6, "MB", 100.0)
    after = generated(new_generation(bench, len(few)), few)
    same = [row.rollout for row in before] == [row.rollout for row in after]
    bench.report.least(f"rollouts are the same after a batch that ended with {ended}", float(same), "ratio", 1.0)


@contextmanager
def _little_memory(bench: Bench) -> Iterator[None]:
    """Leave a gigabyte of the device to this process within the context; on a CPU, let a layer ask for too much."""
    if bench.is_gpu:
        torch.cuda.empty_cache()
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_reserved() + 2**30) / total))
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
        return
    # Limiting the process's memory would end threads of libraries too; torch refuses this as it refuses any other.
    layer = bench.engine.loaded.decoder_layers[-1]
    handle = layer.register_forward_hook(lambda *_: torch.empty(2**50, dtype=torch.uint8))
    try:
        yield
    finally:
        handle.remove()
