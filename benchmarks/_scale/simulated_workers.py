"""Workers that take their time and have no model, on nodes that come and go, behind the real pool of workers.

A worker is a batch: so many slots, each taken by a rollout for as long as its response is, and by the next when it
ends. Time in which the driver would only wait is skipped; what the driver *does* takes the time it takes, and while a
commit is under way time passes as on a wall clock. So a driver that is slow is slow here too.

The pool (``jobs/scheduling/pool.py``) and the rule of assignments are the real ones: this executor carries out the
pool's commands on simulated nodes and reports what happens there as events, as Ray's executor does on real ones. It
knows nothing of stores: what workers write is written by another process (``_scale.workers_side``).
"""

from __future__ import annotations

import heapq
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

from persona_atlas.cluster.pool.executor import Answer
from persona_atlas.cluster.pool.pooled_executor import PooledExecutor
from persona_atlas.jobs.scheduling.pool import WorkerPool
from persona_atlas.jobs.scheduling.pool_commands import ClusterNodes
from persona_atlas.jobs.scheduling.worker_load import WorkRequest
from persona_atlas.jobs.work.units import UnitAttempt
from persona_atlas.storage.format.records import Manifest

from _scale.node_losses import NodeLoss, SimulatedCluster
from _scale.simulated_clock import Clock
from _scale.workers_side import WorkersSide, response_share

_POLL_S = 0.002
"""Pause between checks of whether a commit still keeps time from being skipped."""

_LOAD_TIMEOUT_S = 1800.0
_FOREVER = float("inf")


@dataclass(eq=False)
class Replica:
    """One worker: a batch with a fixed number of slots, first come, first served.

    Attributes:
        name: Name of the worker.
        ready_at: When its model was loaded, seconds.
        slots: When each slot of its batch comes free, a heap.
        gone_at: When its node was lost; infinite while it lives.
        began: When each of its rollouts began, seconds.
        ended: When each ended; those that end after ``gone_at`` are lost.
        num_units: Units that it was assigned.
    """

    name: str
    ready_at: float
    slots: list[float]
    gone_at: float = _FOREVER
    began: array[float] = field(default_factory=lambda: array("d"))
    ended: array[float] = field(default_factory=lambda: array("d"))
    num_units: int = 0

    def run(self, now: float, seconds: Iterable[float]) -> float:
        """Let a unit's rollouts join the batch in their order as slots come free.

        Args:
            now: When the unit arrives, seconds.
            seconds: How long each rollout takes.

        Returns:
            When the last of them ends.
        """
        last = now
        for duration in seconds:
            begin = max(now, self.slots[0])
            end = begin + duration
            heapq.heapreplace(self.slots, end)
            self.began.append(begin)
            self.ended.append(end)
            last = max(last, end)
        return last


@dataclass(eq=False)
class _Node:
    """A node; one that joins in the place of another has an id of its own.

    ``workers`` are those placed on it, and ``is_lost`` is true before the cluster knows.
    """

    node_id: str
    places: int
    workers: list[str] = field(default_factory=list)
    is_lost: bool = False


