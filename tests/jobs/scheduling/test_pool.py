"""The pool of workers, without a cluster: whom it launches and lets go, which nodes it leaves out, when it gives up."""

from __future__ import annotations

from itertools import islice

import pytest
from persona_atlas.jobs.errors import AtlasError, InputError, JobError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.scheduling.ledger import Failure
from persona_atlas.jobs.scheduling.loading_health import LATE_REFUSALS, LOADING_DEATHS, REFUSALS, REFUSED_PAUSE_S
from persona_atlas.jobs.scheduling.node_health import FIRST_REST_S, MAX_DEATHS, RESTS, WITHIN_S
from persona_atlas.jobs.scheduling.pool import FOLLOW_EVERY_S, PLACEMENT_TIMEOUT_S
from persona_atlas.jobs.scheduling.pool_commands import Deliver, Kill
from persona_atlas.jobs.scheduling.worker_health import FAILURES_IN_A_ROW, SILENCE_S
from persona_atlas.jobs.scheduling.worker_load import WorkRequest
from persona_atlas.jobs.work.units import UnitAttempt

from fakes import small_plan
from pool_harness import (
    LOAD_TIMEOUT_S,
    NO_MEMORY,
    NOT_LOADED,
    STORE_AWAY,
    Done,
    Harness,
    as_suspect,
    attempt_at,
    failures_of,
)

A_MOMENT_S = 0.001


@pytest.fixture(scope="module")
def plan() -> Plan:
    """Twelve units of seven personas."""
    return small_plan()


def ready(places: dict[str, int], replicas: int | None = None) -> Harness:
    """A pool whose workers are all ready, dealt out to the nodes in their order."""
    harness = Harness(places, replicas)
    workers = iter(harness.follow())
    for node, count in places.items():
        for worker in islice(workers, count):
            harness.load(worker, node)
    return harness


# Following the cluster.


@pytest.mark.parametrize(
    ("replicas", "places", "expected"),
    [
        (None, {"a": 2, "b": 1}, 3),
        (None, {"a": 0}, 1),
        (None, {}, 1),
        (2, {"a": 5}, 2),
        (4, {"a": 1}, 4),
    ],
)
def test_as_many_workers_are_launched_as_are_wanted(replicas: int | None, places: dict[str, int], expected: int):
    harness = Harness(places, replicas)
    assert len(harness.follow()) == expected
    assert harness.follow(FOLLOW_EVERY_S) == [], "they wait for their places"


def test_the_pool_is_compared_with_the_cluster_every_three_seconds():
    harness = Harness({"a": 1})
    assert harness.follow() == ["worker-0"]
    harness.places["b"] = 1
    assert harness.follow(3.0 - A_MOMENT_S) == []
    assert harness.follow(A_MOMENT_S) == ["worker-1"]


def test_a_worker_that_waits_for_a_place_is_given_up_after_a_minute_when_there_are_too_many():
    harness = ready({"a": 1, "b": 1})
    harness.places["c"] = 1
    assert harness.follow(FOLLOW_EVERY_S) == ["worker-2"]
    del harness.places["c"]
    harness.follow(60.0)
    assert harness.alive == ["worker-0", "worker-1", "worker-2"]
    harness.follow(3.0)
    assert harness.alive == ["worker-0", "worker-1"]


def test_a_worker_that_is_wanted_waits_for_its_place_for_ever():
    harness = Harness({"a": 1}, replicas=2)
    harness.load(harness.follow()[0], "a")
    for _ in range(20):
        harness.follow(PLACEMENT_TIMEOUT_S)
    assert harness.alive == ["worker-0", "worker-1"]


def test_states_of_workers_and_who_may_have_work(plan: Plan):
    harness = Harness({"a": 4})
    waiting, loading, idle, busy = harness.follow()
    harness.place(loading, "a")
    harness.load(idle, "a")
    harness.load(busy, "a")
    harness.assign(busy, attempt_at(plan, 0))
    workers = harness.pool.workers
    doing = {name: worker.doing for name, worker in workers.by_name.items()}
    assert doing == {waiting: "waiting", loading: "loading", idle: "idle", busy: "working"}
    assert (workers.ready, workers.idle, workers.requesting) == ([idle, busy], [idle], [])
    assert (workers.num_workers, workers.is_any_placed) == (3, True)
    assert harness.report(busy, request=WorkRequest(1)) == []
    assert workers.requesting == [busy]


