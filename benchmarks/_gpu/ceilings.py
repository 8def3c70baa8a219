"""The two ceilings of a device, measured: how fast it moves bytes, and how fast it multiplies bf16 matrices."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from _gpu.bench import Bench


@dataclass(frozen=True, slots=True)
class Ceilings:
    """What the device reaches at most.

    Attributes:
        bytes_per_s: Bytes read and written by a copy on the device, per second.
        operations_per_s: Multiplications and additions of a product of large bf16 matrices, per second.
    """

    bytes_per_s: float
    operations_per_s: float


def measure_ceilings(device: str, copied_bytes: int, matrix: int) -> Ceilings:
    """Measure a device.

    Args:
        device: ``cuda`` or ``cpu``.
        copied_bytes: Bytes of the tensor that is copied; several times the device's cache.
        matrix: Rows and columns of the matrices.
    """
    with torch.inference_mode():
        return Ceilings(_bytes_per_s(device, copied_bytes), _operations_per_s(device, matrix))


def _bytes_per_s(device: str, copied_bytes: int) -> float:
    # Random numbers here and below: zeros take less power, and are faster.
    source = torch.randint(0, 255, (copied_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * copied_bytes / _seconds(lambda: target.copy_(source), device)


def _operations_per_s(device: str, matrix: int) -> float:
    left, right = (torch.randn(matrix, matrix, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(left)
    return 2 * matrix**3 / _seconds(lambda: torch.mm(left, right, out=product), device)


def _seconds(work: Callable[[], object], device: str, calls: int = 10, rounds: int = 5) -> float:
    """Time one call: the median over rounds of several calls, each after which the device is waited for."""

    def finish() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    for _ in range(3):
        work()
    found: list[float] = []
    for _ in range(rounds):
        finish()
        started = time.perf_counter()
        for _ in range(calls):
            work()
        finish()
        found.append((time.perf_counter() - started) / calls)
    return median(found)


def ceilings(bench: Bench) -> None:
    """Report the ceilings, to which other parts compare what they measure."""
    found = bench.ceilings
    bench.report.least("copy bandwidth, read and written", found.bytes_per_s / 1e9, "GB/s")
    bench.report.least("bf16 matrix rate", found.operations_per_s / 1e12, "TFLOP/s")