class SimulatedExecutor(PooledExecutor):
    """An executor of replicas on simulated nodes.

    Args:
        cluster: How many nodes and replicas, how fast, and what is lost.
        side: Writes what workers would write.
        clock: Simulated time.

    Attributes:
        replicas: Every worker that ever was ready.
        handed_out: Of each assignment the time, and how many of its units were attempted for the first time.
        units_lost: Units that were in flight on lost nodes.
    """

    def __init__(self, cluster: SimulatedCluster, side: WorkersSide, clock: Clock) -> None:
        super().__init__(WorkerPool[Manifest](None, _LOAD_TIMEOUT_S), lambda: clock.now)
        self._cluster = cluster
        self._side = side
        self._time = clock
        self._loading_times = cluster.loading_times()
        self._nodes: dict[int, _Node] = {}
        # What the cluster says: it learns of a loss later.
        self._known: dict[str, int] = {}
        self._gone: set[str] = set()
        self._unplaced: deque[tuple[str, tuple[str, ...]]] = deque()
        self._alive: dict[str, Replica] = {}
        self._events: list[tuple[float, int, Callable[[], list[Answer]]]] = []
        self._num_events = 0
        self._num_handed_out = 0
        self._num_joined = 0
        self._uncommitted = 0
        self._lock = threading.Lock()
        self.replicas: list[Replica] = []
        self.handed_out: deque[tuple[float, int]] = deque()
        self.units_lost = 0

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Have every replica load; time 0 is when the first is ready.

        Args:
            tick: Called about once a second meanwhile.
        """
        first_s = min(islice(self._cluster.loading_times(), self._cluster.workers))
        self._time.restart(-first_s)
        for number in range(self._cluster.num_nodes):
            self._join(number)
        for loss in self._cluster.losses:
            self._at(loss.at_s, partial(self._lose, loss))
        super().start(tick)

    def wait(self, timeout_s: float) -> list[Answer]:
        """Wait for answers; skips the time until something happens, unless a commit is under way.

        Like Ray's executor it returns at the first event of any kind, also at one that brings no answer: a worker that
        is ready, or asks for more, is assigned work at once.

        Args:
            timeout_s: Seconds to wait at most.

        Returns:
            The answers that have arrived.
        """
        deadline = self._time.now + timeout_s
        answers: list[Answer] = []
        while True:
            now = self._time.now
            if now >= self._pool.follow_at:
                self._carry_out(self._pool.follow(self._seen(), now))
            has_event = self._next_event_at <= now
            answers += self._pass_to(now)
            if has_event or now >= deadline:
                return answers + self._carry_out(self._pool.check_silence(self._time.now))
            seconds = min(deadline, self._pool.follow_at, self._next_event_at) - self._time.now
            if seconds > 0 and self._uncommitted:
                time.sleep(min(seconds, _POLL_S))
            elif seconds > 0:
                self._time.skip(seconds)

    def committed(self) -> None:
        """Take note that a commit record is written; from any thread."""
        with self._lock:
            self._uncommitted -= 1

    def close(self) -> None:
        """End; what still runs is cut."""
        for replica in self._alive.values():
            replica.gone_at = min(replica.gone_at, self._time.now)
        super().close()

    def _launch(self, worker: str, avoid: tuple[str, ...]) -> None:
        self._unplaced.append((worker, avoid))
        self._place()

    def _kill(self, worker: str) -> None:
        self._alive.pop(worker, None)
        self._unplaced = deque(waiting for waiting in self._unplaced if waiting[0] != worker)
        for node in self._nodes.values():
            if worker in node.workers:
                node.workers.remove(worker)
        self._place()

    def _send(self, worker: str, attempts: tuple[UnitAttempt, ...]) -> None:
        """Serialise an assignment, as Ray would, and let its rollouts run."""
        replica, number = self._alive[worker], self._num_handed_out
        self._num_handed_out += 1
        self._side.work(self._time, number, worker, attempts)
        now = self._time.now
        self.handed_out.append((now, sum(attempt.number == 1 for attempt in attempts)))
        if replica.gone_at < now:
            # Its node is lost and the driver does not know yet.
            return
        for attempt in attempts:
            with self._time.stopped():
                shares = (response_share(request.seed) for request in attempt.first_requests())
                done_at = replica.run(now, (share * self._cluster.rollout_s for share in shares))
            self._at(done_at, partial(self._finish, replica, number, attempt.unit.unit_id))
        replica.num_units += len(attempts)
        # When all of these have begun, the next slot that comes free has nothing to take.
        self._at(replica.slots[0], partial(self._request_work, replica, replica.num_units))

    def _seen(self) -> ClusterNodes:
        return ClusterNodes(self._known, frozenset(self._gone))

    @property
    def _next_event_at(self) -> float:
        return self._events[0][0] if self._events else _FOREVER

    def _at(self, seconds: float, event: Callable[[], list[Answer]]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (seconds, self._num_events, event))

    def _pass_to(self, now: float) -> list[Answer]:
        answers: list[Answer] = []
        while self._events and self._events[0][0] <= now:
            answers += heapq.heappop(self._events)[2]()
        return answers

    def _join(self, number: int) -> list[Answer]:
        places = self._cluster.places_on(number)
        node = self._nodes[number] = _Node(f"node-{self._num_joined}", places)
        self._num_joined += 1
        self._known[node.node_id] = places
        self._place()
        return []

    def _place(self) -> None:
        """Give workers that wait for a place one, in the order of their launch; they begin to load."""
        placed: list[tuple[str, _Node]] = []
        with self._time.stopped():
            for node in self._nodes.values():
                while self._unplaced and len(node.workers) < node.places:
                    waiting = next((one for one in self._unplaced if node.node_id not in one[1]), None)
                    if waiting is None:
                        break
                    self._unplaced.remove(waiting)
                    node.workers.append(waiting[0])
                    placed.append((waiting[0], node))
        now = self._time.now
        for worker, node in placed:
            self._carry_out(self._pool.placed(worker, node.node_id, now))
            self._at(now + next(self._loading_times), partial(self._finish_loading, worker, node))

    def _finish_loading(self, worker: str, node: _Node) -> list[Answer]:
        if node.is_lost or worker not in node.workers:
            return []
        now = self._time.now
        replica = self._alive[worker] = Replica(worker, now, [now] * self._cluster.rows)
        self.replicas.append(replica)
        return self._carry_out(self._pool.loaded(worker, now))

    def _lose(self, loss: NodeLoss) -> list[Answer]:
        now = self._time.now
        for number in sorted(loss.nodes & self._nodes.keys()):
            node = self._nodes.pop(number)
            node.is_lost = True
            for worker in node.workers:
                if worker in self._alive:
                    self._alive[worker].gone_at = now
            self._at(now + self._cluster.notice_s, partial(self._notice, node))
            self._at(now + loss.away_s, partial(self._join, number))
        return []

    def _notice(self, node: _Node) -> list[Answer]:
        del self._known[node.node_id]
        self._gone.add(node.node_id)
        answers: list[Answer] = []
        for worker in list(node.workers):
            answers += self._carry_out(self._pool.died(worker, "its node is dead", self._seen(), self._time.now))
        self.units_lost += sum(len(answer.results) for answer in answers)
        return answers

    def _request_work(self, replica: Replica, num_units: int) -> list[Answer]:
        now = self._time.now
        if replica.gone_at < now:
            return []
        return self._carry_out(self._pool.reported(replica.name, (), WorkRequest(num_units), now))

    def _finish(self, replica: Replica, number: int, unit_id: str) -> list[Answer]:
        now = self._time.now
        if replica.gone_at < now:
            return []
        manifest = self._side.manifest(self._time, number, unit_id)
        with self._lock:
            self._uncommitted += 1
        return self._carry_out(self._pool.reported(replica.name, (manifest,), None, now))
