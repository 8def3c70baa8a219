"""Workers as Ray actors, one a replica: a pool that follows the cluster. The one file that knows Ray's actors.

An actor that dies is replaced by a new one, elsewhere if its node is to blame; its assignments fail and are handed out
anew by the ledger, never by Ray: arrays and half-written units do not travel, only orders in and manifests out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from ..jobs.errors import AtlasError, InputError, JobError
from ..jobs.ledger import Failure
from ..jobs.node_health import NodeHealth
from ..jobs.units import UnitOrder
from ..storage.records import Manifest
from .executor import Answer, WorkerView
from .session import Placement, count_places
from .unit_task import UnitTask, WorkerSettings

_BATCHES_IN_FLIGHT = 2
"""Of a worker, at most: what fills its batch, and what joins as places come free."""

_CALLS_IN_FLIGHT = 8
"""Of a worker, at most: assignments that are small for being the last, or retries."""

_LOOK_EVERY_S = 3.0
"""How often the pool is held against what the cluster has."""

_PLACE_PATIENCE_S = 60.0
"""A worker that has waited so long for a place while the cluster has none for it is given up."""

_LOADING_DEATHS = 3
"""Times the workers: so many deaths in a row before any model was loaded, and the job ends."""

_NODE_LABEL = "ray.io/node-id"


class UnitActor:
    """A replica: a ``UnitTask`` in a process of its own."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        self._task = UnitTask(settings, name)

    def where(self) -> str:
        """Give the id of the node this runs on."""
        return ray.get_runtime_context().get_node_id()

    def live(self) -> None:
        """Never answer: that this call fails is how the driver hears of a death, whatever the worker was doing."""
        threading.Event().wait()

    def prepare(self) -> AtlasError | None:
        """Load the model; gives the error rather than raising it, so that it arrives as itself."""
        try:
            self._task.prepare()
        except AtlasError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a library's own error would reach the driver as a lost worker
            return JobError(f"the model cannot be loaded: {error!r}.", code="model_not_loaded")
        return None

    def work(self, orders: Sequence[UnitOrder]) -> list[Manifest | Failure]:
        """Work an assignment."""
        return self._task.work(orders)


@dataclass
class _Worker:
    name: str
    actor: Any
    node: str = ""
    is_ready: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.time)
    in_flight: dict[Any, tuple[UnitOrder, ...]] = field(default_factory=dict)
    rollouts: int = 0

    def take(self, reference: Any, orders: tuple[UnitOrder, ...]) -> None:
        """Remember what it was handed."""
        self.in_flight[reference] = orders
        self.rollouts += _num_rollouts(orders)

    def give_back(self, reference: Any) -> tuple[UnitOrder, ...]:
        """Forget what it answered."""
        orders = self.in_flight.pop(reference, ())
        self.rollouts -= _num_rollouts(orders)
        return orders

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.in_flight

    @property
    def works_retry(self) -> bool:
        # Handed out alone, so the first of an assignment tells.
        return any(orders[0].is_suspect for orders in self.in_flight.values())

    @property
    def may_take_more(self) -> bool:
        return self.is_ready and 0 < len(self.in_flight) < _CALLS_IN_FLIGHT and not self.works_retry

    @property
    def doing(self) -> str:
        if not self.is_ready:
            return "loading" if self.node else "waiting"
        return "working" if self.in_flight else "idle"


