"""Runs the parts of the GPU benchmark one after another, within a time, and writes what they found.

An error of a part is kept and printed, and the next part runs. After an error that leaves the device unusable for this
process, such as an illegal memory access, the parts that are left run in a new process.
"""

from __future__ import annotations

import gc
import json
import platform
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging

from _gpu.bench import Bench
from _gpu.ceilings import ceilings
from _gpu.conformance import conformance
from _gpu.decode import canary, decode, generation
from _gpu.memory import memory
from _gpu.prefill import prefill
from _gpu.slots import slots
from _gpu.streaming import streaming
from _report import Line, Report


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the benchmark.

    Attributes:
        run: Measures, and reports figures.
        seconds: About what it takes on a GPU; it is skipped where less is left.
    """

    run: Callable[[Bench], None]
    seconds: float


PARTS: Mapping[str, Part] = {
    "ceilings": Part(ceilings, 10),
    "conformance": Part(conformance, 60),
    "prefill": Part(prefill, 40),
    "generation": Part(generation, 60),
    "decode": Part(decode, 60),
    "canary": Part(canary, 20),
    "memory": Part(memory, 40),
    "streaming": Part(streaming, 90),
    "slots": Part(slots, 15),
}
"""All parts, in the order in which they run."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was asked for on the command line.

    Attributes:
        parts: Names of the parts to run.
        families: Families of the part ``conformance``; empty for all.
        seconds: Time for all parts.
        is_cpu_form: Whether the CPU form was asked for.
        json: File to write; None for none.
        resume: Whether to go on from what the file has.
    """

    parts: tuple[str, ...]
    families: tuple[str, ...]
    seconds: float
    is_cpu_form: bool
    json: Path | None
    resume: bool


@dataclass
class _Outcome:
    """What became of the parts: by name ``status`` (done, failed, skipped), ``seconds``, ``error`` and ``summary``."""

    machine: dict[str, Any]
    parts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, file: Path, report: Report) -> None:
        lines = [asdict(line) for line in report.lines]
        file.write_text(json.dumps(self.machine | {"parts": self.parts, "figures": lines}, indent=1) + "\n")


def run(choice: Choice) -> int:
    """Run parts, print their figures as one table, and write them.

    Args:
        choice: What to run.

    Returns:
        The exit status: 1 if a part failed or a goal was not met.
    """
    ends_at = time.monotonic() + choice.seconds
    device = "cpu" if choice.is_cpu_form or not torch.cuda.is_available() else "cuda"
    # The end of the output is what people see, and not that tiny models were loaded.
    logging.disable_progress_bar()
    # float32 means float32: TF32 would be off by a thousandth.
    torch.set_float32_matmul_precision("highest")
    report = Report(as_json=False)
    outcome = _Outcome(describe(device))
    with tempfile.TemporaryDirectory() as scratch:
        file = choice.json or Path(scratch) / "figures.json"
        if choice.resume:
            _resume(file, report, outcome)
        bench = Bench(device, report, Path(scratch), ends_at, choice.families)
        left = [name for name in PARTS if name in choice.parts and name not in outcome.parts]
        while left:
            name = left.pop(0)
            _run_part(name, bench, outcome)
            outcome.write(file, report)
            if outcome.parts[name]["status"] == "failed" and left and not bench.is_usable():
                report.say(f"The device is of no more use to this process: {', '.join(left)} in a new one.")
                return _in_new_process(choice, left, file, bench.seconds_left)
    return _finish(report, outcome)


def describe(device: str) -> dict[str, Any]:
    """Describe the machine, as plain JSON values.

    Args:
        device: ``cuda`` or ``cpu``.
    """
    is_gpu = device == "cuda"
    return {
        "device": torch.cuda.get_device_name() if is_gpu else platform.processor() or platform.machine(),
        "device_bytes": torch.cuda.get_device_properties(0).total_memory if is_gpu else None,
        "is_cpu_form": not is_gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
    }


def _run_part(name: str, bench: Bench, outcome: _Outcome) -> None:
    part = PARTS[name]
    if bench.seconds_left < (part.seconds if bench.is_gpu else 1):
        bench.report.say(f"{name}: skipped, {max(0.0, bench.seconds_left):.0f} s are left")
        outcome.parts[name] = {"status": "skipped", "seconds": 0.0, "error": None, "summary": "no time was left"}
        return
    bench.report.say(f"{name} ...")
    started = time.monotonic()
    status, error, summary = "done", None, ""
    try:
        part.run(bench)
    except Exception as raised:  # noqa: BLE001 - an error of one part is reported, and must not stop the others
        status, error, summary = "failed", traceback.format_exc(), _summary(raised)
        print(error, flush=True)
    seconds = round(time.monotonic() - started, 1)
    outcome.parts[name] = {"status": status, "seconds": seconds, "error": error, "summary": summary}
    bench.report.say(f"{name}: {status} after {seconds} s")
    gc.collect()
    if bench.is_gpu and status == "done":
        torch.cuda.empty_cache()


def _summary(error: BaseException) -> str:
    """Return one line that says what went wrong: of each error of a group."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(map(_summary, error.exceptions))
    lines = str(error).strip().splitlines()
    notes = ", ".join(getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {lines[0] if lines else ''}{f' ({notes})' if notes else ''}"


def _resume(file: Path, report: Report, outcome: _Outcome) -> None:
    found = json.loads(file.read_text())
    report.lines += [Line(**line) for line in found["figures"]]
    outcome.parts |= found["parts"]


def _in_new_process(choice: Choice, left: list[str], file: Path, seconds: float) -> int:
    more = ["--families", ",".join(choice.families)] if choice.families else []
    more += ["--cpu"] if choice.is_cpu_form else []
    script = Path(__file__).parent.parent / "gpu.py"
    minutes = str(max(0.0, seconds) / 60)
    asked = ["--only", ",".join(left), "--json", str(file), "--minutes", minutes, "--resume", *more]
    return subprocess.run([sys.executable, str(script), *asked], check=False).returncode


def _finish(report: Report, outcome: _Outcome) -> int:
    status = report.finish()
    machine = outcome.machine
    form = "CPU form: the figures mean nothing" if machine["is_cpu_form"] else machine["device"]
    print(f"{form}; torch {machine['torch']}, transformers {machine['transformers']}")
    for name, part in outcome.parts.items():
        print(f"{name}: {part['status']}, {part['seconds']} s{': ' if part['summary'] else ''}{part['summary']}")
    return 1 if any(part["status"] == "failed" for part in outcome.parts.values()) else status
