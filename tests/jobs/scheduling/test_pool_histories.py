"""The pool under random histories of nodes, workers and reports: no result is lost or doubled, and jobs end."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from persona_atlas.jobs.errors import AtlasError
from persona_atlas.jobs.scheduling.assignment import assign_work
from persona_atlas.jobs.scheduling.ledger import Failure, Ledger
from persona_atlas.jobs.scheduling.pool import FOLLOW_EVERY_S
from persona_atlas.jobs.scheduling.pool_commands import Deliver
from persona_atlas.jobs.scheduling.worker_load import WorkRequest
from persona_atlas.jobs.work.units import UnitAttempt

from fakes import small_plan
from pool_harness import NO_MEMORY, STORE_AWAY, Done, Harness

PLAN = small_plan()
NODES = ("a", "b", "c", "d")


class PoolHistory(RuleBasedStateMachine):
    """A ledger and a pool, with workers that do as they please and nodes that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.begin(set())

    def begin(self, committed: set[str]) -> None:
        """Start the job, or start it again."""
        self.harness = Harness({"a": 1, "b": 2})
        self.ledger = Ledger(PLAN, committed, itertools.count(), rollouts_per_assignment=6)
        self.held: dict[str, dict[str, UnitAttempt]] = {}
        self.num_assigned: Counter[str] = Counter()
        self.delivered: Counter[tuple[str, int]] = Counter()
        self.given_up: AtlasError | None = None

    def is_going_on(self) -> bool:
        return self.given_up is None

    def settle(self, delivered: list[Deliver[Done]]) -> None:
        """Settle what was delivered, as the run loop does."""
        for one in delivered:
            for result in one.results:
                attempt = self.held[one.worker].pop(result.unit_id)
                self.delivered[result.unit_id, attempt.number] += 1
                if isinstance(result, Failure):
                    assert result.attempt == attempt.number
                    self.ledger.fail(result, one.worker)
                else:
                    self.ledger.commit(result.unit_id)

    def pick(self, data: st.DataObject, names: list[str]) -> str:
        return data.draw(st.sampled_from(names))

    @precondition(is_going_on)
    @rule(after_s=st.sampled_from([0.0, 1.0, FOLLOW_EVERY_S, 61.0]))
    def follow(self, after_s: float) -> None:
        self.attempt(lambda: self.harness.follow(after_s))

    @precondition(is_going_on)
    @rule(data=st.data())
    def place_or_load(self, data: st.DataObject) -> None:
        workers = self.harness.pool.workers.by_name
        unready = [name for name, worker in workers.items() if not worker.is_ready]
        if not unready or not self.harness.places:
            return
        name = self.pick(data, unready)
        avoid = next(launch.avoid for launch in self.harness.launched if launch.worker == name)
        if workers[name].node_id:
            self.harness.load(name, workers[name].node_id)
        elif allowed := sorted(self.harness.places.keys() - set(avoid)):
            self.harness.place(name, self.pick(data, allowed))

    @precondition(is_going_on)
    @rule(data=st.data(), error=st.sampled_from([NO_MEMORY, STORE_AWAY]))
    def refuse(self, data: st.DataObject, error: AtlasError) -> None:
        workers = self.harness.pool.workers.by_name
        loading = [name for name, worker in workers.items() if worker.node_id and not worker.is_ready]
        if loading:
            name = self.pick(data, loading)
            self.attempt(lambda: self.harness.refuse(name, error))

    @precondition(is_going_on)
    @rule()
    def assign(self) -> None:
        for assignment in assign_work(self.ledger, self.harness.pool.workers):
            held = self.held.setdefault(assignment.worker, {})
            assert not (held and any(attempt.is_suspect for attempt in (*held.values(), *assignment.attempts)))
            held.update({attempt.unit.unit_id: attempt for attempt in assignment.attempts})
            self.num_assigned[assignment.worker] += len(assignment.attempts)
            self.harness.assign(assignment.worker, *assignment.attempts)

    @precondition(is_going_on)
    @rule(data=st.data(), fails=st.booleans(), asks=st.booleans())
    def report(self, data: st.DataObject, fails: bool, asks: bool) -> None:
        busy = [name for name in self.harness.pool.workers.ready if self.held.get(name)]
        if not busy:
            return
        name = self.pick(data, busy)
        attempt = self.held[name][self.pick(data, sorted(self.held[name]))]
        unit_id = attempt.unit.unit_id
        result = Failure(unit_id, attempt.number, "scripted") if fails else Done(unit_id)
        request = WorkRequest(self.num_assigned[name]) if asks else None
        self.settle(self.harness.report(name, result, request=request))

    @precondition(is_going_on)
    @rule(data=st.data(), is_unreachable=st.booleans())
    def die(self, data: st.DataObject, is_unreachable: bool) -> None:
        if self.harness.alive:
            name = self.pick(data, self.harness.alive)
            self.attempt(lambda: self.settle(self.harness.die(name, is_unreachable=is_unreachable)))
            assert name not in self.harness.alive

    @precondition(is_going_on)
    @rule(node=st.sampled_from(NODES), places=st.integers(1, 3))
    def join(self, node: str, places: int) -> None:
        if node not in self.harness.gone:
            self.harness.places[node] = places

    @precondition(is_going_on)
    @rule(data=st.data())
    def lose_node(self, data: st.DataObject) -> None:
        if not self.harness.places:
            return
        node = self.pick(data, sorted(self.harness.places))
        del self.harness.places[node]
        self.harness.gone.add(node)
        for name, worker in list(self.harness.pool.workers.by_name.items()):
            if worker.node_id == node:
                self.settle(self.harness.die(name))

    @precondition(is_going_on)
    @rule(after_s=st.sampled_from([10.0, 2000.0]))
    def check_silence(self, after_s: float) -> None:
        self.attempt(lambda: self.settle(self.harness.check_silence(after_s)))

    @precondition(lambda self: not self.is_going_on())
    @rule()
    def start_again(self) -> None:
        self.begin(set(self.ledger.committed))

    def attempt(self, event: Callable[[], object]) -> None:
        """Make something happen that the pool may answer by giving the job up."""
        try:
            event()
        except AtlasError as error:
            self.given_up = error

    @invariant()
    def what_is_in_flight_is_held_by_a_worker_that_is_there(self) -> None:
        if self.given_up is None:
            held = {name: set(units) for name, units in self.held.items() if units}
            loads = {
                name: {attempt.unit.unit_id for attempt in worker.load.attempts}
                for name, worker in self.harness.pool.workers.by_name.items()
                if not worker.load.is_empty
            }
            assert held == loads
            assert self.ledger.in_flight == sum(map(len, held.values()))

    @invariant()
    def every_attempt_is_answered_at_most_once(self) -> None:
        assert set(self.delivered.values()) <= {1}

    @invariant()
    def a_job_in_which_a_worker_is_ready_is_never_given_up(self) -> None:
        assert self.given_up is None or not self.harness.pool.workers.ready

    def teardown(self) -> None:
        """Whatever happened: as soon as there is a good node and no more trouble, the job goes on to its end."""
        if self.given_up is not None:
            return
        self.harness.places["good"] = 2
        for _ in range(100):
            self.harness.follow(61.0)
            for name, worker in list(self.harness.pool.workers.by_name.items()):
                if not worker.is_ready:
                    self.harness.load(name, worker.node_id or "good")
            self.assign()
            for name in list(self.harness.pool.workers.ready):
                for unit_id in list(self.held.get(name, {})):
                    self.settle(self.harness.report(name, Done(unit_id)))
            if self.ledger.is_over:
                break
        assert self.ledger.is_over
        assert self.ledger.committed | set(self.ledger.failed) == set(PLAN.by_id)


PoolHistory.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestPoolHistory = PoolHistory.TestCase