def test_those_that_ask_come_in_the_order_of_their_load(plan: Plan):
    harness = ready({"a": 2})
    harness.assign("worker-0", attempt_at(plan, 0), attempt_at(plan, 1))
    harness.assign("worker-1", attempt_at(plan, 2))
    harness.report("worker-0", request=WorkRequest(2))
    harness.report("worker-1", request=WorkRequest(1))
    assert harness.pool.workers.requesting == ["worker-1", "worker-0"]


def test_a_cluster_without_room_is_waited_for_as_long_as_a_model_may_take_to_load():
    harness = Harness({"a": 0})
    harness.follow()
    harness.follow(LOAD_TIMEOUT_S)
    with pytest.raises(JobError) as caught:
        harness.follow(FOLLOW_EVERY_S)
    assert (caught.value.code, caught.value.field) == ("no_worker", "placement")


def test_places_that_others_have_are_waited_for_for_ever():
    harness = Harness({"a": 1})
    harness.follow()
    for _ in range(10):
        harness.follow(LOAD_TIMEOUT_S)
    assert harness.alive == ["worker-0"]


def test_a_job_that_has_worked_waits_for_nodes_for_ever():
    harness = ready({"a": 1})
    harness.places.clear()
    harness.gone.add("a")
    harness.die("worker-0")
    for _ in range(10):
        harness.follow(LOAD_TIMEOUT_S)
    assert harness.alive == ["worker-1"]


# Results.


def test_results_of_units_that_a_worker_does_not_hold_do_not_count(plan: Plan):
    harness = ready({"a": 1})
    unit = attempt_at(plan, 0)
    harness.assign("worker-0", unit)
    done = Done(unit.unit.unit_id)
    assert harness.report("worker-0", Done("another"), done) == [Deliver("worker-0", (done,))]
    assert harness.report("worker-0", done) == []
    assert harness.report("worker-9", done) == []
    assert harness.pool.workers.idle == ["worker-0"]


def test_what_a_worker_rejected_fails_and_the_worker_stays(plan: Plan):
    harness = ready({"a": 1})
    unit = attempt_at(plan, 0)
    harness.assign("worker-0", unit)
    delivered = harness.carry_out(harness.pool.rejected("worker-0", [unit], "a traceback", harness.now))
    assert failures_of(delivered) == [Failure(unit.unit.unit_id, 1, "the worker failed", "a traceback")]
    assert harness.pool.workers.idle == ["worker-0"]


def test_nothing_counts_that_is_reported_of_a_worker_that_was_let_go(plan: Plan):
    harness = ready({"a": 1})
    harness.die("worker-0")
    pool, now = harness.pool, harness.now
    for commands in (
        pool.placed("worker-0", "a", now),
        pool.loaded("worker-0", now),
        pool.refused("worker-0", NO_MEMORY, harness.nodes, now),
        pool.rejected("worker-0", [attempt_at(plan, 0)], "", now),
        pool.died("worker-0", "", harness.nodes, now),
    ):
        assert commands == []


# Workers that are lost.


def test_a_death_fails_the_workers_units_and_another_is_launched_at_once(plan: Plan):
    harness = ready({"a": 1})
    unit, mate = attempt_at(plan, 0), attempt_at(plan, 1)
    harness.assign("worker-0", unit, mate)
    failures = failures_of(harness.die("worker-0"))
    assert [failure.unit_id for failure in failures] == [unit.unit.unit_id, mate.unit.unit_id]
    assert {(failure.message, failure.detail, failure.is_worker_fault) for failure in failures} == {
        ("the worker died", "killed", False)
    }
    assert harness.follow() == ["worker-1"]


@pytest.mark.parametrize("is_unreachable", [True, False])
def test_what_goes_with_its_node_is_innocent_and_the_node_is_not_charged(plan: Plan, is_unreachable: bool):
    harness = ready({"a": 1, "b": 1})
    if not is_unreachable:
        harness.gone.add("a")
    for number in range(2 * MAX_DEATHS):
        worker = harness.alive[0] if number == 0 else harness.follow(FOLLOW_EVERY_S)[0]
        if number:
            harness.load(worker, "a")
        harness.assign(worker, attempt_at(plan, number))
        (failure,) = failures_of(harness.die(worker, is_unreachable=is_unreachable))
        assert (failure.message, failure.is_worker_fault) == ("the worker's node is gone", True)
    assert harness.pool.nodes_left_out == {}


def test_workers_over_two_nodes_are_as_many_as_pairs_of_nodes_have_room_for():
    harness = Harness({"a": 1, "b": 1, "c": 1}, per_worker=2)
    assert harness.follow() == ["worker-0"]
    harness.places["d"] = 1
    assert harness.follow(FOLLOW_EVERY_S) == ["worker-1"]


