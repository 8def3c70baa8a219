"""Turn attempts at units into results with a responder. Knows no Ray, no store.

Units are fed into the responder's batch as room comes, and each is given out when all of its rollouts are there, with a
canary. A rollout may bring a request that follows it, the next turn of its conversation: that one joins the batch
before any other unit does, so that a unit is under way no longer than it must be. When the responder fails while
several units are under way, each of them is finished alone, so that only the one at fault fails; a unit that was alone
already fails at once.
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
from ..jobs.rollouts import Canary, Rollout, UnitResult
from ..jobs.scheduling.ledger import Failure
from ..jobs.units import RolloutAddress, RolloutRequest, UnitAttempt
from .canary import require_close
from .engine import CapturedRollout, Responder


def run_units(responder: Responder, next_attempt: Callable[[], UnitAttempt | None]) -> Iterator[UnitResult | Failure]:
    """Generate and capture units.

    Args:
        responder: Answers the units' requests.
        next_attempt: Called when the responder has room for more; None when there is nothing to do at the moment.

    Yields:
        A result for every unit, or why there is none, as soon as that is known. Ends when nothing is under way and
        ``next_attempt`` gave None.
    """
    while True:
        stream = _Stream(responder, next_attempt)
        yield from stream.results()
        if stream.fault is None:
            return
        # A responder that fails before it takes any request fails the next unit, or this loop would never end.
        units = stream.under_way or [_Unit.of(attempt) for attempt in (next_attempt(),) if attempt is not None]
        if not units:
            return
        for unit in units:
            alone = stream
            if len(units) > 1:
                alone = _Stream(responder, lambda: None, unit)
                yield from alone.results()
            if alone.fault is not None:
                yield Failure(unit.attempt.unit.unit_id, unit.attempt.number, alone.fault.message, alone.fault.detail)


@dataclass(frozen=True, slots=True)
class _Fault:
    # Texts, and not the error: a live one would hold the batch's frames, and their memory on the device.
    message: str
    detail: str


@dataclass(eq=False)
class _Unit:
    """A unit under way, with the requests that could be made so far and the rollouts that came of them."""

    attempt: UnitAttempt
    requests: dict[RolloutAddress, RolloutRequest] = field(default_factory=dict)
    rows: dict[RolloutAddress, CapturedRollout] = field(default_factory=dict)

    @classmethod
    def of(cls, attempt: UnitAttempt) -> _Unit:
        unit = cls(attempt)
        unit.begin()
        return unit

    def begin(self) -> None:
        """Make the requests that wait for no reply."""
        for request in self.attempt.first_requests():
            self.requests[request.address] = request

    @property
    def is_whole(self) -> bool:
        return len(self.rows) == self.attempt.unit.num_rollouts

    def missing(self) -> list[RolloutRequest]:
        """Return the requests that were not answered."""
        return [request for address, request in self.requests.items() if address not in self.rows]

    def follow(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Make the request that a rollout brings, if it brings one; the rollout is not among the rows yet.

        Raises:
            UnitError: It was made before, or none comes although rollouts of the unit are still to be made.
        """
        following = self.attempt.requests.following(request, rollout)
        unit_id, expected = self.attempt.unit.unit_id, self.attempt.unit.num_rollouts
        if following is None:
            made = len(self.rows) + 1
            if made == len(self.requests) and made < expected:
                raise UnitError(
                    f"no request follows after {made} rollouts of {unit_id}, which has {expected}.", code="rows_mixed"
                )
            return None
        if following.address in self.requests:
            raise UnitError(f"{following.address} was requested twice.", code="rows_mixed")
        self.requests[following.address] = following
        return following

    def in_row_order(self) -> list[CapturedRollout]:
        """Return the rollouts of a whole unit, in the order of its addresses.

        Raises:
            UnitError: A rollout of the unit was never requested, and another one in its place.
        """
        addresses = list(self.attempt.unit.addresses())
        stray = [address for address in addresses if address not in self.rows]
        if stray:
            raise UnitError(f"{stray[0]} was never requested.", code="rows_mixed")
        return [self.rows[address] for address in addresses]


