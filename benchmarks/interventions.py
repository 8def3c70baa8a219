"""Compare decoding under an 8-layer cap with the same decoding without it: a ratio of times in one run.

    python benchmarks/interventions.py [--json] [--quick]

SmolLM2 on the CPU, 32 rollouts in one batch. The floors are lower than any projection, so that both sides generate the
same tokens; a cap costs the same whether it acts or not. Prefill is in both numbers of steps and cancels out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from persona_atlas.jobs.interventions import Cap, Direction, Intervention
from persona_atlas.jobs.specs.spec_parts import ModelSpec, SamplingSpec
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import EngineSettings
from persona_atlas.workers.models.model_files import find_model

from _report import Report
from engine import SAMPLING, SMOLLM2, Size, cpu_dtype, decode_seconds, requests, settings_for, streamed

LAYERS = range(18, 26)
ROWS = 32
NEVER_REACHED = -1e6
GOAL = 0.97


def cap(d_model: int, seed: int) -> Intervention:
    """Make a cap of eight layers on random directions that leaves every token as it is."""
    rng = np.random.default_rng(seed)
    return Intervention(
        tuple(Cap(layer, Direction.of(rng.standard_normal(d_model)), NEVER_REACHED) for layer in LAYERS)
    )


class Decoding:
    """Decodes the same batch under other interventions.

    Args:
        engine: The engine.
        settings: Its settings.
        size: Amount of work.
    """

    def __init__(self, engine: BuiltinEngine, settings: EngineSettings, size: Size) -> None:
        self._engine = engine
        self._settings = settings
        # Without stop tokens, so that all responses have full length.
        self._endless = replace(engine.loaded, stop_ids=frozenset())
        self._asked = requests(size)[:ROWS]
        self._steps = (2, 2 + size.max_new_tokens)

    def texts(self, steps: int, under: Callable[[int], Intervention | None]) -> list[str]:
        """Generate, and return the responses in the order of the requests.

        Args:
            steps: Tokens of each response.
            under: Returns the intervention of each row.
        """
        settings = replace(self._settings, sampling=SamplingSpec(**SAMPLING, max_new_tokens=steps))
        asked = [replace(one, intervention=under(row)) for row, one in enumerate(self._asked)]
        rows = streamed(self._engine.generation(settings, loaded=self._endless), asked)
        said = {row.rollout.address: row.rollout.response for row in rows}
        return [said[one.address] for one in asked]

    def ratio(self, under: Callable[[int], Intervention | None], repeats: int) -> float:
        """Time decoding without interventions over that with them: the median over pairs timed one after the other."""
        pairs: list[float] = []
        for _ in range(repeats):
            without = decode_seconds(self._steps, lambda steps: self.texts(steps, lambda _row: None))
            pairs.append(without / decode_seconds(self._steps, lambda steps: self.texts(steps, under)))
        return statistics.median(pairs)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything.

    Args:
        arguments: Command-line options; None: those of this process.

    Returns:
        The exit status: 1 if the cap costs more than it may.
    """
    parser = argparse.ArgumentParser(description="Cost of interventions in generation, as ratios.")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="fewer steps and repeats: about a minute")
    options = parser.parse_args(arguments)
    new_tokens, repeats = (24, 3) if options.quick else (48, 7)
    size = Size(4, 8, new_tokens, repeats, torch.get_num_threads(), 100_000)
    dtype = cpu_dtype()
    settings = settings_for(find_model(ModelSpec(source=SMOLLM2), lambda _line: None), dtype, "cpu", 30, size)
    engine = BuiltinEngine(settings)
    decoding = Decoding(engine, settings, size)
    shared = cap(engine.loaded.d_model, 0)
    of_rows = [None if row % 4 == 0 else cap(engine.loaded.d_model, row) for row in range(ROWS)]
    report = Report(options.json)
    if decoding.texts(4, lambda _row: shared) != decoding.texts(4, lambda _row: None):
        raise AssertionError("a cap that never acts has changed a response")
    name = f"SmolLM2 cpu {dtype}: decoding under an 8-layer cap against without"
    report.least(name, decoding.ratio(lambda _row: shared, repeats), "ratio", GOAL)
    mixed = f"SmolLM2 cpu {dtype}: decoding under 24 different caps and none against without"
    report.least(mixed, decoding.ratio(lambda row: of_rows[row], repeats), "ratio", None)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