class RayExecutor:
    """Actors on the Ray that this process is connected to.

    Args:
        settings: What each worker is told.
        placement: What each takes.
        replicas: How many; those without a place wait for one. None: as many as the cluster has room for, more when
            nodes join and fewer when they leave.
        batch_rollouts: How many a worker's batch holds, about.
        start_timeout_s: How long to wait for the first model to be loaded.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        placement: Placement,
        *,
        replicas: int | None = None,
        batch_rollouts: int = 1,
        start_timeout_s: float = 1800.0,
    ) -> None:
        self._settings = settings
        self._placement = placement
        self._replicas = replicas
        self._batch_rollouts = batch_rollouts
        self._start_timeout_s = start_timeout_s
        self._actor_class: Any = ray.remote(UnitActor)
        self._workers: dict[str, _Worker] = {}
        self._calls: dict[Any, tuple[str, _Worker]] = {}
        self._health = NodeHealth()
        self._num_made = 0
        self._any_was_ready = False
        self._loading_deaths = 0
        self._next_look = 0.0

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Load the models; returns when the first worker is ready, the others join as they are."""
        deadline = time.monotonic() + self._start_timeout_s
        while not self.idle:
            tick()
            if time.monotonic() > deadline:
                raise JobError(
                    f"no worker was ready after {self._start_timeout_s:.0f} s.",
                    code="no_worker",
                    field="placement",
                    mend="Does the cluster have the CPUs and GPUs that the spec asks for?",
                )
            self.wait(1.0)

    @property
    def ready(self) -> list[str]:
        """Workers whose model is loaded, busy or not."""
        return [worker.name for worker in self._workers.values() if worker.is_ready]

    @property
    def idle(self) -> list[str]:
        """Those that have nothing to do."""
        return [worker.name for worker in self._workers.values() if worker.is_idle]

    @property
    def hungry(self) -> list[str]:
        """Those at work whose batch has room for more now, the emptiest first."""
        return self._takers(lambda worker: worker.rollouts < self._batch_rollouts)

    @property
    def ahead(self) -> list[str]:
        """Those at work that hold less than two batches, or a single assignment however long, the emptiest first."""
        # An assignment is half a batch.
        limit = (_BATCHES_IN_FLIGHT - 0.5) * self._batch_rollouts
        return self._takers(lambda worker: len(worker.in_flight) == 1 or worker.rollouts <= limit)

    @property
    def views(self) -> list[WorkerView]:
        """What each worker is doing."""
        return [
            WorkerView(
                worker.name,
                worker.node,
                worker.doing,
                tuple(order.unit.unit_id for orders in worker.in_flight.values() for order in orders),
                worker.since,
            )
            for worker in self._workers.values()
        ]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Nodes that get no more work, with the reason."""
        return dict(self._health.left_out)

    def hand_out(self, worker: str, orders: Sequence[UnitOrder]) -> None:
        """Give an assignment to one of ``idle``, ``hungry`` or ``ahead``."""
        taker = self._workers[worker]
        taker.since = time.time()
        reference = taker.actor.work.remote(tuple(orders))
        taker.take(reference, tuple(orders))
        self._calls[reference] = ("work", taker)

    def wait(self, timeout_s: float) -> list[Answer]:
        """Give the answers that have come; a worker that died answers with failures."""
        self._follow_the_cluster()
        waiting = list(self._calls)
        if not waiting:
            time.sleep(timeout_s)
            return []
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if ready:
            # Whatever else has come by now is taken along.
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        return [answer for reference in ready for answer in self._take(reference)]

    def close(self) -> None:
        """Kill the actors."""
        for worker in list(self._workers.values()):
            self._drop(worker)

    def _takers(self, has_room: Callable[[_Worker], bool]) -> list[str]:
        takers = [worker for worker in self._workers.values() if worker.may_take_more and has_room(worker)]
        return [worker.name for worker in sorted(takers, key=lambda worker: worker.rollouts)]

    def _take(self, reference: Any) -> list[Answer]:
        call, worker = self._calls.pop(reference, ("", None))
        if worker is None:
            return []
        try:
            answer: Any = ray.get(reference)
        except RayActorError as error:
            return self._died(worker, str(error))
        except RayError as error:
            orders = worker.give_back(reference)
            return [Answer(worker.name, _failures(orders, "the worker failed", str(error)))]
        if call == "work":
            worker.give_back(reference)
            worker.since = time.time()
            return [Answer(worker.name, tuple(answer))]
        if call == "where":
            self._placed(worker, answer)
        elif call == "prepare":
            self._prepared(worker, answer)
        return []

    def _add(self) -> None:
        name = f"worker-{self._num_made}"
        self._num_made += 1
        options: dict[str, Any] = {
            "num_cpus": self._placement.threads,
            "num_gpus": self._placement.num_gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": _CALLS_IN_FLIGHT + 2,
        }
        if self._health.left_out:
            options["label_selector"] = {_NODE_LABEL: f"!in({','.join(sorted(self._health.left_out))})"}
        actor = self._actor_class.options(**options).remote(self._settings, name)
        worker = self._workers[name] = _Worker(name, actor)
        self._calls[actor.live.remote()] = ("live", worker)
        self._calls[actor.where.remote()] = ("where", worker)
        self._calls[actor.prepare.remote()] = ("prepare", worker)

    def _drop(self, worker: _Worker) -> None:
        self._workers.pop(worker.name, None)
        self._calls = {call: of for call, of in self._calls.items() if of[1] is not worker}
        ray.kill(worker.actor, no_restart=True)

    def _placed(self, worker: _Worker, node: str) -> None:
        if node in self._health.left_out:
            # Asked for before the node was left out; another takes its place.
            self._drop(worker)
            return
        worker.node, worker.since = node, time.time()

    def _prepared(self, worker: _Worker, refused: AtlasError | None) -> None:
        worker.since = time.time()
        if refused is None:
            self._loading_deaths = 0
            worker.is_ready = self._any_was_ready = True
            return
        self._drop(worker)
        if self._any_was_ready or any(other.node for other in self._workers.values()):
            # What one worker could load and another cannot is that machine's trouble, not the job's.
            self._leave_out(worker.node, str(refused))
        elif isinstance(refused, InputError):
            raise refused
        else:
            raise _no_worker(f"{worker.name}: {refused}")

    def _died(self, worker: _Worker, reason: str) -> list[Answer]:
        orders = [order for orders in worker.in_flight.values() for order in orders]
        was_suspect = worker.works_retry
        self._drop(worker)
        self._next_look = 0.0
        if not worker.is_ready:
            self._loading_deaths += 1
            if self._loading_deaths >= _LOADING_DEATHS * (len(self._workers) + 1) and not self.ready:
                raise _no_worker(f"{worker.name}: {reason}")
        if worker.node and self._health.died(worker.node, time.monotonic(), reason, is_unit_suspect=was_suspect):
            self._leave_out(worker.node, self._health.left_out[worker.node])
        if _is_gone(worker.node):
            return [Answer(worker.name, _failures(orders, "the worker's node is gone", reason, is_nodes_fault=True))]
        return [Answer(worker.name, _failures(orders, "the worker died", reason))]

    def _leave_out(self, node: str, reason: str) -> None:
        self._health.refused(node, reason)
        if not count_places(self._placement, self._health.left_out):
            # The last one: better a bad node than none, as long as anything is done on it.
            del self._health.left_out[node]
            if not self._any_was_ready:
                raise _no_worker(reason)

    def _follow_the_cluster(self) -> None:
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_EVERY_S
        wanted = self._replicas or max(1, count_places(self._placement, self._health.left_out))
        for _ in range(wanted - len(self._workers)):
            self._add()
        placeless = [w for w in self._workers.values() if not w.node and now - w.asked_at > _PLACE_PATIENCE_S]
        for worker in placeless[: max(0, len(self._workers) - wanted)]:
            self._drop(worker)


def _num_rollouts(orders: Sequence[UnitOrder]) -> int:
    return sum(order.unit.num_rollouts for order in orders)


def _failures(
    orders: Sequence[UnitOrder], message: str, detail: str, *, is_nodes_fault: bool = False
) -> tuple[Failure, ...]:
    return tuple(Failure(order.unit.unit_id, order.attempt, message, detail, is_nodes_fault) for order in orders)


def _is_gone(node: str) -> bool:
    return any(known["NodeID"] == node and not known["Alive"] for known in ray.nodes())


def _no_worker(reason: str) -> JobError:
    return JobError(
        f"no worker is left; the last was {reason}",
        code="no_worker",
        mend="Is there enough memory? What was committed stays; the same command resumes.",
    )
