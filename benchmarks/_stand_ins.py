"""Replicas that take their time and have no model, behind the driver's own protocol of executors.

A replica is a batch: so many rollouts at a time, each as long as its response, the next beginning when one ends. What
a driver would wait for is skipped; what it *does* takes the time it takes, and while a commit is under way time goes
by as it does on a wall. So a driver that is slow is slow here too.

Knows nothing of stores: what workers write is written by another process (``_workers_side``).
"""

from __future__ import annotations

import heapq
import threading
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from persona_atlas.cluster.pool.executor import Answer, WorkerView
from persona_atlas.cluster.pool.worker_load import WorkerLoad, WorkRequest
from persona_atlas.jobs.scheduling.ledger import Failure
from persona_atlas.jobs.units import UnitAttempt

from _weather import Cluster, Loss
from _workers_side import WorkersSide, response_share

_LOOK_S = 0.002
"""How often it is looked whether anything keeps time from being skipped."""


class Clock:
    """Simulated time in seconds: real time, and what was skipped of it."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin again at zero."""
        self._zero = time.perf_counter()
        self.skipped_s = 0.0
        self.stopped_s = 0.0

    @property
    def now(self) -> float:
        """Seconds since the simulation began."""
        return time.perf_counter() - self._zero + self.skipped_s - self.stopped_s

    def skip(self, seconds: float) -> None:
        """Let time pass at once."""
        self.skipped_s += seconds

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Take no time for what no driver would have to do."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.stopped_s += time.perf_counter() - began


@dataclass(eq=False)
class Replica:
    """One worker: a batch with a fixed number of places, first come, first served.

    Attributes:
        name: Who.
        node: Where.
        ready_at: When its model was loaded, seconds.
        gone_at: When its node went; infinite while it lives.
        began: Of every rollout, seconds; cut at ``gone_at``.
        ended: Likewise.
        num_units: That it was handed.
    """

    name: str
    node: int
    ready_at: float
    places: list[float]
    gone_at: float = float("inf")
    began: array[float] = field(default_factory=lambda: array("d"))
    ended: array[float] = field(default_factory=lambda: array("d"))
    load: WorkerLoad = field(default_factory=WorkerLoad)
    num_units: int = 0

    def take(self, now: float, seconds: Iterable[float]) -> float:
        """Let a unit's rollouts join the batch in their order as places come free; give the time when all are done."""
        last = now
        for duration in seconds:
            begin = max(now, self.places[0])
            end = begin + duration
            heapq.heapreplace(self.places, end)
            self.began.append(begin)
            self.ended.append(end)
            last = max(last, end)
        return last


