"""Run units with a responder. Knows no Ray and no store.

The requests of several units share the responder's running batch: whenever it has room, it pulls the next request. A
unit's result is yielded as soon as all of its rollouts are finished and its canary is compared. A finished rollout
may lead to a follow-up request, the next turn of its conversation, which goes to the front of the queue, so that a unit
that has been started is finished as early as possible. A request that its conversation did not reach is not asked:
its row is empty.

A responder that raises loses all requests in flight, whichever of them caused the error. So each unit in flight is then
finished in a batch of its own, and only a unit that fails there is reported as failed; a unit that was alone in the
batch fails at once.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from ..jobs.errors import EngineDied, UnitError
from ..jobs.scheduling.ledger import Failure
from ..jobs.work.addresses import RolloutAddress
from ..jobs.work.rollouts import Rollout
from ..jobs.work.unit_result import UnitResult
from ..jobs.work.units import RolloutRequest, UnitAttempt
from .canary import CanaryChecks
from .engine import CapturedRollout, Responder
from .not_reached import not_reached


def run_units(
    responder: Responder,
    next_attempt: Callable[[], UnitAttempt | None],
    canaries: CanaryChecks | None = None,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Iterator[UnitResult | Failure]:
    """Run attempts at units.

    Args:
        responder: Answers the units' requests.
        next_attempt: Called when the responder has room for more; returns None when no unit is available at the moment.
        canaries: The checks of this worker, which remember over several calls whether it has passed one; None: those
            of a new worker.
        on_rows: Called after every rollout with the number that are finished of the units in flight.

    Yields:
        A result or a failure for every unit, as soon as it is known. Ends when no unit is in flight and
        ``next_attempt`` has returned None.

    Raises:
        EngineDied: The engine has ended. It is no unit's fault: units in flight have neither result nor failure.
    """
    canaries = canaries or CanaryChecks()
    while True:
        stream = _Stream(responder, next_attempt, canaries, on_rows)
        yield from stream.results()
        if stream.fault is None:
            return
        # A responder that fails before it takes any request fails the next unit, or this loop would never end.
        units = stream.under_way or [_Unit(attempt) for attempt in (next_attempt(),) if attempt is not None]
        if not units:
            return
        for unit in units:
            alone = stream
            # A unit without requests is the one at fault: they could not be made.
            if len(units) > 1 and unit.requests:
                alone = _Stream(responder, lambda: None, canaries, on_rows, unit)
                yield from alone.results()
            if alone.fault is not None:
                yield _failure(unit.attempt, alone.fault)


@dataclass(frozen=True, slots=True)
class _Fault:
    # Texts and not the exception: its traceback would keep the frames of the batch, and their device memory, alive.
    message: str
    detail: str
    is_permanent: bool


@dataclass(eq=False)
class _Unit:
    """A unit in flight: the requests made so far and the rollouts that answered them."""

    attempt: UnitAttempt
    requests: dict[RolloutAddress, RolloutRequest] = field(default_factory=dict)
    rows: dict[RolloutAddress, CapturedRollout] = field(default_factory=dict)

    def begin(self) -> None:
        """Make the requests that wait for no reply, all of them or, should one fail, none."""
        self.requests = {request.address: request for request in self.attempt.first_requests()}

    @property
    def is_complete(self) -> bool:
        return len(self.rows) == self.attempt.unit.num_rollouts

    def missing(self) -> list[RolloutRequest]:
        """Return the requests that are not answered yet."""
        return [request for address, request in self.requests.items() if address not in self.rows]

    def follow(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        """Make the follow-up request of a rollout, or return None. To be called before the rollout is recorded.

        Raises:
            UnitError: The request was made before; or there is none although every request is answered and the unit
                still lacks rollouts.
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
        """Return the rollouts of a finished unit, in the order of its addresses.

        Raises:
            UnitError: An address of the unit has no rollout, because the source requested another one instead.
        """
        addresses = list(self.attempt.unit.addresses())
        stray = [address for address in addresses if address not in self.rows]
        if stray:
            raise UnitError(f"{stray[0]} was never requested.", code="rows_mixed")
        return [self.rows[address] for address in addresses]


