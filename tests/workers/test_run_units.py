"""Units through a scripted engine: one block or one failure each, and no unit pays for another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from persona_atlas.jobs.errors import EngineDied, UnitError
from persona_atlas.jobs.interventions import AddVector, Direction, Intervention
from persona_atlas.jobs.scheduling.ledger import Failure
from persona_atlas.jobs.work.rollouts import Canary, Rollout
from persona_atlas.jobs.work.unit_result import UnitResult
from persona_atlas.jobs.work.units import RolloutRequest, UnitAttempt, UnitRequests, WorkUnit
from persona_atlas.workers.engine import CapturedRollout
from persona_atlas.workers.run_units import run_units

from fakes import FakeEngine, small_plan, vector_of


def orders_of(*unit_ids: str) -> list[UnitAttempt]:
    plan = small_plan()
    return [
        UnitAttempt(plan.by_id[unit_id], plan.requests(plan.by_id[unit_id]), 1, row_block)
        for row_block, unit_id in enumerate(unit_ids)
    ]


def fed(attempts: Sequence[UnitAttempt]) -> Callable[[], UnitAttempt | None]:
    to_do = iter(attempts)
    return lambda: next(to_do, None)


UNITS = ("role.pirate.pos.p0.b0", "role.poet.pos.p1.b0", "trait.anxious.neg.p0.b0")


def test_units_of_one_call_share_it_and_come_back_each_with_its_own_rows():
    engine = FakeEngine()
    attempts = orders_of(*UNITS)
    blocks = list(run_units(engine, fed(attempts)))
    assert len(engine.calls) == 1
    for attempt, block in zip(attempts, blocks, strict=True):
        assert isinstance(block, UnitResult)
        assert block.attempt is attempt
        assert [rollout.address for rollout in block.rollouts] == list(attempt.unit.addresses())
        (array,) = engine.arrays
        expected = np.stack([vector_of(address, array, 4, 16) for address in attempt.unit.addresses()])
        np.testing.assert_array_equal(block.arrays_BLD[array], expected)
        assert block.seconds > 0
    assert isinstance(blocks[0], UnitResult)
    assert blocks[0].canary is not None


class _Dies(FakeEngine):
    """Ends after its first rollout, or when a canary is recomputed."""

    def __init__(self, dies_in: str) -> None:
        super().__init__()
        self._dies_in = dies_in

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for captured in super().generate(next_request):
            if self._dies_in == "generate":
                raise EngineDied("a process ended.", code="engine_died")
            yield captured

    def canary(self, captured: CapturedRollout, others: Sequence[CapturedRollout] = ()) -> Canary | None:
        raise EngineDied("a process ended.", code="engine_died")


@pytest.mark.parametrize("dies_in", ["generate", "canary"])
def test_an_engine_that_has_ended_fails_no_unit_and_is_not_asked_again(dies_in: str):
    engine = _Dies(dies_in)
    with pytest.raises(EngineDied):
        list(run_units(engine, fed(orders_of(*UNITS))))
    assert len(engine.calls) == 1


class _OneAtATime(FakeEngine):
    """Answers each request before it asks for the next, and notes when it asks."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for request in iter(next_request, None):
            self.calls.append([request.address])
            if request.address.persona in self.fail_personas:
                raise UnitError(f"scripted failure of {request.address.persona}.", code="scripted")
            yield self._answer(request)


def test_a_unit_is_given_out_as_soon_as_all_of_it_is_there_and_orders_are_asked_for_as_room_comes():
    engine, asked = _OneAtATime(), []
    to_do = iter(orders_of(*UNITS))

    def next_attempt() -> UnitAttempt | None:
        attempt = next(to_do, None)
        asked.append(attempt and attempt.unit.unit_id)
        return attempt

    for number, block in enumerate(run_units(engine, next_attempt), start=1):
        assert isinstance(block, UnitResult)
        assert asked == list(UNITS[:number])
        assert len(engine.calls) == 3 * number