class _Stream:
    """A responder at work on units, until it has nothing to do or fails.

    Attributes:
        under_way: Units of which rollouts are missing; after ``results`` those that the responder left unfinished.
        fault: Why the responder ended before its time, if it did.
    """

    def __init__(
        self, responder: Responder, next_attempt: Callable[[], UnitAttempt | None], unit: _Unit | None = None
    ) -> None:
        self._responder = responder
        self._next_attempt = next_attempt
        self.under_way: list[_Unit] = [] if unit is None else [unit]
        self.fault: _Fault | None = None
        self._to_ask = deque([] if unit is None else unit.missing())
        self._seconds = 0.0
        self._rollouts = 0

    def results(self) -> Iterator[UnitResult | Failure]:
        """Yield each unit that was finished, or whose numbers are wrong."""
        rollouts: Iterator[CapturedRollout] | None = None
        answered = 0
        while True:
            started = time.perf_counter()
            try:
                rollouts = rollouts or self._responder.generate(self._next_request)
                captured = next(rollouts, None)
                unit = None if captured is None else self._keep(captured)
            except Exception as error:  # noqa: BLE001 - whatever a model raises is a unit's failure, not the worker's end
                self.fault = _fault_of(error)
                return
            self._seconds += time.perf_counter() - started
            if captured is not None:
                answered += 1
                if unit is not None:
                    self.under_way.remove(unit)
                    yield self._finish(unit)
            elif self._to_ask and answered:
                # It ended with its last rollout, and did not see the request that follows that one.
                rollouts, answered = None, 0
            else:
                self._refuse_leftovers()
                return

    def _next_request(self) -> RolloutRequest | None:
        if not self._to_ask:
            started = time.perf_counter()
            attempt = self._next_attempt()
            # Waiting for an attempt is no work of the model.
            self._seconds -= time.perf_counter() - started
            if attempt is None:
                return None
            unit = _Unit(attempt)
            # Before its requests are made: should making them fail, it is this unit that fails.
            self.under_way.append(unit)
            unit.begin()
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
        answered = (rollout.address, rollout.system_prompt, rollout.question, rollout.seed)
        if answered != (request.address, request.system_prompt, request.question, request.seed):
            raise UnitError(f"the engine answered {request.address} with another rollout's words.", code="rows_mixed")
        following = unit.follow(request, rollout)
        unit.rows[rollout.address] = captured
        self._rollouts += 1
        if following is not None:
            self._to_ask.appendleft(following)
        return unit if unit.is_whole else None

    def _refuse_leftovers(self) -> None:
        """Note a responder that ends although requests of its units are not answered."""
        if self.under_way:
            asked = sum(len(unit.requests) for unit in self.under_way)
            given = sum(len(unit.rows) for unit in self.under_way)
            error = UnitError(f"the engine gave {given} rollouts for {asked} requests.", code="rows_mixed")
            self.fault = _fault_of(error)

    def _finish(self, unit: _Unit) -> UnitResult | Failure:
        # The units of a batch share its passes: time goes by rollouts, each second to one unit.
        num_rows = len(unit.rows)
        share = self._seconds * num_rows / max(self._rollouts, num_rows)
        self._seconds -= share
        self._rollouts = max(0, self._rollouts - num_rows)
        started = time.perf_counter()
        try:
            rows = unit.in_row_order()
            canary = self._canary(rows)
        except Exception as error:  # noqa: BLE001 - as above
            return failure_of(unit.attempt, error)
        share += time.perf_counter() - started
        arrays = {name: np.stack([row.vectors_LD[name] for row in rows]) for name in rows[0].vectors_LD}
        tokens = {name: _one_after_another([row.tokens_KTD[name] for row in rows]) for name in rows[0].tokens_KTD}
        return UnitResult(unit.attempt, tuple(row.rollout for row in rows), arrays, share, canary, tokens)

    def _canary(self, rows: list[CapturedRollout]) -> Canary | None:
        # The longest has been through the most passes, in company of the most other rollouts.
        longest = max(rows, key=lambda row: row.rollout.num_content_tokens)
        reader = self._responder.reader
        canary = reader.canary(longest)
        if canary is not None:
            require_close(canary, reader.layers, reader.canary_limit)
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
