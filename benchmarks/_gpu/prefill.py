"""Prefill capture against the same packed passes with nothing captured, and against the matrix rate."""

from __future__ import annotations

from dataclasses import replace

import torch
from persona_atlas.jobs.specs.spec_parts import CaptureSpec
from persona_atlas.workers.builtin.passes.capture import Capture
from persona_atlas.workers.builtin.reading import TextReader
from persona_atlas.workers.editing.interventions import Interventions

from _gpu.bench import Bench, median_of
from _gpu.model import make_texts
from _report import median_ratio

NOTHING = CaptureSpec.model_construct(hook_points=[], layers="all", poolings=[], mode="during_generation")
"""A capture without any array, which no spec may ask for."""


def no_capture() -> Capture:
    """Make hooks that observe nothing; passes run to their end."""
    return Capture({}, [], torch.nn.Identity())


def prefill(bench: Bench) -> None:
    """Compare reading with capture, reading without, and the matrix rate."""
    engine, sizes, report = bench.engine, bench.sizes, bench.report
    texts = make_texts(sizes.model, sizes.texts, sizes.text_tokens)
    lengths = [len(text.token_ids) for text in texts]
    settings = replace(bench.settings, batch_tokens=engine.batch_tokens, capture=NOTHING)
    interventions = Interventions(engine.loaded.decoder_layers, engine.loaded.d_model, bench.device)
    bare = TextReader(engine.loaded, no_capture(), settings, interventions)
    without, own = bench.timed(lambda: bare.read(texts), lambda: engine.capture(texts))
    operations = sizes.model.prefill_operations(lengths)
    rate = operations / median_of(own)
    report.least("prefill capture", sum(lengths) / median_of(own), "tokens/s")
    report.least("prefill capture against the same passes bare", median_ratio(without, own), "ratio", bench.goal(0.97))
    report.least(
        "prefill capture against the matrix rate", rate / bench.ceilings.operations_per_s, "ratio", bench.goal(0.6)
    )
    bare_rate = operations / median_of(without) / bench.ceilings.operations_per_s
    report.least("the same passes bare against the matrix rate", bare_rate, "ratio")