def test_rollouts_that_were_there_before_a_failure_are_not_asked_for_again():
    engine = _OneAtATime(fail_personas=frozenset({"poet"}))
    first, failure, last = run_units(engine, fed(orders_of(*UNITS)))
    assert (type(first), type(failure), type(last)) == (UnitResult, Failure, UnitResult)
    # The poet was alone when its first request failed; its second and third are never reached.
    assert [address.persona for (address,) in engine.calls] == ["pirate"] * 3 + ["poet"] + ["anxious"] * 3


def test_the_time_of_the_blocks_adds_up_to_no_more_than_has_passed():
    started = time.perf_counter()
    blocks = list(run_units(FakeEngine(), fed(orders_of(*UNITS))))
    seconds = [block.seconds for block in blocks if isinstance(block, UnitResult)]
    assert len(seconds) == 3
    assert 0 < sum(seconds) < time.perf_counter() - started


def test_a_canary_beyond_its_limit_fails_the_unit_and_names_the_layer():
    engine = FakeEngine(canary_error=2e-3)
    (failure,) = run_units(engine, fed(orders_of(UNITS[0])))
    assert isinstance(failure, Failure)
    assert failure.message == (
        "role/pirate/pos/prompt0/question0/sample0, layer 0: what was captured "
        "differs from a plain forward pass by 2.0e-03 of its norm; 1e-03 is allowed."
    )


def test_a_unit_without_any_content_has_no_canary():
    addresses = frozenset(orders_of(UNITS[0])[0].unit.addresses())
    (block,) = run_units(FakeEngine(empty=addresses), fed(orders_of(UNITS[0])))
    assert isinstance(block, UnitResult)
    assert block.canary is None


def test_a_failing_unit_takes_no_batch_mate_with_it():
    engine = FakeEngine(fail_personas=frozenset({"poet"}))
    first, failure, last = run_units(engine, fed(orders_of(*UNITS)))
    assert isinstance(first, UnitResult)
    assert isinstance(last, UnitResult)
    assert isinstance(failure, Failure)
    assert (failure.unit_id, failure.attempt) == (UNITS[1], 1)
    assert failure.message == "scripted failure of poet."
    assert "Traceback" in failure.detail
    # All together, then each alone.
    assert [len(call) for call in engine.calls] == [9, 3, 3, 3]


def test_a_call_that_fails_once_costs_no_unit():
    results = list(run_units(FakeEngine(fail_on_calls=frozenset({1})), fed(orders_of(*UNITS))))
    assert all(isinstance(result, UnitResult) for result in results)


class _Unexpected(FakeEngine):
    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        raise ZeroDivisionError
        yield


def test_an_error_of_any_kind_becomes_a_failure_with_a_line_to_read():
    (failure,) = run_units(_Unexpected(), fed(orders_of(UNITS[0])))
    assert isinstance(failure, Failure)
    assert failure.message == "ZeroDivisionError"