def test_of_a_worker_over_two_nodes_the_node_is_blamed_whose_part_failed(plan: Plan):
    harness = Harness({"a": 1, "b": 1, "c": 1}, per_worker=2)
    harness.follow()
    harness.place("worker-0", "a")
    harness.refuse("worker-0", node_id="b")
    assert list(harness.pool.nodes_left_out) == ["b"]
    (worker,) = harness.follow(FOLLOW_EVERY_S)
    assert harness.launched[-1].avoid == ("b",)
    harness.load(worker, "a")
    harness.assign(worker, attempt_at(plan, 0))
    # The node of its other part is gone.
    harness.gone.add("c")
    (failure,) = failures_of(harness.die(worker, node_id="c"))
    assert (failure.message, failure.is_worker_fault) == ("the worker's node is gone", True)


def test_deaths_are_charged_to_the_node_of_the_part_that_died():
    harness = Harness({"a": 1, "b": 1, "c": 1}, per_worker=2)
    for _ in range(MAX_DEATHS):
        (worker,) = harness.follow(FOLLOW_EVERY_S)
        harness.load(worker, "a")
        harness.die(worker, node_id="b")
    assert list(harness.pool.nodes_left_out) == ["b"]


def kill_on(harness: Harness, node: str, unit: UnitAttempt | None = None) -> None:
    """Let the pool replace a worker, and the replacement die on a node."""
    (worker,) = harness.follow(FOLLOW_EVERY_S)
    harness.load(worker, node)
    if unit is not None:
        harness.assign(worker, unit)
    harness.die(worker)


def test_a_node_on_which_three_workers_die_within_an_hour_is_left_out():
    harness = ready({"a": 1, "b": 1})
    harness.die("worker-0")
    kill_on(harness, "a")
    assert harness.pool.nodes_left_out == {}
    kill_on(harness, "a")
    assert harness.pool.nodes_left_out == {"a": f"{MAX_DEATHS} workers died on it, the last: killed"}
    assert harness.follow(FOLLOW_EVERY_S) == [], "one is wanted, and one is there"
    harness.die("worker-1")
    (worker,) = harness.follow()
    assert harness.launched[-1].avoid == ("a",)
    assert worker == harness.launched[-1].worker


def test_deaths_an_hour_apart_leave_no_node_out():
    harness = ready({"a": 1, "b": 1})
    harness.die("worker-0")
    for _ in range(2 * MAX_DEATHS):
        harness.now += WITHIN_S
        kill_on(harness, "a")
    assert harness.pool.nodes_left_out == {}


def test_a_death_over_a_suspect_is_not_charged_to_the_node(plan: Plan):
    harness = ready({"a": 1, "b": 1})
    harness.die("worker-0")
    for number in range(2 * MAX_DEATHS):
        kill_on(harness, "a", as_suspect(attempt_at(plan, number)))
    assert harness.pool.nodes_left_out == {}


def test_the_last_node_is_never_left_out_of_a_job_that_works():
    harness = ready({"a": 1})
    harness.die("worker-0")
    for _ in range(3 * MAX_DEATHS):
        kill_on(harness, "a")
    assert harness.pool.nodes_left_out == {}
    assert harness.launched[-1].avoid == ()


def test_a_job_whose_every_node_has_refused_ends_though_one_more_seemed_alive_for_a_while():
    pool = Harness({"a": 1, "b": 1, "dying": 1})
    first, second, _third = pool.follow()
    for worker, node in ((first, "a"), (second, "b")):
        pool.place(worker, node)
        pool.refuse(worker, NO_MEMORY)
    assert set(pool.pool.nodes_left_out) == {"a", "b"}
    del pool.places["dying"]
    pool.gone.add("dying")
    with pytest.raises(InputError) as caught:
        pool.follow(FOLLOW_EVERY_S)
    assert caught.value is NO_MEMORY
    launched = {launch.worker for launch in pool.launched}
    assert {command.worker for command in pool.pool.close() if isinstance(command, Kill)} <= launched