class StandIns:
    """An executor of replicas on nodes that come and go.

    Args:
        cluster: How many, how quick, and what befalls them.
        side: Writes what they would write.
        clock: Simulated time.
    """

    def __init__(self, cluster: Cluster, side: WorkersSide, clock: Clock) -> None:
        self._cluster = cluster
        self._side = side
        self._clock = clock
        self._workers: dict[str, Replica] = {}
        self._events: list[tuple[float, int, Callable[[], Answer | None]]] = []
        self._num_made = 0
        self._num_events = 0
        self._num_handed_out = 0
        self._uncommitted = 0
        self._lock = threading.Lock()
        self.replicas: list[Replica] = []
        self.handed_out: deque[tuple[float, int]] = deque()
        self.units_lost = 0

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Have every replica load; time begins when the first is ready."""
        del tick
        loaded = self._cluster.loading_s()
        first = min(loaded)
        for number, seconds in enumerate(loaded):
            self._at(seconds - first, self._join(number // self._cluster.per_node))
        for loss in self._cluster.losses:
            self._at(loss.at_s, self._lose(loss))
        self._clock.restart()
        self._pass_to(self._clock.now)

    @property
    def ready(self) -> list[str]:
        """All that the driver believes to be alive."""
        return list(self._workers)

    @property
    def idle(self) -> list[str]:
        """Those that have nothing to do."""
        return [name for name, worker in self._workers.items() if worker.load.is_empty]

    @property
    def requesting(self) -> list[str]:
        """Those at work that could begin more now, as they said."""
        takers = [worker for worker in self._workers.values() if worker.load.takes_more]
        return [worker.name for worker in sorted(takers, key=lambda worker: worker.load.rollouts)]

    @property
    def num_workers(self) -> int:
        """All that the driver believes to be alive."""
        return len(self._workers)

    @property
    def views(self) -> list[WorkerView]:
        """What each worker is doing."""
        return [
            WorkerView(
                worker.name,
                f"node-{worker.node}",
                "idle" if worker.load.is_empty else "working",
                tuple(attempt.unit.unit_id for attempt in worker.load.attempts),
                worker.ready_at,
            )
            for worker in self._workers.values()
        ]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """None."""
        return {}

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Give an assignment; it is serialised as it would be for Ray."""
        taker = self._workers[worker]
        number = self._num_handed_out
        self._num_handed_out += 1
        taker.load.take(attempts)
        self._side.work(self._clock, number, worker, attempts)
        now = self._clock.now
        self.handed_out.append((now, sum(attempt.number == 1 for attempt in attempts)))
        if taker.gone_at < now:
            # Nobody there any more; the driver has not heard of it.
            return
        for attempt in attempts:
            with self._clock.stopped():
                shares = (response_share(request.seed) for request in attempt.first_requests())
                done_at = taker.take(now, (share * self._cluster.rollout_s for share in shares))
            self._at(done_at, partial(self._answer, taker, number, attempt.unit.unit_id))
        taker.num_units += len(attempts)
        # When all of it has begun, the next place that comes free is one too many.
        self._at(taker.places[0], partial(self._hunger, taker, taker.num_units))

    def wait(self, timeout_s: float) -> list[Answer]:
        """Give the answers that have come; skips the time until the first, unless a commit is under way."""
        deadline = self._clock.now + timeout_s
        while True:
            if answers := self._pass_to(self._clock.now):
                return answers
            if self._clock.now >= deadline:
                return []
            until = min(deadline, self._events[0][0]) if self._events else deadline
            seconds = until - self._clock.now
            if seconds > 0:
                if self._uncommitted:
                    time.sleep(min(seconds, _LOOK_S))
                    continue
                self._clock.skip(seconds)

    def committed(self) -> None:
        """Take note that a commit record is written; from any thread."""
        with self._lock:
            self._uncommitted -= 1

    def close(self) -> None:
        """End; what still runs is cut."""
        for worker in self._workers.values():
            worker.gone_at = min(worker.gone_at, self._clock.now)

    def _at(self, seconds: float, event: Callable[[], Answer | None]) -> None:
        self._num_events += 1
        heapq.heappush(self._events, (seconds, self._num_events, event))

    def _pass_to(self, now: float) -> list[Answer]:
        answers: list[Answer] = []
        while self._events and self._events[0][0] <= now:
            answer = heapq.heappop(self._events)[2]()
            if answer is not None:
                answers.append(answer)
        return answers

    def _join(self, node: int) -> Callable[[], None]:
        def join() -> None:
            name = f"worker-{self._num_made}"
            self._num_made += 1
            now = self._clock.now
            worker = Replica(name, node, now, [now] * self._cluster.rows)
            self._workers[name] = worker
            self.replicas.append(worker)

        return join

    def _lose(self, loss: Loss) -> Callable[[], None]:
        def lose() -> None:
            now = self._clock.now
            for worker in list(self._workers.values()):
                if worker.node in loss.nodes and worker.gone_at > now:
                    worker.gone_at = now
                    self._at(now + self._cluster.notice_s, lambda worker=worker: self._notice(worker))
            for node in loss.nodes:
                for seconds in self._cluster.loading_s(self._cluster.per_node):
                    self._at(now + loss.away_s + seconds, self._join(node))

        return lose

    def _notice(self, worker: Replica) -> Answer:
        del self._workers[worker.name]
        attempts = worker.load.attempts
        self.units_lost += len(attempts)
        return Answer(
            worker.name,
            tuple(Failure(o.unit.unit_id, o.number, "the worker's node is gone", is_innocent=True) for o in attempts),
        )

    def _hunger(self, worker: Replica, num_units: int) -> None:
        if worker.gone_at >= self._clock.now:
            worker.load.note_request(WorkRequest(num_units))

    def _answer(self, worker: Replica, number: int, unit_id: str) -> Answer | None:
        if worker.gone_at < self._clock.now:
            return None
        worker.load.answered(unit_id)
        manifest = self._side.manifest(self._clock, number, unit_id)
        with self._lock:
            self._uncommitted += 1
        return Answer(worker.name, (manifest,))
