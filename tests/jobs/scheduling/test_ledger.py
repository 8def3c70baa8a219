"""The ledger: whatever workers answer, every unit ends committed or failed, and no row block twice."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.assignment import assignment_rollouts
from persona_atlas.jobs.scheduling.ledger import MAX_ATTEMPTS, MAX_FAILURES, Failure, Ledger, row_blocks_needed
from persona_atlas.jobs.work.units import UnitAttempt

from fakes import small_plan, small_spec


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan()


@pytest.fixture(scope="module")
def uneven_plan() -> Plan:
    """Units of 2 rollouts (default), 4 (roles) and 3 (traits), which is not the order of their length."""
    personas = {
        "roles": {"names": ["pirate", "poet"], "prompts": 1, "questions": 4},
        "traits": {"names": ["anxious"], "prompts": 1, "questions": 3},
        "default": {"prompts": 2, "questions": 2},
    }
    return small_plan(small_spec(personas=personas))


def fail(
    ledger: Ledger, attempt: UnitAttempt, why: str = "scripted", *, node: bool = False, permanent: bool = False
) -> bool:
    failure = Failure(attempt.unit.unit_id, attempt.number, why, is_worker_fault=node, is_permanent=permanent)
    return ledger.fail(failure)


@given(data=st.data(), per_assignment=st.integers(1, 12), num_workers=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_any_course_of_answers_and_losses_ends_with_every_unit_committed_or_failed(
    plan: Plan, data: st.DataObject, per_assignment: int, num_workers: int
):
    ids = [unit.unit_id for unit in plan.units]
    before = set(data.draw(st.sets(st.sampled_from(ids), max_size=8), label="committed before"))
    row_blocks = iter(range(row_blocks_needed(plan, before)))
    ledger = Ledger(plan, set(before), row_blocks, per_assignment)
    working: list[tuple[UnitAttempt, ...]] = []
    handed_out: list[UnitAttempt] = []
    failures: dict[str, int] = {}
    losses: dict[str, int] = {}
    hopeless: set[str] = set()
    while not ledger.is_over:
        while len(working) < num_workers and (attempts := ledger.next_assignment()):
            working.append(attempts)
            handed_out.extend(attempts)
        assert working, "nothing is worked and the ledger is not over"
        assert ledger.in_flight == sum(map(len, working))
        attempts = working.pop(data.draw(st.integers(0, len(working) - 1), label="who answers"))
        worker_lost = data.draw(st.booleans(), label="worker lost")
        node_lost = worker_lost and data.draw(st.booleans(), label="with its node")
        for attempt in attempts:
            if worker_lost or data.draw(st.booleans(), label="fails"):
                counted = losses if node_lost else failures
                counted[attempt.unit.unit_id] = counted.get(attempt.unit.unit_id, 0) + 1
                permanent = not worker_lost and data.draw(st.booleans(), label="for good")
                if permanent:
                    hopeless.add(attempt.unit.unit_id)
                again = fail(ledger, attempt, node=node_lost, permanent=permanent)
                is_last = permanent or attempt.number == MAX_ATTEMPTS
                assert again == (failures.get(attempt.unit.unit_id, 0) < MAX_FAILURES and not is_last)
            else:
                ledger.commit(attempt.unit.unit_id)
    assert ledger.committed | set(ledger.failed) == set(ids)
    assert not ledger.committed & set(ledger.failed)
    assert (ledger.in_flight, ledger.pending) == (0, 0)
    used = [attempt.row_block for attempt in handed_out]
    assert len(set(used)) == len(used)
    attempts = {unit_id: [o.number for o in handed_out if o.unit.unit_id == unit_id] for unit_id in ids}
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in attempts.values())
    assert max(map(len, attempts.values())) <= MAX_ATTEMPTS
    assert max(failures.values(), default=0) <= MAX_FAILURES == 3
    assert all(not attempts[unit_id] for unit_id in before)
    assert hopeless <= set(ledger.failed)
    given_up = [(failures.get(unit_id, 0), len(attempts[unit_id])) for unit_id in set(ledger.failed) - hopeless]
    assert all(failed == MAX_FAILURES or tried == MAX_ATTEMPTS for failed, tried in given_up)


def test_a_unit_that_failed_once_is_handed_out_alone(plan: Plan):
    ledger = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=10_000)
    first = ledger.next_assignment()
    assert len(first) == len(plan.units)
    for attempt in first[:3]:
        assert fail(ledger, attempt)
    for expected in first[:3]:
        (attempt,) = ledger.next_assignment()
        assert attempt.unit == expected.unit
        assert attempt.number == 2


def test_a_retry_waits_behind_the_units_never_tried_and_does_not_join_them(plan: Plan):
    ledger = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=3)
    (first,) = ledger.next_assignment()
    fail(ledger, first)
    attempt = [ledger.next_assignment() for _ in plan.units]
    assert all(len(assignment) == 1 for assignment in attempt)
    assert [assignment[0].unit for assignment in attempt] == [*plan.units[1:], first.unit]


def test_a_retry_does_not_ride_with_the_last_fresh_units(plan: Plan):
    ledger = Ledger(plan, {unit.unit_id for unit in plan.units[2:]}, itertools.count(), rollouts_per_assignment=3)
    (first,) = ledger.next_assignment()
    fail(ledger, first)
    ledger.rollouts_per_assignment = 10_000
    assert [o.unit for o in ledger.next_assignment()] == [plan.units[1]]
    assert [o.unit for o in ledger.next_assignment()] == [first.unit]


def test_the_longest_units_go_first_and_equals_keep_the_plans_order(uneven_plan: Plan):
    ledger = Ledger(uneven_plan, set(), itertools.count())
    attempt = []
    while assignment := ledger.next_assignment():
        attempt.extend(o.unit for o in assignment)
    assert [unit.num_rollouts for unit in attempt] == [4, 4, 3, 3, 2, 2]
    assert [unit.unit_id for unit in attempt if unit.kind == "role"] == ["role.pirate.pos.p0.b0", "role.poet.pos.p0.b0"]


def test_an_assignment_fills_a_batch_and_does_not_overfill_it(uneven_plan: Plan):
    ledger = Ledger(uneven_plan, set(), itertools.count(), rollouts_per_assignment=8)
    sizes = []
    while assignment := ledger.next_assignment():
        sizes.append([o.unit.num_rollouts for o in assignment])
    assert sizes == [[4, 4], [3, 3, 2], [2]]


def small(full: int) -> int:
    """Rollouts of a small assignment."""
    return assignment_rollouts(full, assignments_left=0, num_workers=1, is_idle=True)


def test_a_small_assignment_is_a_quarter_of_one_and_a_unit_at_the_least(plan: Plan):
    ledger = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=24)
    assert len(ledger.next_assignment()) == 8
    assert len(ledger.next_assignment(max_rollouts=small(24))) == 2
    little = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=4)
    assert len(little.next_assignment(max_rollouts=small(4))) == 1


def test_a_unit_longer_than_a_batch_is_handed_out_all_the_same(plan: Plan):
    ledger = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=1)
    assert len(ledger.next_assignment()) == 1


def test_an_order_brings_the_texts_of_its_unit(plan: Plan):
    (attempt,) = Ledger(plan, set(), itertools.count()).next_assignment()
    assert tuple(attempt.first_requests()) == tuple(plan.requests(attempt.unit).first(attempt.unit))


def test_the_third_failure_is_kept_with_its_reason(plan: Plan):
    ledger = Ledger(plan, {unit.unit_id for unit in plan.units[1:]}, itertools.count())
    for number in (1, 2, 3):
        assert not ledger.is_over
        (attempt,) = ledger.next_assignment()
        assert fail(ledger, attempt, f"reason {number}") == (number < 3)
    assert ledger.is_over
    assert ledger.failed[plan.units[0].unit_id].message == "reason 3"


def test_a_failure_of_a_unit_that_is_committed_changes_nothing(plan: Plan):
    ledger = Ledger(plan, set(), itertools.count())
    (attempt,) = ledger.next_assignment()
    ledger.commit(attempt.unit.unit_id)
    pending = ledger.pending
    assert not fail(ledger, attempt)
    assert attempt.unit.unit_id in ledger.committed
    assert ledger.pending == pending
    assert not ledger.failed


def test_row_blocks_suffice_for_every_attempt_of_every_missing_unit(plan: Plan):
    known = plan.units[0].unit_id
    assert row_blocks_needed(plan, []) == MAX_ATTEMPTS * len(plan.units)
    assert row_blocks_needed(plan, [known, known, "a.unit.of.another.plan"]) == MAX_ATTEMPTS * (len(plan.units) - 1)


def test_a_unit_that_was_given_up_for_lost_and_comes_after_all_is_not_done_again(plan: Plan):
    ledger = Ledger(plan, set(), iter(range(1000)))
    (attempt,) = ledger.next_assignment()
    assert ledger.fail(Failure(attempt.unit.unit_id, 1, "the worker died"))
    ledger.commit(attempt.unit.unit_id)
    handed_out = []
    while attempts := ledger.next_assignment():
        handed_out += [o.unit.unit_id for o in attempts]
    assert attempt.unit.unit_id not in handed_out


def test_units_that_went_with_their_node_come_next_and_together(plan: Plan):
    ledger = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=6)
    lost = ledger.next_assignment("worker")
    assert len(lost) == 2
    assert all(fail(ledger, attempt, node=True) for attempt in reversed(lost))
    again = ledger.next_assignment("other")
    assert [(attempt.unit, attempt.number, attempt.is_suspect) for attempt in again] == [
        (o.unit, 2, False) for o in lost
    ]
    assert not {attempt.row_block for attempt in again} & {attempt.row_block for attempt in lost}


def only_unit(plan: Plan) -> Ledger:
    """A ledger of which one unit is left to do."""
    return Ledger(plan, {unit.unit_id for unit in plan.units[1:]}, itertools.count())


def test_a_unit_that_goes_with_node_after_node_is_a_suspect_the_third_time_and_given_up_after_six(plan: Plan):
    ledger = only_unit(plan)
    attempts: list[UnitAttempt] = []
    while found := ledger.next_assignment(f"worker-{len(attempts)}"):
        attempts += found
        assert fail(ledger, attempts[-1], node=True) == (len(attempts) < 6)
    assert [attempt.is_suspect for attempt in attempts] == [False] * 3 + [True] * 3
    assert set(ledger.failed) == {plan.units[0].unit_id}
    assert ledger.is_over


def test_the_losses_of_nodes_are_no_failures_of_a_unit(plan: Plan):
    ledger = only_unit(plan)
    course = [True, False, True, False, False]
    for number, node in enumerate(course):
        (attempt,) = ledger.next_assignment(f"worker-{number}")
        assert attempt.is_suspect == (number > 1), "once it may have been to blame, it is alone"
        assert fail(ledger, attempt, node=node) == (number < 4)
    assert set(ledger.failed) == {plan.units[0].unit_id}


def test_a_suspect_waits_at_the_end_of_the_queue(plan: Plan):
    ledger, rest = Ledger(plan, set(), itertools.count(), rollouts_per_assignment=6), []
    attempt, mate = ledger.next_assignment("worker")
    ledger.commit(mate.unit.unit_id)
    fail(ledger, attempt)
    while attempts := ledger.next_assignment("other"):
        rest.append(attempts)
    assert [(o.unit, o.number, o.is_suspect) for o in rest[-1]] == [(attempt.unit, 2, True)], "alone, and last"