def test_the_last_node_left_out_is_used_again_when_the_others_are_gone():
    pool = Harness({"a": 1, "b": 1, "dying": 1})
    first, second, third = pool.follow()
    pool.place(first, "a")
    pool.place(second, "b")
    pool.load(third, "dying")
    pool.refuse(first, NO_MEMORY)
    pool.refuse(second, NO_MEMORY)
    assert set(pool.pool.nodes_left_out) == {"a", "b"}
    del pool.places["dying"]
    pool.gone.add("dying")
    pool.die(third)
    launched = pool.follow(FOLLOW_EVERY_S)
    assert set(pool.pool.nodes_left_out) == {"a"}
    assert [launch.avoid for launch in pool.launched if launch.worker in launched] == [("a",)]
    assert pool.alive == launched


def test_a_worker_that_was_placed_on_a_node_left_out_meanwhile_is_replaced():
    harness = ready({"a": 1, "b": 1, "c": 2})
    early = harness.alive[3]
    harness.die("worker-0")
    (late,) = harness.follow()
    for _ in range(MAX_DEATHS - 1):
        harness.load(late, "a")
        harness.die(late)
        (late,) = harness.follow(FOLLOW_EVERY_S) or (late,)
    assert list(harness.pool.nodes_left_out) == ["a"]
    assert early in harness.alive
    harness.places["d"] = 1
    (worker,) = harness.follow(FOLLOW_EVERY_S)
    harness.place(worker, "a")
    assert worker not in harness.alive
    assert harness.follow(FOLLOW_EVERY_S) == [f"worker-{len(harness.launched) - 1}"]


# Workers that never become ready.


@pytest.mark.parametrize(
    ("error", "expected"), [(NO_MEMORY, (InputError, "not_enough_memory")), (NOT_LOADED, (JobError, "no_worker"))]
)
def test_what_no_node_can_load_ends_the_job_at_the_third_refusal(
    error: AtlasError, expected: tuple[type[AtlasError], str]
):
    harness = Harness(dict.fromkeys("abcdef", 1), replicas=1)
    for node in "abcdef"[: REFUSALS - 1]:
        (worker,) = harness.follow()
        harness.place(worker, node)
        harness.refuse(worker, error)
    assert sorted(harness.pool.nodes_left_out) == ["a", "b"]
    (worker,) = harness.follow()
    assert harness.launched[-1].avoid == ("a", "b")
    harness.place(worker, "c")
    with pytest.raises(expected[0]) as caught:
        harness.refuse(worker, error)
    assert caught.value.code == expected[1]


def test_a_refusal_on_the_only_node_ends_the_job_at_once():
    harness = Harness({"a": 1})
    (worker,) = harness.follow()
    harness.place(worker, "a")
    with pytest.raises(InputError):
        harness.refuse(worker)


def test_a_refusal_while_another_worker_loads_ends_nothing():
    harness = Harness({"a": 1, "b": 1})
    first, second = harness.follow()
    harness.place(first, "a")
    harness.place(second, "b")
    harness.refuse(first)
    assert harness.pool.nodes_left_out == {"a": str(NO_MEMORY)}
    with pytest.raises(InputError):
        harness.refuse(second)


def test_a_refusal_that_may_pass_is_retried_after_half_a_minute_on_any_node():
    harness = Harness({"a": 1})
    for _ in range(LATE_REFUSALS - 1):
        (worker,) = harness.follow()
        harness.place(worker, "a")
        harness.refuse(worker, STORE_AWAY)
        assert harness.pool.nodes_left_out == {}
        assert harness.follow(REFUSED_PAUSE_S - A_MOMENT_S) == []
        harness.now += A_MOMENT_S
    (worker,) = harness.follow()
    harness.place(worker, "a")
    with pytest.raises(JobError, match="the store has a bad moment"):
        harness.refuse(worker, STORE_AWAY)


def test_the_last_node_of_a_job_that_has_worked_is_asked_again_for_ten_minutes():
    harness = ready({"a": 1})
    harness.die("worker-0")
    began = harness.now
    for _ in range(LATE_REFUSALS - 1):
        (worker,) = harness.follow()
        harness.place(worker, "a")
        harness.refuse(worker)
        assert harness.pool.nodes_left_out == {}, "it is the last"
        assert harness.follow(REFUSED_PAUSE_S - A_MOMENT_S) == []
        harness.now += A_MOMENT_S
    assert harness.now - began == pytest.approx(570)
    (worker,) = harness.follow()
    harness.place(worker, "a")
    with pytest.raises(InputError):
        harness.refuse(worker)


def test_a_refusal_is_followed_by_a_launch_at_once_where_another_node_has_room():
    harness = ready({"a": 1, "b": 1})
    harness.die("worker-0")
    (worker,) = harness.follow()
    harness.place(worker, "a")
    harness.refuse(worker)
    assert list(harness.pool.nodes_left_out) == ["a"]
    harness.places["c"] = 1
    assert len(harness.follow()) == 1


