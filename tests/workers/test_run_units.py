"""Units through a scripted engine: one block or one failure each, and no unit pays for another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from persona_atlas.jobs.block import UnitBlock
from persona_atlas.jobs.ledger import Failure
from persona_atlas.jobs.units import RolloutRequest, UnitOrder
from persona_atlas.workers.engine import CapturedRollout
from persona_atlas.workers.run_units import run_units

from fakes import FakeEngine, small_plan, vector_of


def orders_of(*unit_ids: str) -> list[UnitOrder]:
    plan = small_plan()
    return [
        UnitOrder(plan.by_id[unit_id], plan.requests(plan.by_id[unit_id]), 1, row_block)
        for row_block, unit_id in enumerate(unit_ids)
    ]


UNITS = ("role.pirate.pos.p0.b0", "role.poet.pos.p1.b0", "trait.anxious.neg.p0.b0")


def test_units_of_one_call_share_it_and_come_back_each_with_its_own_rows():
    engine = FakeEngine()
    orders = orders_of(*UNITS)
    blocks = list(run_units(engine, orders))
    assert len(engine.calls) == 1
    for order, block in zip(orders, blocks, strict=True):
        assert isinstance(block, UnitBlock)
        assert block.order is order
        assert [rollout.address for rollout in block.rollouts] == list(order.unit.addresses())
        (array,) = engine.arrays
        expected = np.stack([vector_of(address, array, 4, 16) for address in order.unit.addresses()])
        np.testing.assert_array_equal(block.arrays_BLD[array], expected)
        assert block.seconds > 0


def test_a_failing_unit_takes_no_batch_mate_with_it():
    engine = FakeEngine(fail_personas=frozenset({"poet"}))
    first, failure, last = run_units(engine, orders_of(*UNITS))
    assert isinstance(first, UnitBlock)
    assert isinstance(last, UnitBlock)
    assert isinstance(failure, Failure)
    assert (failure.unit_id, failure.attempt) == (UNITS[1], 1)
    assert failure.message == "scripted failure of poet."
    assert "Traceback" in failure.detail
    # All together, then each alone.
    assert [len(call) for call in engine.calls] == [9, 3, 3, 3]


def test_a_call_that_fails_once_costs_no_unit():
    results = list(run_units(FakeEngine(fail_on_calls=frozenset({1})), orders_of(*UNITS)))
    assert all(isinstance(result, UnitBlock) for result in results)


class _Unexpected(FakeEngine):
    def generate(self, requests: Sequence[RolloutRequest]) -> list[CapturedRollout]:
        raise ZeroDivisionError


def test_an_error_of_any_kind_becomes_a_failure_with_a_line_to_read():
    (failure,) = run_units(_Unexpected(), orders_of(UNITS[0]))
    assert isinstance(failure, Failure)
    assert failure.message == "ZeroDivisionError"


class _Mixing(FakeEngine):
    """Swaps the answers to the first and the last request."""

    def generate(self, requests: Sequence[RolloutRequest]) -> list[CapturedRollout]:
        rows = super().generate(requests)
        return [rows[-1], *rows[1:-1], rows[0]]


def test_rows_that_belong_to_other_rollouts_are_refused():
    results = list(run_units(_Mixing(), orders_of(*UNITS)))
    assert isinstance(results[0], Failure)
    assert isinstance(results[1], UnitBlock)
    assert isinstance(results[2], Failure)
    assert "the engine answered role/pirate/pos/prompt0/question0/sample0 with trait/anxious" in results[0].message


class _Short(FakeEngine):
    def generate(self, requests: Sequence[RolloutRequest]) -> list[CapturedRollout]:
        return super().generate(requests)[:-1]


@pytest.mark.parametrize("num_units", [1, 3])
def test_an_engine_that_leaves_a_rollout_out_makes_no_block(num_units: int):
    results = list(run_units(_Short(), orders_of(*UNITS[:num_units])))
    assert len(results) == num_units
    for result in results:
        assert isinstance(result, Failure)
        assert result.message == "the engine gave 2 rollouts for 3 requests."
