"""Work a handful of unit orders with an engine: one block or one failure for each. The plain twin of the Ray actor.

The units of one call may share batches. When a call fails, it is done again unit by unit, so that only the unit that
is at fault fails.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..jobs.block import UnitBlock
from ..jobs.errors import UnitError
from ..jobs.ledger import Failure
from ..jobs.units import RolloutRequest, UnitOrder
from .engine import CapturedRollout, Engine


def run_units(engine: Engine, orders: Sequence[UnitOrder]) -> Iterator[UnitBlock | Failure]:
    """Generate and capture units.

    Args:
        engine: What does it.
        orders: The units; each comes back once, in this order.

    Yields:
        A block, or why there is none.
    """
    started = time.perf_counter()
    requests = [request for order in orders for request in order.requests]
    captured = _generate(engine, requests)
    if isinstance(captured, _Fault):
        # Told by now and not caught: a live error would hold the batch's frames, and their memory on the device.
        if len(orders) == 1:
            yield Failure(orders[0].unit.unit_id, orders[0].attempt, captured.message, captured.detail)
            return
        for order in orders:
            yield from run_units(engine, [order])
        return
    seconds_per_rollout = (time.perf_counter() - started) / max(len(requests), 1)
    start = 0
    for order in orders:
        rows = captured[start : start + len(order.requests)]
        start += len(order.requests)
        try:
            yield _block(order, rows, seconds_per_rollout * len(rows))
        except UnitError as error:
            yield failure_of(order, error)


@dataclass(frozen=True, slots=True)
class _Fault:
    message: str
    detail: str


def _generate(engine: Engine, requests: Sequence[RolloutRequest]) -> list[CapturedRollout] | _Fault:
    try:
        captured = engine.generate(requests)
        if len(captured) != len(requests):
            raise UnitError(
                f"the engine gave {len(captured)} rollouts for {len(requests)} requests.", code="rows_mixed"
            )
    except Exception as error:  # noqa: BLE001 - whatever a model throws is this unit's failure, not the worker's end
        return _fault_of(error)
    return captured


def _fault_of(error: BaseException) -> _Fault:
    message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return _Fault(message, "".join(traceback.format_exception(error)))


def failure_of(order: UnitOrder, error: BaseException) -> Failure:
    """Describe an error as a unit's failure, with the whole traceback beside the one line."""
    fault = _fault_of(error)
    return Failure(order.unit.unit_id, order.attempt, fault.message, fault.detail)


def _block(order: UnitOrder, rows: Sequence[CapturedRollout], seconds: float) -> UnitBlock:
    for request, row in zip(order.requests, rows, strict=True):
        if row.rollout.address != request.address:
            raise UnitError(f"the engine answered {request.address} with {row.rollout.address}.", code="rows_mixed")
    names = rows[0].vectors_LD
    arrays = {name: np.stack([row.vectors_LD[name] for row in rows]) for name in names}
    return UnitBlock(order, tuple(row.rollout for row in rows), arrays, seconds)
