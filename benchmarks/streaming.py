"""Weights that are loaded layer by layer against weights that are held: memory, speed, and a model that does not fit.

    python benchmarks/streaming.py [--json] [--quick]

All models are random, of Llama's shape, in float32 on the CPU, and saved in a temporary directory. Memory: processes of
their own load the same model of 3 GB (0.3 GB with ``--quick``) in both ways and read the same few texts, and report how
far their resident memory rose at most since before loading, mapped files included. Speed: both readers capture the same
texts in turns, with as many tokens at a time as the streamed one has measured that it needs. The limit: both processes
again, with half the model's bytes as ``RLIMIT_DATA``, which counts what a process has asked for and not the pages of
files that it maps to read; not with ``--quick``, where the limit would be less than Python and torch take.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpu import make_importable

make_importable()

import numpy as np  # noqa: E402 - the paths have to be there first
import torch  # noqa: E402
from persona_atlas.jobs.specs.spec_parts import CaptureSpec, SamplingSpec  # noqa: E402
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine  # noqa: E402
from persona_atlas.workers.builtin.streaming.reader import StreamedReader  # noqa: E402
from persona_atlas.workers.engine import EngineSettings  # noqa: E402

from _gpu.model import ModelSize, make_texts  # noqa: E402
from _random_checkpoint import save_random_llama  # noqa: E402
from _report import Report, interleaved, median_ratio  # noqa: E402

LARGE = ModelSize("float32", 26, 1536, 4096, 12, 12, 512)
"""3.0 GB, of which a layer is 113 MB."""

SMALL = ModelSize("float32", 24, 512, 1408, 4, 4, 512)
"""0.3 GB."""

FAST = ModelSize("float32", 8, 768, 2048, 12, 12, 512)
"""The model whose speed is measured: 0.2 GB."""

MOST_MEMORY, LEAST_SPEED = 0.35, 0.9
_TEXTS, _TEXT_TOKENS = 8, 64
"""Texts that are read to measure memory: few, because it is the weights that count."""

SIDES = {"resident": BuiltinEngine, "streamed": StreamedReader}


def settings_of(directory: Path, size: ModelSize, batch_tokens: int | None) -> EngineSettings:
    """Make settings of a reader that captures ``response_mean`` at every layer."""
    return EngineSettings(
        directory=directory,
        dtype=size.dtype,
        device="cpu",
        threads=torch.get_num_threads(),
        batch_tokens=batch_tokens,
        layers=tuple(range(size.layers)),
        sampling=SamplingSpec(),
        capture=CaptureSpec(),
    )


def child(side: str, directory: Path, size: ModelSize, limit: int) -> None:
    """Load and read in this process, and print the peak of its memory since before loading, in bytes."""
    if limit:
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    texts = make_texts(size, _TEXTS, _TEXT_TOKENS)
    before = _peak_bytes()
    reader = SIDES[side](settings_of(directory, size, 4096))
    captured = reader.capture(texts)
    reader.close()
    arrays = [array for text in captured for array in text.vectors_LD[0].values()]
    finite = all(bool(np.isfinite(array).all()) for array in arrays)
    print(json.dumps({"bytes": _peak_bytes() - before, "finite": finite, "data": _status_bytes("VmData")}))


def _peak_bytes() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def run_child(side: str, directory: Path, quick: bool, limit: int = 0) -> dict[str, Any] | str:
    """Run ``child`` in a process of its own; the last line of its error where it fails."""
    command = [sys.executable, __file__, "--child", side, "--directory", str(directory), "--limit", str(limit)]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command += ["--quick"] if quick else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended by signal {-done.returncode}"]
        return lines[-1]
    return json.loads(done.stdout.splitlines()[-1])


def memory(report: Report, directory: Path, size: ModelSize, quick: bool) -> None:
    """Compare the memory of both, and run both under a limit."""
    found: dict[str, dict[str, Any]] = {}
    for side in SIDES:
        result = run_child(side, directory, quick)
        if isinstance(result, str):
            raise RuntimeError(f"{side}: {result}")
        found[side] = result
        report.most(f"memory that loading and reading took, {side}", result["bytes"] / 1e6, "MB")
    share = found["streamed"]["bytes"] / found["resident"]["bytes"]
    report.most("memory, streamed against resident", share, "ratio", MOST_MEMORY)
    weights = (size.layer_parameters + 2 * size.width * size.vocabulary) * size.value_bytes
    if quick:
        return
    limit = weights // 2
    for side in SIDES:
        result = run_child(side, directory, quick, limit)
        passed = not isinstance(result, str) and result["finite"]
        report.say(f"{side} under RLIMIT_DATA = {limit / 1e9:.2f} GB: {result}")
        expected = side == "streamed"
        name = f"{side} reads {weights / 1e9:.1f} GB of weights under a limit of {limit / 1e9:.2f} GB"
        (report.least if expected else report.most)(name, float(passed), "yes or no", float(expected))


def speed(report: Report, directory: Path, size: ModelSize, rounds: int) -> None:
    """Compare the speed of both at the number of tokens that the streamed one has computed."""
    streamed = StreamedReader(settings_of(directory, size, None))
    tokens = streamed.tokens_per_capture
    resident = BuiltinEngine(replace(settings_of(directory, size, tokens)))
    texts = make_texts(size, max(1, tokens // 256), 256)
    total = sum(len(text.token_ids) for text in texts)
    times = interleaved(
        {"resident": lambda: resident.capture(texts), "streamed": lambda: streamed.capture(texts)}, rounds
    )
    ratio = median_ratio(times["resident"].seconds, times["streamed"].seconds)
    work = median_ratio(times["resident"].processor_s, times["streamed"].processor_s)
    loads = streamed.stream.loads
    streamed.close()
    report.least("tokens that are read at a time, as computed", tokens, "tokens")
    report.least("resident", total / sorted(times["resident"].seconds)[rounds // 2], "tokens/s")
    report.least("streamed", total / sorted(times["streamed"].seconds)[rounds // 2], "tokens/s")
    report.least("speed, streamed against resident", ratio, "ratio", LEAST_SPEED)
    report.least("speed by processor time, streamed against resident", work, "ratio")
    report.least("loading a layer from the page cache", loads.bytes / loads.seconds / 1e9, "GB/s")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure both.

    Args:
        arguments: Command-line options; None: those of this process.

    Returns:
        The exit status: 1 if a figure does not meet its limit.
    """
    parser = argparse.ArgumentParser(description="Weights loaded layer by layer against weights that are held.")
    parser.add_argument("--json", action="store_true", help="one JSON object per figure on stdout")
    parser.add_argument("--quick", action="store_true", help="a smaller model and fewer rounds")
    parser.add_argument("--child", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--limit", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    size = SMALL if options.quick else LARGE
    if options.child is not None:
        child(options.child, options.directory, size, options.limit)
        return 0
    report = Report(options.json)
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("large", "fast"):
            (Path(scratch) / name).mkdir()
        memory(report, save_random_llama(Path(scratch) / "large", size), size, options.quick)
        speed(report, save_random_llama(Path(scratch) / "fast", FAST), FAST, 2 if options.quick else 3)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
