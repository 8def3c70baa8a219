"""Who is assigned how much: full assignments while there is plenty, small ones at the end, suspects alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.assignment import PLENTIFUL, SMALL_FRACTION, assign_work, assignment_rollouts
from persona_atlas.jobs.scheduling.ledger import Failure, Ledger

from fakes import small_plan


@dataclass
class Workers:
    """Workers in given states."""

    idle: list[str] = field(default_factory=list)
    requesting: list[str] = field(default_factory=list)
    others: int = 0

    @property
    def ready(self) -> list[str]:
        return [*self.idle, *self.requesting]

    @property
    def num_workers(self) -> int:
        return len(self.ready) + self.others


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Twelve units of three rollouts."""
    return small_plan()


@pytest.mark.parametrize(
    ("assignments_left", "is_idle", "expected"),
    [
        (5.0, True, 24),
        (4.99, True, 6),
        (20.0, False, 24),
        (19.99, False, 6),
        (5.0, False, 6),
        (0.0, True, 6),
    ],
)
def test_an_idle_worker_gets_a_full_assignment_for_longer_than_a_busy_one(
    assignments_left: float, is_idle: bool, expected: int
):
    assert (PLENTIFUL, SMALL_FRACTION) == (4, 4)
    assert assignment_rollouts(24, assignments_left, 5, is_idle=is_idle) == expected


def test_idle_workers_come_first_then_those_that_ask_in_their_order(plan: Plan):
    ledger = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=1)
    assigned = assign_work(ledger, Workers(idle=["c", "b"], requesting=["d", "a"]))
    assert [assignment.worker for assignment in assigned] == ["c", "b", "d", "a"]
    assert ledger.in_flight == 4


def test_a_worker_for_which_nothing_is_left_gets_no_assignment(plan: Plan):
    ledger = Ledger(plan, {unit.unit_id for unit in plan.units[1:]}, itertools.count())
    assigned = assign_work(ledger, Workers(idle=["a", "b"], requesting=["c"]))
    assert [(assignment.worker, len(assignment.attempts)) for assignment in assigned] == [("a", 1)]


def test_the_share_of_workers_that_still_load_is_kept_for_them(plan: Plan):
    sizes = {}
    for others in (0, 3):
        ledger = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=12)
        (assignment,) = assign_work(ledger, Workers(idle=["a"], others=others))
        sizes[others] = len(assignment.attempts)
    assert sizes == {0: 4, 3: 1}


def test_what_was_assigned_in_the_same_turn_is_not_counted_as_left(plan: Plan):
    ledger = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=12)
    assigned = assign_work(ledger, Workers(idle=["a", "b", "c"]))
    assert [len(assignment.attempts) for assignment in assigned] == [4, 1, 1]


def test_a_suspect_goes_to_an_idle_worker_alone_and_to_no_busy_one(plan: Plan):
    ledger = Ledger(plan, {unit.unit_id for unit in plan.units[1:]}, itertools.count(), rollouts_per_assignment=100)
    (attempt,) = ledger.next_assignment("a")
    ledger.fail(Failure(attempt.unit.unit_id, 1, "scripted"), "a")
    assert assign_work(ledger, Workers(requesting=["b"])) == []
    (assignment,) = assign_work(ledger, Workers(idle=["c"], requesting=["b"]))
    assert (assignment.worker, [one.is_suspect for one in assignment.attempts]) == ("c", [True])


def test_a_suspect_waits_for_a_worker_on_which_it_has_not_failed(plan: Plan):
    ledger = Ledger(plan, {unit.unit_id for unit in plan.units[1:]}, itertools.count())
    (attempt,) = ledger.next_assignment("a")
    ledger.fail(Failure(attempt.unit.unit_id, 1, "scripted"), "a")
    assert assign_work(ledger, Workers(idle=["a"], requesting=["b"])) == [], (
        "b is busy, and may have it when it is done"
    )
    (assignment,) = assign_work(ledger, Workers(idle=["a"]))
    assert assignment.worker == "a", "there is no other"
