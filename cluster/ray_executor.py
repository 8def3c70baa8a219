"""Workers as Ray actors, one a replica. The one file that knows Ray's actors.

An actor that dies is started again by Ray; its assignment fails and is handed out anew by the ledger, never by Ray:
arrays and half-written units do not travel, only orders in and manifests out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from ..jobs.errors import AtlasError, InputError, JobError
from ..jobs.ledger import Failure
from ..jobs.units import UnitOrder
from ..storage.records import Manifest
from .executor import Answer
from .unit_task import UnitTask, WorkerSettings

_MAX_LOADING_DEATHS = 3
"""An actor that dies this often in a row while it loads the model is left out. A death at work counts against the unit:
the ledger gives a unit up after three, so a unit that kills its workers ends by itself."""


class UnitActor:
    """A replica: a ``UnitTask`` in a process of its own."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        self._task = UnitTask(settings, name)

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


_ASSIGNMENTS_IN_FLIGHT = 2
"""Of a worker: one is written while the next is generated."""


@dataclass
class _Worker:
    name: str
    actor: Any
    loading_deaths: int = 0
    is_ready: bool = False
    in_flight: dict[Any, tuple[UnitOrder, ...]] = field(default_factory=dict)

    @property
    def is_idle(self) -> bool:
        return self.is_ready and not self.in_flight

    @property
    def has_room_ahead(self) -> bool:
        if not self.is_ready or not 0 < len(self.in_flight) < _ASSIGNMENTS_IN_FLIGHT:
            return False
        return all(order.attempt == 1 for orders in self.in_flight.values() for order in orders)


class RayExecutor:
    """A fixed number of actors on the Ray that this process is connected to.

    Args:
        settings: What each worker is told.
        replicas: How many.
        num_cpus: Cores each takes.
        num_gpus: GPUs each takes.
        start_timeout_s: How long to wait for the first model to be loaded.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        *,
        replicas: int,
        num_cpus: int,
        num_gpus: int,
        start_timeout_s: float = 1800.0,
    ) -> None:
        actor_class: Any = ray.remote(UnitActor)
        options = {
            "num_cpus": num_cpus,
            "num_gpus": num_gpus,
            "max_restarts": -1,
            "max_task_retries": 0,
            "max_concurrency": _ASSIGNMENTS_IN_FLIGHT,
        }
        self._workers = [
            _Worker(name, actor_class.options(**options).remote(settings, name))
            for name in (f"worker-{i}" for i in range(replicas))
        ]
        self._start_timeout_s = start_timeout_s
        self._preparing: dict[Any, _Worker] = {}
        self._working: dict[Any, _Worker] = {}
        self._any_was_ready = False
        self._last_loss = ""

    def start(self) -> None:
        """Load the models; returns when the first worker is ready, the others join as they are."""
        self._preparing = {worker.actor.prepare.remote(): worker for worker in self._workers}
        deadline = time.monotonic() + self._start_timeout_s
        while not self.num_idle:
            if time.monotonic() > deadline:
                raise JobError(
                    f"no worker was ready after {self._start_timeout_s:.0f} s.",
                    code="no_worker",
                    field="placement",
                    mend="Does the cluster have the CPUs and GPUs that the spec asks for?",
                )
            self._collect_prepared(timeout_s=1.0)
            self._fail_without_workers()

    @property
    def num_workers(self) -> int:
        """Workers in all, busy or not."""
        return len(self._workers)

    @property
    def num_idle(self) -> int:
        """Workers that have nothing to do."""
        return sum(worker.is_idle for worker in self._workers)

    @property
    def num_ahead(self) -> int:
        """Busy workers that could be given a second assignment."""
        return sum(worker.has_room_ahead for worker in self._workers)

    def hand_out(self, orders: Sequence[UnitOrder]) -> None:
        """Give an assignment to an idle worker, or to one that takes a second when none is idle."""
        idle = (worker for worker in self._workers if worker.is_idle)
        worker = next(idle, None) or next(worker for worker in self._workers if worker.has_room_ahead)
        reference = worker.actor.work.remote(tuple(orders))
        worker.in_flight[reference] = tuple(orders)
        self._working[reference] = worker

    def wait(self, timeout_s: float) -> list[Answer]:
        """Give the answers that have come; a worker that died answers with failures."""
        waiting = [*self._working, *self._preparing]
        if not waiting:
            self._fail_without_workers()
            return []
        ready, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if ready:
            # Whatever else has come by now is taken along.
            ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        answers = [self._answer(reference) for reference in ready if reference in self._working]
        self._collect_prepared(timeout_s=0.0)
        return answers

    def close(self) -> None:
        """Kill the actors."""
        for worker in self._workers:
            ray.kill(worker.actor, no_restart=True)
        self._workers = []

    def _answer(self, reference: Any) -> Answer:
        worker = self._working.pop(reference)
        orders = worker.in_flight.pop(reference)
        try:
            results: list[Manifest | Failure] = ray.get(reference)
        except RayError as error:
            if worker.is_ready:
                # Ray starts it again; it takes work once its model is loaded.
                worker.is_ready = False
                self._preparing[worker.actor.prepare.remote()] = worker
            message = "the worker died" if isinstance(error, RayActorError) else "the worker failed"
            results = [Failure(order.unit.unit_id, order.attempt, message, str(error)) for order in orders]
        return Answer(worker.name, tuple(results))

    def _leave_out(self, worker: _Worker, reason: str) -> None:
        self._workers.remove(worker)
        self._last_loss = f"{worker.name}: {reason}"
        ray.kill(worker.actor, no_restart=True)

    def _fail_without_workers(self) -> None:
        if not self._workers:
            raise JobError(
                f"no worker is left; the last was {self._last_loss}",
                code="no_worker",
                mend="Is there enough memory? What was committed stays; the same command resumes.",
            )

    def _collect_prepared(self, timeout_s: float) -> None:
        if not self._preparing:
            return
        ready, _ = ray.wait(list(self._preparing), num_returns=1, timeout=timeout_s)
        for reference in ready:
            worker = self._preparing.pop(reference)
            try:
                refused: AtlasError | None = ray.get(reference)
            except RayError as error:
                worker.loading_deaths += 1
                if worker.loading_deaths < _MAX_LOADING_DEATHS:
                    self._preparing[worker.actor.prepare.remote()] = worker
                else:
                    self._leave_out(worker, str(error))
                continue
            if refused is None:
                worker.loading_deaths = 0
                worker.is_ready = True
                self._any_was_ready = True
            elif isinstance(refused, InputError) and not self._any_was_ready:
                raise refused
            else:
                # What one worker could load and another cannot is that machine's trouble, not the job's.
                self._leave_out(worker, str(refused))
