"""What the parts of the GPU benchmark share: device, sizes, time left, ceilings and the model.

Knows no part. Ceilings and model are made when a part first asks for them, so that each part can run alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

import torch
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import EngineSettings

from _gpu.ceilings import Ceilings, measure_ceilings
from _gpu.model import ModelSize, make_engine, make_settings
from _report import Report


@dataclass(frozen=True, slots=True)
class Sizes:
    """Amounts of work.

    Attributes:
        model: Shape of the model.
        copied_bytes: Bytes of the tensor that is copied to measure bandwidth.
        matrix: Rows and columns of the matrices that are multiplied to measure the matrix rate.
        prompt_tokens: Tokens of a prompt.
        new_tokens: Tokens of a response.
        rows: Numbers of rollouts of a batch, ascending.
        texts: Texts to be read, of 0.5 to 1.5 times ``text_tokens``.
        text_tokens: Mean length of these texts, in tokens.
        requests: Rollouts of a conformance test.
        repeats: Rounds of timings that are compared.
        slot_layers: Layers of the slot table.
        slot_width: Width of its vectors.
        slot_prompt_tokens: Prompt tokens of one of its passes.
        streamed_model: Shape of the model whose weights are loaded layer by layer.
        streamed_block: Shape of the layers that are measured alone.
    """

    model: ModelSize
    copied_bytes: int
    matrix: int
    prompt_tokens: int
    new_tokens: int
    rows: tuple[int, ...]
    texts: int
    text_tokens: int
    requests: int
    repeats: int
    slot_layers: int
    slot_width: int
    slot_prompt_tokens: int
    streamed_model: ModelSize
    streamed_block: ModelSize


GPU_SIZES = Sizes(
    # Mistral 7B's, whose grouped queries leave room for 256 rows of cache on a GPU of 80 GB.
    model=ModelSize("bfloat16", 32, 4096, 14_336, 32, 8, 32_000),
    copied_bytes=4 * 2**30,
    matrix=8192,
    prompt_tokens=128,
    new_tokens=64,
    rows=(16, 64, 256),
    texts=128,
    text_tokens=512,
    requests=24,
    repeats=3,
    slot_layers=80,
    slot_width=8192,
    slot_prompt_tokens=8192,
    # Qwen 3 32B's and Llama 3 70B's; a large vocabulary would only take memory.
    streamed_model=ModelSize("bfloat16", 64, 5120, 25_600, 40, 8, 32_000),
    streamed_block=ModelSize("bfloat16", 4, 8192, 28_672, 64, 8, 32_000),
)

CPU_SIZES = Sizes(
    model=ModelSize("float32", 4, 64, 128, 4, 2, 512),
    copied_bytes=2**24,
    matrix=256,
    prompt_tokens=40,
    new_tokens=12,
    rows=(2, 4, 8),
    texts=8,
    text_tokens=64,
    requests=8,
    repeats=2,
    slot_layers=4,
    slot_width=64,
    slot_prompt_tokens=128,
    streamed_model=ModelSize("float32", 4, 64, 128, 4, 2, 512),
    streamed_block=ModelSize("float32", 4, 64, 128, 4, 2, 512),
)


class Bench:
    """What a part gets.

    Args:
        device: ``cuda`` or ``cpu``.
        report: Takes the figures.
        scratch: Empty directory for checkpoints.
        ends_at: ``time.monotonic()`` at which no further work should begin.
        families: Families that conformance is asked of; empty for all.

    Attributes:
        device: ``cuda`` or ``cpu``.
        report: Takes the figures.
        scratch: Directory for checkpoints.
        families: Families that conformance is asked of; empty for all.
        sizes: Amounts of work: large on a GPU, small in the CPU form.
    """

    def __init__(
        self, device: str, report: Report, scratch: Path, ends_at: float, families: tuple[str, ...] = ()
    ) -> None:
        self.device = device
        self.report = report
        self.scratch = scratch
        self.families = families
        self.sizes = GPU_SIZES if device == "cuda" else CPU_SIZES
        self._ends_at = ends_at

    @property
    def is_gpu(self) -> bool:
        """Whether this is no CPU form, so that figures have goals."""
        return self.device == "cuda"

    def goal(self, value: float) -> float | None:
        """Return a goal where it counts: on a GPU; else None."""
        return value if self.is_gpu else None

    @property
    def seconds_left(self) -> float:
        """Seconds in which further work may begin."""
        return self._ends_at - time.monotonic()

    @cached_property
    def ceilings(self) -> Ceilings:
        """The measured bandwidth and matrix rate of this device."""
        return measure_ceilings(self.device, self.sizes.copied_bytes, self.sizes.matrix)

    @cached_property
    def engine(self) -> BuiltinEngine:
        """The built-in engine with a random model on the device; captures ``response_mean`` at every layer."""
        return make_engine(self.sizes.model, self.settings)

    @cached_property
    def settings(self) -> EngineSettings:
        """The settings of that engine."""
        return make_settings(self.sizes.model, self.device, self.scratch)

    def finish(self) -> None:
        """Wait until the device has done everything that it was given."""
        if self.is_gpu:
            torch.cuda.synchronize()

    def is_usable(self) -> bool:
        """Whether this process can still use the device: after some errors every call fails."""
        try:
            torch.ones(8, device=self.device).sum().item()
        except RuntimeError:
            return False
        return True

    def seconds(self, work: Callable[[], object]) -> float:
        """Time one call in seconds, until the device has finished too."""
        self.finish()
        started = time.perf_counter()
        work()
        self.finish()
        return time.perf_counter() - started

    def timed(self, *tasks: Callable[[], object], repeats: int | None = None) -> list[list[float]]:
        """Time tasks in turns, each after one round that is not counted.

        Args:
            *tasks: The tasks.
            repeats: Number of counted rounds; None: that of the sizes.

        Returns:
            The seconds of each task, round by round.
        """
        for task in tasks:
            task()
        rounds: list[list[float]] = []
        for number in range(repeats or self.sizes.repeats):
            # Every other round runs backwards, so that no task always follows the same one.
            turn = list(enumerate(tasks))[:: 1 if number % 2 == 0 else -1]
            found = {index: self.seconds(task) for index, task in turn}
            rounds.append([found[index] for index in range(len(tasks))])
        return [list(one) for one in zip(*rounds, strict=True)]


def median_of(values: list[float]) -> float:
    """Return the median, or raise if there is none.

    Raises:
        RuntimeError: There are no values, so nothing was measured.
    """
    if not values:
        raise RuntimeError("nothing was measured")
    return median(values)
