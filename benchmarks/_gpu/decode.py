"""Generation on the device: what capturing costs, a decoding step against its floor, model.generate, the canary.

A step's floor is the time in which the weights of the layers and of the LM head, and the keys and values of all
rollouts, are read once at the measured copy bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from persona_atlas.jobs.specs.spec_parts import SamplingSpec
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.batching.admission import RunningRollout
from persona_atlas.workers.builtin.generation import Generation
from persona_atlas.workers.builtin.passes.registration import plain_attention
from persona_atlas.workers.engine import CapturedRollout

from _gpu.bench import Bench, median_of
from _gpu.model import make_requests, make_texts
from _gpu.prefill import NOTHING, no_capture
from _report import median_ratio

SAMPLING = {"temperature": 0.7, "top_p": 0.9}


def new_generation(bench: Bench, rows: int, *, captures: bool = True) -> Generation:
    """Start a stream of rollouts that all have full length, in a batch with room for a number of them.

    Args:
        bench: Its engine and sizes.
        rows: Rollouts of the batch.
        captures: Whether anything is captured.
    """
    engine, sizes = bench.engine, bench.sizes
    settings = replace(
        bench.settings,
        batch_tokens=rows * (sizes.prompt_tokens + sizes.new_tokens),
        sampling=SamplingSpec(**SAMPLING, max_new_tokens=sizes.new_tokens),
    )
    endless = replace(engine.loaded, stop_ids=frozenset())
    if captures:
        return engine.generation(settings, loaded=endless)
    return engine.generation(replace(settings, capture=NOTHING), capture=no_capture(), loaded=endless)


def generated(generation: Generation, asked: Sequence[RolloutRequest]) -> list[CapturedRollout]:
    """Run requests to their end.

    Args:
        generation: A stream.
        asked: The requests.
    """
    waiting = iter(asked)
    return list(generation.run(lambda: next(waiting, None)))


def requests_for(bench: Bench, count: int) -> list[RolloutRequest]:
    """Make requests for the model of a benchmark.

    Args:
        bench: Its engine and sizes.
        count: Number of requests.
    """
    return make_requests(bench.engine.renderer, count, bench.sizes.prompt_tokens)


def generation(bench: Bench) -> None:
    """Compare generation with capture and without: the same rollouts, in the same passes."""
    rows = bench.sizes.rows[-1]
    # More requests than the batch has room for, so that some join while others run.
    asked = requests_for(bench, rows + rows // 2)
    without, own = bench.timed(
        lambda: generated(new_generation(bench, rows, captures=False), asked),
        lambda: generated(new_generation(bench, rows), asked),
        repeats=2,
    )
    report, spent = bench.report, median_of(own)
    report.least("a batch that nobody has sized", bench.engine.batch_tokens, "tokens")
    report.least("generation with capture", len(asked) * bench.sizes.new_tokens / spent, "tokens/s")
    report.least("generation with capture, rollouts", len(asked) / spent, "rollouts/s")
    report.least("generation with capture against without", median_ratio(without, own), "ratio", bench.goal(0.99))


def decode(bench: Bench) -> None:
    """Compare decoding steps with their floor, and whole batches with ``model.generate``."""
    ours: dict[int, float] = {}
    theirs: dict[int, float] = {}
    generated(new_generation(bench, 2), requests_for(bench, 2))
    _generate(bench, requests_for(bench, 2))
    for rows in bench.sizes.rows:
        asked = requests_for(bench, rows)
        step_s, spent = _steps(bench, asked)
        limit = bench.goal(1.5) if rows >= 64 else None
        bench.report.most(f"decoding step of {rows} rollouts", step_s * 1e3, "ms")
        against = step_s / _floor_s(bench, rows)
        bench.report.most(f"decoding step of {rows} rollouts against its floor", against, "ratio", limit)
        ours[rows] = rows * bench.sizes.new_tokens / spent
        theirs[rows] = rows * bench.sizes.new_tokens / bench.seconds(lambda asked=asked: _generate(bench, asked))
        bench.report.least(f"{rows} rollouts against model.generate", ours[rows] / theirs[rows], "ratio")
    best, their_best = max(ours.values()), max(theirs.values())
    bench.report.least("best batch", best, "tokens/s")
    bench.report.least("model.generate at its best batch", their_best, "tokens/s")
    bench.report.least("best batch against model.generate at its best", best / their_best, "ratio")


def _steps(bench: Bench, asked: Sequence[RolloutRequest]) -> tuple[float, float]:
    """Time decoding steps of a full batch: their median, and all of the work, in seconds."""
    stream = new_generation(bench, len(asked))
    ends: list[float] = []
    next_pass = stream.next_pass

    def timed(joining: Sequence[RunningRollout]) -> list[CapturedRollout]:
        found = next_pass(joining)
        # The sampled tokens have been read, so the device has finished this pass.
        ends.append(time.perf_counter())
        return found

    stream.next_pass = timed
    spent = bench.seconds(lambda: generated(stream, asked))
    passes = [after - before for before, after in pairwise(ends)]
    # Without the passes in which prompts join, those that record, and those in which the first rollouts have ended.
    return median_of(passes[6 : 6 + bench.sizes.new_tokens // 2]), spent


def _floor_s(bench: Bench, rows: int) -> float:
    size = bench.sizes.model
    # The middle of the steps that are timed.
    positions = bench.sizes.prompt_tokens + bench.sizes.new_tokens // 2
    cache = rows * positions * size.kv_values_per_token * size.value_bytes
    return (size.step_bytes + cache) / bench.ceilings.bytes_per_s


def _generate(bench: Bench, asked: Sequence[RolloutRequest]) -> None:
    """Generate with ``model.generate``: all prompts are as long, so there is no padding."""
    engine, count = bench.engine, bench.sizes.new_tokens
    prompts = [engine.renderer.render(request.messages) for request in asked]
    ids_BT = torch.tensor(prompts, device=bench.device)
    with torch.inference_mode(), plain_attention(engine.model, engine.loaded.own_attention):
        engine.model.generate(
            input_ids=ids_BT,
            attention_mask=torch.ones_like(ids_BT),
            do_sample=True,
            top_k=0,
            pad_token_id=0,
            min_new_tokens=count,
            max_new_tokens=count,
            **SAMPLING,
        )


def canary(bench: Bench) -> None:
    """Measure what comparing one rollout costs, as a share of making those of which one is compared by default.

    The two rollouts of a worker's first unit are not counted.
    """
    engine, sizes, report = bench.engine, bench.sizes, bench.report
    one_in = bench.settings.capture.canary.one_in
    rows = sizes.rows[-1]
    asked = requests_for(bench, rows)
    made = generated(new_generation(bench, rows), asked)
    generating = bench.seconds(lambda: generated(new_generation(bench, rows), asked)) / rows
    texts = make_texts(sizes.model, sizes.texts, sizes.prompt_tokens + sizes.new_tokens)
    engine.capture(texts)
    reading = bench.seconds(lambda: engine.capture(texts)) / len(texts)
    (comparing,) = bench.timed(lambda: engine.canary(made[0]), repeats=5)
    spent = median_of(comparing)
    found = engine.canary(made[0])
    assert found is not None
    report.most("canary: one comparison", spent * 1e3, "ms")
    report.most("canary: share of generation", spent / one_in / generating, "ratio", bench.goal(0.03))
    report.most("canary: share of reading texts as long", spent / one_in / reading, "ratio", bench.goal(0.03))
    report.most("canary: relative error", max(found.relative_error_L), "ratio", engine.canary_limit)