@pytest.mark.parametrize("replicas", [1, 3])
def test_workers_that_die_while_they_load_end_the_job_at_three_for_each_that_is_wanted(replicas: int):
    harness = Harness(dict.fromkeys("abcdefghijkl", 1), replicas)
    nodes = iter("abcdefghijkl")
    for _ in range(LOADING_DEATHS * replicas - 1):
        harness.follow(FOLLOW_EVERY_S)
        harness.place(harness.alive[0], next(nodes))
        harness.die(harness.alive[0])
    harness.follow(FOLLOW_EVERY_S)
    harness.place(harness.alive[0], next(nodes))
    with pytest.raises(JobError, match="no worker is left") as caught:
        harness.die(harness.alive[0])
    assert caught.value.code == "no_worker"


def test_workers_that_die_on_one_node_end_no_job_while_one_loads_on_another():
    harness = Harness({"a": 1, "b": 1})
    _, elsewhere = harness.follow()
    harness.place(elsewhere, "b")
    harness.follow(1.0)
    for _ in range(4 * LOADING_DEATHS):
        harness.die(next(worker for worker in harness.alive if worker != elsewhere))
        harness.follow(60.0)
    harness.load(elsewhere, "b")
    assert elsewhere in harness.alive


def test_workers_that_die_while_one_loads_end_the_job_once_that_has_died_too():
    harness = Harness({"a": 1, "b": 1})
    _, elsewhere = harness.follow()
    harness.place(elsewhere, "b")
    harness.follow(1.0)
    for _ in range(2 * LOADING_DEATHS):
        harness.die(next(worker for worker in harness.alive if worker != elsewhere))
        harness.follow(60.0)
    with pytest.raises(JobError, match="no worker is left"):
        harness.die(elsewhere)


def test_workers_that_die_before_anybody_knows_where_are_launched_ever_less_often():
    harness = ready({"a": 2})
    harness.die("worker-1")
    pauses = []
    for _ in range(8):
        (worker,) = harness.follow()
        harness.die(worker)
        pauses.append(harness.pool.follow_at - harness.now)
        assert harness.follow(pauses[-1] - A_MOMENT_S) == []
        harness.now += A_MOMENT_S
    assert pauses == pytest.approx([2, 4, 8, 16, 32, 60, 60, 60])
    assert harness.pool.nodes_left_out == {}


def test_a_worker_that_takes_too_long_to_load_is_let_go_and_its_node_left_out():
    harness = ready({"a": 1, "b": 1})
    harness.die("worker-0")
    (worker,) = harness.follow()
    harness.now += 10 * LOAD_TIMEOUT_S
    harness.place(worker, "a")
    harness.check_silence(LOAD_TIMEOUT_S)
    assert worker in harness.alive, "it is judged from its placement on"
    harness.check_silence(A_MOMENT_S)
    assert worker not in harness.alive
    assert harness.pool.nodes_left_out == {"a": "the model was not loaded in 1800 s"}


def test_a_model_that_the_only_node_does_not_load_in_time_ends_the_job():
    harness = Harness({"a": 1})
    (worker,) = harness.follow()
    harness.place(worker, "a")
    with pytest.raises(JobError, match="was not loaded in 1800 s"):
        harness.check_silence(LOAD_TIMEOUT_S + A_MOMENT_S)


# Workers that live and are of no use.


def answer(harness: Harness, worker: str, unit: UnitAttempt, after_s: float) -> None:
    harness.assign(worker, unit)
    harness.now += after_s
    harness.report(worker, Done(unit.unit.unit_id))


def test_a_worker_that_is_silent_for_too_long_is_replaced(plan: Plan):
    harness = ready({"a": 1, "b": 1})
    answer(harness, "worker-0", attempt_at(plan, 0), after_s=20)
    harness.assign("worker-0", attempt_at(plan, 1))
    assert harness.check_silence(SILENCE_S) == []
    (failure,) = failures_of(harness.check_silence(A_MOMENT_S))
    assert failure.message == "the worker hung and was replaced"
    assert failure.detail == "silent for 1800 s; the longest before was 20 s"
    assert not failure.is_worker_fault
    assert harness.alive == ["worker-1"], "who holds nothing may be silent"
    assert len(harness.follow()) == 1


