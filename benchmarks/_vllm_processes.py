"""Time vLLM with and without capture, and with and without a cap, each in a process of its own.

Only one vLLM fits into a process. Both processes have their model loaded all the time, and work in turns. Responses
are greedy, so that both give the same tokens: a CPU takes no seeds.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from persona_atlas.jobs.interventions import Cap, Direction, Intervention
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.engine import EngineSettings, TokenisedText

_CAPPED = 8
"""Layers of the cap whose cost is measured."""


@dataclass(frozen=True)
class Timed:
    """A task that was done.

    Attributes:
        seconds: The time that it took.
        tokens: Response tokens that were generated; 0 for reading.
        texts: The finished conversations; empty for reading.
    """

    seconds: float
    tokens: int = 0
    texts: tuple[TokenisedText, ...] = ()


class VllmProcess:
    """A process with one vLLM. A context manager.

    Args:
        settings: What to load and how to run it.
        captures: Whether it captures.
    """

    def __init__(self, settings: EngineSettings, *, captures: bool) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        # Not a daemon: vLLM starts processes of its own where a model has several ranks.
        self._process = context.Process(target=_serve, args=(theirs, settings, captures))
        self._process.start()
        theirs.close()

    def __enter__(self) -> VllmProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(30)
        self._process.kill()

    def generate(self, asked: Sequence[RolloutRequest]) -> Timed:
        """Answer requests."""
        return self._do("generate", tuple(asked))

    def read(self, texts: Sequence[TokenisedText]) -> Timed:
        """Capture finished conversations in prefill passes."""
        return self._do("read", tuple(texts))

    def _do(self, task: str, what: tuple[Any, ...]) -> Timed:
        self._pipe.send((task, what))
        return self._pipe.recv()


def _serve(pipe: Connection, settings: EngineSettings, captures: bool) -> None:
    from persona_atlas.workers.vllm.arguments import VllmOptions
    from persona_atlas.workers.vllm.vllm_engine import VllmEngine

    engine = VllmEngine(settings, VllmOptions(captures=captures))
    while True:
        try:
            task, what = pipe.recv()
        except EOFError:
            engine.close()
            return
        began = time.perf_counter()
        if task == "read":
            engine.capture(what)
            pipe.send(Timed(time.perf_counter() - began))
            continue
        waiting = iter(what)
        rows = list(engine.generate(lambda: next(waiting, None)))  # noqa: B023 - it is read in this turn
        seconds = time.perf_counter() - began
        texts = tuple(TokenisedText.of(row.rollout) for row in rows)
        pipe.send(Timed(seconds, sum(row.rollout.num_content_tokens for row in rows), texts))


def vllm_figures(
    name: str, settings: EngineSettings, asked: Sequence[RolloutRequest], repeats: int
) -> Iterator[tuple[str, float, str, float | None]]:
    """Measure generation with capture in comparison with none, and with reading the finished texts afterwards.

    Args:
        name: Name of the model and the device.
        settings: What to load and how to run it.
        asked: The requests.
        repeats: Timings of each.

    Yields:
        Name, value, unit and floor of each figure.
    """
    with VllmProcess(settings, captures=True) as capturing, VllmProcess(settings, captures=False) as bare:
        # Warm-up, one after the other: prompts are in the prefix caches, and what is compiled once is compiled.
        capturing.read(capturing.generate(asked).texts[:4])
        bare.generate(asked)
        against_bare: list[float] = []
        against_both: list[float] = []
        speeds: list[float] = []
        for turn in range(repeats):
            # In turns the one or the other first, since a machine warms up and other load comes and goes.
            first, second = (capturing, bare) if turn % 2 else (bare, capturing)
            done = {first: first.generate(asked)}
            done[second] = second.generate(asked)
            ours, without = done[capturing], done[bare]
            reading = capturing.read(without.texts)
            # By token: rounding may let a response end elsewhere.
            pace, bare_pace = ours.tokens / ours.seconds, without.tokens / without.seconds
            against_bare.append(pace / bare_pace)
            against_both.append(pace / (without.tokens / (without.seconds + reading.seconds)))
            speeds.append(pace)
    yield f"{name}: generation with capture", statistics.median(speeds), "tokens/s", None
    yield f"{name}: generation with capture against without", statistics.median(against_bare), "ratio", 0.95
    yield (
        f"{name}: generation with capture against generate-then-prefill",
        statistics.median(against_both),
        "ratio",
        1.0,
    )
    yield f"{name}: slowest turn against without", min(against_bare), "ratio", None


def edit_figures(
    name: str, settings: EngineSettings, d_model: int, asked: Sequence[RolloutRequest], repeats: int
) -> Iterator[tuple[str, float, str, float | None]]:
    """Measure generation under a cap at eight layers in comparison with none, both with capture.

    The floor is below every projection, so that both give the same tokens; what is computed is the same for any floor.

    Args:
        name: Name of the model and the device.
        settings: What to load and how to run it; of the captured layers, the eight in the middle are capped.
        d_model: Width of the residual stream.
        asked: The requests.
        repeats: Timings of each.

    Yields:
        Name, value, unit and floor of each figure.
    """
    first = (len(settings.layers) - _CAPPED) // 2
    rng = np.random.default_rng(0)
    cap = Intervention(
        tuple(
            Cap(layer, Direction.of(rng.standard_normal(d_model)), -1e30)
            for layer in settings.layers[first : first + _CAPPED]
        )
    )
    capped = [replace(request, intervention=cap) for request in asked]
    with (
        VllmProcess(replace(settings, edited_layers=cap.layers), captures=True) as editing,
        VllmProcess(replace(settings, edited_layers=()), captures=True) as plain,
    ):
        plain.generate(asked)
        editing.generate(capped)
        ratios: list[float] = []
        for turn in range(repeats):
            order = [(editing, capped), (plain, asked)]
            done = {process: process.generate(requests) for process, requests in order[:: 1 if turn % 2 else -1]}
            ours, without = done[editing], done[plain]
            ratios.append((ours.tokens / ours.seconds) / (without.tokens / without.seconds))
    yield (
        f"{name}: generation under a cap at {_CAPPED} layers against without",
        statistics.median(ratios),
        "ratio",
        0.97,
    )