class _Stream:
    """One call of ``generate`` after another on a responder, until no unit is left or it fails.

    Attributes:
        under_way: Units that lack rollouts; after ``results``, those that the responder did not finish.
        fault: Why the responder failed; None when it did not.
    """

    def __init__(
        self,
        responder: Responder,
        next_attempt: Callable[[], UnitAttempt | None],
        canaries: CanaryChecks,
        on_rows: Callable[[int], None],
        unit: _Unit | None = None,
    ) -> None:
        self._responder = responder
        self._canaries = canaries
        self._on_rows = on_rows
        self._next_attempt = next_attempt
        self.under_way: list[_Unit] = [] if unit is None else [unit]
        self.fault: _Fault | None = None
        self._queue = deque([] if unit is None else unit.missing())
        self._seconds = 0.0
        self._rollouts = 0

    def results(self) -> Iterator[UnitResult | Failure]:
        """Yield the result of each unit that is finished, or the failure of one whose values are wrong."""
        rollouts: Iterator[CapturedRollout] | None = None
        answered = 0
        while True:
            started = time.perf_counter()
            try:
                rollouts = rollouts or self._responder.generate(self._next_request)
                captured = next(rollouts, None)
                unit = None if captured is None else self._keep(captured)
            except EngineDied:
                raise
            except Exception as error:  # noqa: BLE001 - whatever a model raises is a unit's failure, not the worker's end
                self.fault = _fault_of(error)
                return
            self._seconds += time.perf_counter() - started
            if captured is not None:
                answered += 1
                self._on_rows(sum(len(one.rows) for one in self.under_way))
                if unit is not None:
                    self.under_way.remove(unit)
                    yield self._finish(unit)
            elif self._queue and answered:
                # It ended after its last rollout and did not pull the follow-up request of that one.
                rollouts, answered = None, 0
            else:
                self._require_all_answered()
                return

    def _next_request(self) -> RolloutRequest | None:
        if not self._queue:
            started = time.perf_counter()
            attempt = self._next_attempt()
            # The time spent waiting for an attempt is not the model's.
            self._seconds -= time.perf_counter() - started
            if attempt is None:
                return None
            unit = _Unit(attempt)
            # Before its requests are made: if that raises, the error is this unit's.
            self.under_way.append(unit)
            unit.begin()
            self._queue.extend(unit.requests.values())
        return self._queue.popleft()

    def _keep(self, captured: CapturedRollout) -> _Unit | None:
        """Record a rollout in its unit; return the unit when that completes it, else None."""
        rollout = captured.rollout
        asked = (unit for unit in self.under_way if rollout.address in unit.requests)
        unit = next(asked, None)
        if unit is None or rollout.address in unit.rows:
            raise UnitError(f"the engine answered with {rollout.address}, which was not asked.", code="rows_mixed")
        request = unit.requests[rollout.address]
        answered = (rollout.address, rollout.system_prompt, rollout.question, rollout.seed)
        # What a simulated user says is known to the responder only.
        question = request.question if request.user is None else rollout.question
        if answered != (request.address, request.system_prompt, question, request.seed):
            raise UnitError(f"the engine answered {request.address} with another rollout's words.", code="rows_mixed")
        if captured.intervention != request.intervention:
            raise UnitError(
                f"the engine answered {request.address} under another intervention than was requested.",
                code="rows_mixed",
            )
        following = self._record(unit, request, captured)
        while following is not None and not following.is_reached:
            following = self._record(unit, following, not_reached(following, captured.vectors_LD, captured.tokens_KTD))
        if following is not None:
            self._queue.appendleft(following)
        return unit if unit.is_complete else None

    def _record(self, unit: _Unit, request: RolloutRequest, captured: CapturedRollout) -> RolloutRequest | None:
        """Add the row of a request to its unit, and return the request that follows."""
        of_conversation = {"conversation_index": request.conversation_index, "extra": request.extra}
        if request.conversation_index is not None:
            captured = replace(captured, rollout=replace(captured.rollout, **of_conversation))
        following = unit.follow(request, captured.rollout)
        unit.rows[request.address] = captured
        self._rollouts += 1
        return following

    def _require_all_answered(self) -> None:
        """Record a fault when the responder has ended although some requests are not answered."""
        if self.under_way:
            asked = sum(len(unit.requests) for unit in self.under_way)
            given = sum(len(unit.rows) for unit in self.under_way)
            error = UnitError(f"the engine gave {given} rollouts for {asked} requests.", code="rows_mixed")
            self.fault = _fault_of(error)

    def _finish(self, unit: _Unit) -> UnitResult | Failure:
        # The units of a batch share its passes, so time is divided among them in proportion to their rollouts.
        num_rows = len(unit.rows)
        share = self._seconds * num_rows / max(self._rollouts, num_rows)
        self._seconds -= share
        self._rollouts = max(0, self._rollouts - num_rows)
        started = time.perf_counter()
        try:
            rows = unit.in_row_order()
            canary = self._canaries.check(unit.attempt, rows, self._responder.reader)
            share += time.perf_counter() - started
            # Here too: rows that do not fit together are this unit's failure, and not that of the units beside it.
            arrays = {name: np.stack([row.vectors_LD[name] for row in rows]) for name in rows[0].vectors_LD}
            tokens = {name: _one_after_another([row.tokens_KTD[name] for row in rows]) for name in rows[0].tokens_KTD}
        except EngineDied:
            raise
        except Exception as error:  # noqa: BLE001 - as above
            return failure_of(unit.attempt, error)
        rollouts = tuple(row.rollout for row in rows)
        return UnitResult(unit.attempt, rollouts, arrays, share, canary, tokens, self._canaries.rule)


def _one_after_another(tokens_KTD: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Concatenate the tokens of several rollouts to one array ``(N, K, D)``."""
    return np.concatenate([one_KTD.transpose(1, 0, 2) for one_KTD in tokens_KTD])


def _fault_of(error: BaseException) -> _Fault:
    message = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    is_permanent = isinstance(error, UnitError) and error.is_permanent
    return _Fault(message, "".join(traceback.format_exception(error)), is_permanent)


def failure_of(attempt: UnitAttempt, error: BaseException) -> Failure:
    """Make a unit's failure from an error: its first line as the message, the traceback as the detail."""
    return _failure(attempt, _fault_of(error))


def _failure(attempt: UnitAttempt, fault: _Fault) -> Failure:
    return Failure(attempt.unit.unit_id, attempt.number, fault.message, fault.detail, is_permanent=fault.is_permanent)