class _Mixing(FakeEngine):
    """Gives the words and numbers of one rollout the address of another."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        rows = list(super().generate(next_request))
        if len(rows) > 1:
            swapped = replace(rows[0].rollout, address=rows[1].rollout.address)
            rows[1] = CapturedRollout(swapped, rows[0].vectors_LD)
        yield from rows


def test_rows_that_belong_to_other_rollouts_are_refused():
    (failure,) = run_units(_Mixing(), fed(orders_of(UNITS[0])))
    assert isinstance(failure, Failure)
    assert failure.message == (
        "the engine answered role/pirate/pos/prompt0/question1/sample0 with another rollout's words."
    )


@dataclass(frozen=True)
class _Steered:
    """The requests of a unit, each under an intervention."""

    requests: UnitRequests
    intervention: Intervention

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        for request in self.requests.first(unit):
            yield replace(request, intervention=self.intervention)

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        return self.requests.following(request, rollout)


class _Elsewhere(FakeEngine):
    """Answers under an intervention of its own."""

    under: Intervention | None = None

    def _answer(self, request: RolloutRequest) -> CapturedRollout:
        return replace(super()._answer(request), intervention=self.under)


@pytest.mark.parametrize(
    "under", [None, Intervention((AddVector(1, Direction.of([0.5]), 2.0),))], ids=["none", "another"]
)
def test_an_answer_under_another_intervention_than_requested_is_refused(under: Intervention | None):
    (attempt,) = orders_of(UNITS[0])
    steered = replace(
        attempt, requests=_Steered(attempt.requests, Intervention((AddVector(1, Direction.of([0.5]), 1.0),)))
    )
    (block,) = run_units(FakeEngine(), fed([steered]))
    assert isinstance(block, UnitResult)
    engine = _Elsewhere()
    engine.under = under
    (failure,) = run_units(engine, fed([steered]))
    assert isinstance(failure, Failure)
    assert "role/pirate/pos/prompt0/question0/sample0 under another intervention" in failure.message


class _NoTexts:
    """The texts of a unit, which cannot be made into requests."""

    def first(self, unit: WorkUnit) -> Iterator[RolloutRequest]:
        raise ValueError(f"no question for {unit.unit_id}")
        yield

    def following(self, request: RolloutRequest, rollout: Rollout) -> RolloutRequest | None:
        return None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_unit_whose_requests_cannot_be_made_fails_alone_and_says_why(place: int):
    attempts = orders_of(*UNITS)
    attempts[place] = replace(attempts[place], requests=_NoTexts())
    results = list(run_units(FakeEngine(), fed(attempts)))
    (failure,) = [result for result in results if isinstance(result, Failure)]
    assert (failure.unit_id, failure.message) == (UNITS[place], f"no question for {UNITS[place]}")
    assert sum(isinstance(result, UnitResult) for result in results) == 2


class _Uneven(FakeEngine):
    """Gives a poet's rollouts vectors of different sizes."""

    def _answer(self, request: RolloutRequest) -> CapturedRollout:
        row = super()._answer(request)
        if request.address.persona != "poet" or not request.address.question_index:
            return row
        return replace(row, vectors_LD={array: vector_LD[:, :-1] for array, vector_LD in row.vectors_LD.items()})


def test_rows_that_do_not_fit_together_fail_their_unit_alone():
    results = list(run_units(_Uneven(), fed(orders_of(*UNITS))))
    assert [type(result) for result in results] == [UnitResult, Failure, UnitResult]


class _Inventing(FakeEngine):
    """Answers the first request twice."""

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        for row in super().generate(next_request):
            yield row
            yield row


def test_a_rollout_that_was_not_asked_is_refused():
    (failure,) = run_units(_Inventing(), fed(orders_of(UNITS[0])))
    assert isinstance(failure, Failure)
    assert "which was not asked" in failure.message


class _Short(FakeEngine):
    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        yield from list(super().generate(next_request))[:-1]


def test_an_engine_that_leaves_rollouts_out_makes_no_block_of_what_there_is():
    (failure,) = run_units(_Silent(), fed(orders_of(UNITS[0])))
    assert isinstance(failure, Failure)
    assert failure.message == "the engine gave 0 rollouts for 3 requests."


class _Silent(FakeEngine):
    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        assert list(super().generate(next_request))
        yield from ()


def test_what_one_call_leaves_out_the_next_is_asked_for():
    results = list(run_units(_Short(), fed(orders_of(*UNITS))))
    assert [type(result) for result in results] == [UnitResult, UnitResult, Failure]


class _Refusing(FakeEngine):
    """Refuses every request with an error of one code."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = code

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        if (request := next_request()) is not None:
            raise UnitError(f"{request.address} cannot be answered.", code=self.code)
        yield from ()


@pytest.mark.parametrize(
    ("code", "is_permanent"), [("too_long", True), ("not_finite", True), ("endpoint_failed", False)]
)
def test_a_failure_says_whether_another_attempt_would_fail_too(code: str, *, is_permanent: bool):
    attempts = orders_of("role.pirate.pos.p0.b0", "role.poet.pos.p0.b0")
    found = list(run_units(_Refusing(code), fed(attempts)))
    assert len(found) == 2
    assert [isinstance(failure, Failure) and failure.is_permanent for failure in found] == [is_permanent] * 2
