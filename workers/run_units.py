"""Turn unit orders into finished blocks with a streaming engine. The plain twin of the Ray actor.

Units are fed into the engine's batch as room comes and each is given out when all of its rollouts are there, with a
canary. When the engine fails while several units are under way, each of them is finished alone, so that only the one at
fault fails; a unit that was alone already fails at once.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..jobs.errors import UnitError
from ..jobs.rollouts import Canary, UnitResult
from ..jobs.scheduling.ledger import Failure
from ..jobs.units import RolloutAddress, RolloutRequest, UnitAttempt
from .canary import require_close
from .engine import CapturedRollout, Engine


def run_units(engine: Engine, next_attempt: Callable[[], UnitAttempt | None]) -> Iterator[UnitResult | Failure]:
    """Generate and capture units.

    Args:
        engine: What does it.
        next_attempt: Asked when the engine has room for more; None when there is nothing to be done at the moment.

    Yields:
        For every unit a block, or why there is none, as soon as that is known. Ends when nothing is under way and
        ``next_order`` gave None.
    """
    while True:
        stream = _Stream(engine, next_attempt)
        yield from stream.results()
        if stream.fault is None:
            return
        # An engine that fails before it asks for anything fails the next unit, or nothing would ever come of it.
        units = stream.under_way or [_Unit.of(attempt) for attempt in (next_attempt(),) if attempt is not None]
        if not units:
            return
        for unit in units:
            alone = stream
            if len(units) > 1:
                alone = _Stream(engine, lambda: None, unit)
                yield from alone.results()
            if alone.fault is not None:
                yield Failure(unit.attempt.unit.unit_id, unit.attempt.number, alone.fault.message, alone.fault.detail)


@dataclass(frozen=True, slots=True)
class _Fault:
    # Told and not caught: a live error would hold the batch's frames, and their memory on the device.
    message: str
    detail: str


@dataclass(eq=False)
class _Unit:
    """A unit under way, and what is there of it; ``requests`` are in row order."""

    attempt: UnitAttempt
    requests: dict[RolloutAddress, RolloutRequest]
    rows: dict[RolloutAddress, CapturedRollout] = field(default_factory=dict)

    @classmethod
    def of(cls, attempt: UnitAttempt) -> _Unit:
        return cls(attempt, {request.address: request for request in attempt.requests()})

    def missing(self) -> list[RolloutRequest]:
        return [request for address, request in self.requests.items() if address not in self.rows]


class _Stream:
    """One call of an engine's ``generate``.

    Attributes:
        under_way: Units of which rollouts are missing; after ``results`` those that the engine let down.
        fault: Why the call ended before its time, if it did.
    """

    def __init__(
        self, engine: Engine, next_attempt: Callable[[], UnitAttempt | None], unit: _Unit | None = None
    ) -> None:
        self._engine = engine
        self._next_attempt = next_attempt
        self.under_way: list[_Unit] = [] if unit is None else [unit]
        self.fault: _Fault | None = None
        self._to_ask = deque([] if unit is None else unit.missing())
        self._seconds = 0.0
        self._rollouts = 0

    def results(self) -> Iterator[UnitResult | Failure]:
        """Give each unit that was finished, or whose numbers are wrong."""
        rollouts: Iterator[CapturedRollout] | None = None
        while True:
            started = time.perf_counter()
            try:
                rollouts = rollouts or self._engine.generate(self._next_request)
                captured = next(rollouts, None)
                unit = None if captured is None else self._keep(captured)
            except Exception as error:  # noqa: BLE001 - whatever a model throws is a unit's failure, not the worker's end
                self.fault = _fault_of(error)
                return
            self._seconds += time.perf_counter() - started
            if unit is None:
                if captured is None:
                    self._complain()
                    return
                continue
            self.under_way.remove(unit)
            yield self._finish(unit)

    def _next_request(self) -> RolloutRequest | None:
        if not self._to_ask:
            started = time.perf_counter()
            attempt = self._next_attempt()
            # Waiting for orders is no work of the model.
            self._seconds -= time.perf_counter() - started
            if attempt is None:
                return None
            unit = _Unit(attempt, {})
            # First: should its requests be wrong, it is this unit that fails.
            self.under_way.append(unit)
            unit.requests = {request.address: request for request in attempt.requests()}
            self._to_ask.extend(unit.requests.values())
        return self._to_ask.popleft()

    def _keep(self, captured: CapturedRollout) -> _Unit | None:
        """Put a rollout where it belongs; its unit, when it was the last of it."""
        rollout = captured.rollout
        asked = (unit for unit in self.under_way if rollout.address in unit.requests)
        unit = next(asked, None)
        if unit is None or rollout.address in unit.rows:
            raise UnitError(f"the engine answered with {rollout.address}, which was not asked.", code="rows_mixed")
        request = unit.requests[rollout.address]
        said = (rollout.address, rollout.system_prompt, rollout.question, rollout.seed)
        if said != (request.address, request.system_prompt, request.question, request.seed):
            raise UnitError(f"the engine answered {request.address} with another rollout's words.", code="rows_mixed")
        unit.rows[rollout.address] = captured
        self._rollouts += 1
        return None if unit.missing() else unit

    def _complain(self) -> None:
        if self.under_way:
            asked = sum(len(unit.requests) for unit in self.under_way)
            given = sum(len(unit.rows) for unit in self.under_way)
            error = UnitError(f"the engine gave {given} rollouts for {asked} requests.", code="rows_mixed")
            self.fault = _fault_of(error)

    def _finish(self, unit: _Unit) -> UnitResult | Failure:
        rows = [unit.rows[address] for address in unit.requests]
        # The units of a batch share its passes: time goes by rollouts, each second to one unit.
        share = self._seconds * len(rows) / max(self._rollouts, len(rows))
        self._seconds -= share
        self._rollouts = max(0, self._rollouts - len(rows))
        started = time.perf_counter()
        try:
            canary = self._canary(rows)
        except Exception as error:  # noqa: BLE001 - as above
            return failure_of(unit.attempt, error)
        share += time.perf_counter() - started
        arrays = {name: np.stack([row.vectors_LD[name] for row in rows]) for name in rows[0].vectors_LD}
        tokens = {name: _one_after_another([row.tokens_KTD[name] for row in rows]) for name in rows[0].tokens_KTD}
        return UnitResult(unit.attempt, tuple(row.rollout for row in rows), arrays, share, canary, tokens)

    def _canary(self, rows: list[CapturedRollout]) -> Canary | None:
        # The longest has been through the most: the most passes, the most batch mates.
        longest = max(rows, key=lambda row: row.rollout.num_content_tokens)
        canary = self._engine.canary(longest)
        if canary is not None:
            require_close(canary, self._engine.layers, self._engine.canary_limit)
        return canary


def _one_after_another(tokens_KTD: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Put the tokens of several rollouts into one array ``(N, K, D)``."""
    return np.concatenate([one_KTD.transpose(1, 0, 2) for one_KTD in tokens_KTD])


def _fault_of(error: BaseException) -> _Fault:
    message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return _Fault(message, "".join(traceback.format_exception(error)))


def failure_of(attempt: UnitAttempt, error: BaseException) -> Failure:
    """Describe an error as a unit's failure, with the whole traceback beside the one line."""
    fault = _fault_of(error)
    return Failure(attempt.unit.unit_id, attempt.number, fault.message, fault.detail)