def test_an_answer_is_no_silence_and_neither_is_the_time_without_work(plan: Plan):
    harness = ready({"a": 1})
    answer(harness, "worker-0", attempt_at(plan, 0), after_s=20)
    assert harness.check_silence(2 * SILENCE_S) == [], "it holds nothing"
    harness.assign("worker-0", attempt_at(plan, 1), attempt_at(plan, 2))
    harness.now += 20
    harness.report("worker-0", Done(plan.units[1].unit_id))
    assert harness.check_silence(SILENCE_S) == []
    harness.assign("worker-0", attempt_at(plan, 3))
    assert harness.check_silence(A_MOMENT_S) != [], "more work is no sign of life"


def broken(plan: Plan) -> Harness:
    """Two workers, of which the first has worked and holds units of several personas."""
    harness = ready({"a": 1, "b": 1})
    answer(harness, "worker-0", attempt_at(plan, 0), after_s=1)
    harness.assign("worker-0", *(attempt_at(plan, number) for number in range(1, 12)))
    return harness


def failed(plan: Plan, number: int) -> Failure:
    return Failure(plan.units[number].unit_id, 1, "CUDA error")


def test_a_worker_that_fails_unit_after_unit_is_replaced_and_what_it_holds_is_innocent(plan: Plan):
    harness = broken(plan)
    for number in range(1, FAILURES_IN_A_ROW):
        assert failures_of(harness.report("worker-0", failed(plan, number))) == [failed(plan, number)]
    own, others = harness.report("worker-0", failed(plan, FAILURES_IN_A_ROW))
    assert own.results == (failed(plan, FAILURES_IN_A_ROW),)
    assert {(failure.message, failure.detail, failure.is_worker_fault) for failure in failures_of([others])} == {
        ("the worker failed unit after unit and was replaced", "CUDA error", True)
    }
    assert len(others.results) == 11 - FAILURES_IN_A_ROW
    assert harness.alive == ["worker-1"]


def test_a_success_at_the_end_of_a_report_clears_the_worker(plan: Plan):
    harness = broken(plan)
    failures = [failed(plan, number) for number in range(1, FAILURES_IN_A_ROW + 2)]
    harness.report("worker-0", *failures, Done(plan.units[10].unit_id))
    assert "worker-0" in harness.alive


def test_the_failures_of_suspects_say_nothing_of_their_worker(plan: Plan):
    harness = broken(plan)
    for number in range(1, 12):
        harness.report("worker-0", Done(plan.units[number].unit_id))
    for number in range(1, 12):
        harness.assign("worker-0", as_suspect(attempt_at(plan, number)))
        harness.report("worker-0", Failure(plan.units[number].unit_id, 2, "CUDA error"))
    assert "worker-0" in harness.alive


def test_nothing_is_assigned_beside_a_suspect(plan: Plan):
    harness = ready({"a": 1})
    harness.assign("worker-0", as_suspect(attempt_at(plan, 0)))
    harness.report("worker-0", request=WorkRequest(1))
    assert harness.pool.workers.requesting == []


def test_a_pool_that_is_closed_lets_every_worker_go():
    harness = ready({"a": 2, "b": 1})
    harness.carry_out(harness.pool.close())
    assert harness.alive == []


def test_a_node_whose_memory_is_freed_late_is_tried_again():
    harness = ready({"a": 1, "b": 1}, replicas=2)
    harness.die("worker-0")
    (worker,) = harness.follow()
    harness.place(worker, "a")
    harness.refuse(worker)
    assert list(harness.pool.nodes_left_out) == ["a"]
    (waiting,) = harness.follow()
    assert harness.launched[-1].avoid == ("a",)
    assert harness.follow(FIRST_REST_S - A_MOMENT_S) == []
    (worker,) = harness.follow(FOLLOW_EVERY_S)
    assert waiting not in harness.alive, "it would wait for a place elsewhere"
    assert harness.launched[-1].avoid == ()
    harness.load(worker, "a")
    assert harness.pool.nodes_left_out == {}


def test_a_node_that_refuses_after_every_rest_is_left_out():
    harness = ready({"a": 1, "b": 1}, replicas=2)
    harness.die("worker-0")
    (worker,) = harness.follow()
    for _ in range(RESTS):
        harness.place(worker, "a")
        harness.refuse(worker)
        harness.follow()
        (worker,) = harness.follow(FIRST_REST_S * 2**RESTS)
    harness.place(worker, "a")
    harness.refuse(worker)
    harness.follow()
    assert harness.follow(10_000.0) == []
    assert harness.pool.nodes_left_out == {"a": str(NO_MEMORY)}
