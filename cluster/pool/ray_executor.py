"""Workers as Ray actors, one per replica: carries out the pool's commands and translates Ray's results to events.

All policy is in the pool (``jobs/scheduling/pool.py``). Ray only places actors and runs their methods. It restarts no
actor and retries no call, because the ledger decides what is retried and where. Activations never pass through Ray:
assignments go in, manifests come out.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from ...jobs.errors import AtlasError
from ...jobs.scheduling.pool import WorkerPool
from ...jobs.work.units import UnitAttempt
from ...storage.format.records import Manifest
from ..ray_text import one_line, plain
from .executor import Answer
from .placement import Placement
from .pooled_executor import PooledExecutor
from .ray_replica import Replica, remove_groups_left_over
from .ray_worker import UnitActor
from .session import cluster_nodes
from .worker_settings import WorkerSettings

_END_S = 3.0
"""Time for workers to end the processes of their engines before they are killed themselves."""

_BLAME_S = 1.0
"""Time to hear of the other parts of a replica over several nodes, once one of them is gone."""

_Kind = Literal["wait_forever", "node_id", "group", "prepare", "take", "next_report", "follow"]


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    """A call of an actor that has not returned.

    Attributes:
        kind: Name of the actor's method.
        worker: Name of the worker.
        attempts: The assignment of a ``take``; empty for other calls.
        part: Number of the actor in its replica: 0 for the worker itself, from 1 for those on further nodes.
    """

    kind: _Kind
    worker: str
    attempts: tuple[UnitAttempt, ...] = ()
    part: int = 0


class RayExecutor(PooledExecutor):
    """Actors on the Ray cluster that this process is connected to.

    Exactly one ``next_report`` is pending for each ready worker, and the next is called when it returns. That way a
    report survives its worker: Ray keeps the result of a call that has returned even if the actor dies, whereas it
    drops the unread part of a stream. Reports are also read before deaths, so a unit that was finished before its
    worker died is never counted as lost.

    Args:
        settings: Settings of every worker.
        placement: Resources of every worker.
        replicas: Number of workers to keep; None: as many as the cluster has room for. See :class:`WorkerPool`.
        load_timeout_s: Seconds that a worker may take to load its model; see :class:`WorkerPool`.
        actor_class: Class of the actors; tests use others.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        placement: Placement,
        *,
        replicas: int | None = None,
        load_timeout_s: float = 1800.0,
        actor_class: type[UnitActor] = UnitActor,
    ) -> None:
        super().__init__(WorkerPool[Manifest](replicas, load_timeout_s))
        self._settings = settings
        self._placement = placement
        self._actor_class: Any = ray.remote(actor_class)
        self._replica_of: dict[str, Replica] = {}
        if placement.num_nodes > 1:
            remove_groups_left_over(settings.store_url)
        self._calls: dict[Any, _Call] = {}

    def wait(self, timeout_s: float) -> list[Answer]:
        """Wait for answers.

        Args:
            timeout_s: Most seconds to wait for the first answer.

        Returns:
            All answers that have arrived, those for lost workers included; empty after a timeout.

        Raises:
            InputError: No worker can load the model.
            JobError: No worker is left.
        """
        if self._clock() >= self._pool.follow_at:
            self._carry_out(self._pool.follow(cluster_nodes(self._placement), self._clock()))
        waiting = list(self._calls)
        if not waiting:
            time.sleep(timeout_s)
            return []
        returned, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if returned:
            # Also take all other calls that have returned by now. Reports first: after a worker's death is recorded,
            # its reports would be ignored.
            returned, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
            returned.sort(key=lambda reference: self._calls[reference].kind != "next_report")
        answers = [answer for reference in returned for answer in self._returned(reference)]
        return answers + self._carry_out(self._pool.check_silence(self._clock()))

    def close(self) -> None:
        """Kill every worker; what is in flight is lost."""
        if self._settings.engine_name == "vllm":
            placed = [name for name, worker in self._pool.workers.by_name.items() if worker.node_id]
            ends = [call for name in placed if name in self._replica_of for call in self._replica_of[name].end()]
            if ends:
                ray.wait(ends, num_returns=len(ends), timeout=_END_S)
        super().close()

    def _returned(self, reference: Any) -> list[Answer]:
        """Translate a call that has returned or failed to an event of the pool."""
        call = self._calls.pop(reference, None)
        if call is None:
            # Its worker was killed while the calls before it were handled.
            return []
        try:
            result: Any = ray.get(reference)
        except RayError as error:
            return self._failed(call, error)
        pool, name, now = self._pool, call.worker, self._clock()
        if call.kind == "next_report":
            if result.ended is None:
                self._call(name, "next_report")
            self._note_wait(name, result.held_up_by)
            self._note_rows(name, result.num_rows)
            answers = self._carry_out(pool.reported(name, result.results, result.work_request, now))
            if result.ended is None:
                return answers
            # The actor lives on without its engine, so it is replaced as if it had died.
            return answers + self._died(call, str(result.ended))
        if call.part:
            return self._of_follower(call, result)
        if call.kind == "node_id":
            answers = self._carry_out(pool.placed(name, result, now))
            if name in self._replica_of:
                # Only now: an actor's calls run beside each other, and the pool must not hear of a loaded model first.
                self._call(name, "prepare")
                if self._replica_of[name].followers:
                    self._call(name, "group")
            return answers
        if call.kind == "group":
            for part in range(1, len(self._replica_of[name].parts)):
                self._call(name, "follow", result, part=part)
            return []
        if call.kind == "prepare" and isinstance(result, AtlasError):
            return self._carry_out(pool.refused(name, result, cluster_nodes(self._placement), now))
        if call.kind == "prepare":
            self.passes = result
            self._call(name, "next_report")
            return self._carry_out(pool.loaded(name, now))
        return []

    def _failed(self, call: _Call, error: RayError) -> list[Answer]:
        now = self._clock()
        if call.kind == "take" and not isinstance(error, RayActorError):
            return self._carry_out(self._pool.rejected(call.worker, call.attempts, plain(str(error)), now))
        # Ray declares a node dead only after several missed health checks, but reports at once that an actor on it is
        # unreachable. Of a replica over several nodes the actors end with a lost node sooner than that.
        is_unreachable = isinstance(error, ActorUnavailableError) or bool(self._replica_of[call.worker].followers)
        return self._died(call, one_line(str(error)), is_unreachable=is_unreachable)

    def _of_follower(self, call: _Call, result: Any) -> list[Answer]:
        """Translate a call of a replica's actor on a further node that has returned."""
        replica, name, now = self._replica_of[call.worker], call.worker, self._clock()
        if call.kind == "node_id":
            replica.node_ids[call.part] = result
            return []
        if not isinstance(result, AtlasError):
            return self._died(call, result)
        nodes, node_id = cluster_nodes(self._placement), replica.node_ids.get(call.part, "")
        return self._carry_out(self._pool.refused(name, result, nodes, now, node_id=node_id))

    def _died(self, call: _Call, reason: str, *, is_unreachable: bool = False) -> list[Answer]:
        """Record that a part of a worker is gone, and so all of it."""
        if call.worker not in self._replica_of:
            return []
        part = call.part
        if not is_unreachable:
            lost = self._lost_part(call)
            part, is_unreachable = (part, False) if lost is None else (lost, True)
        return self._carry_out(
            self._pool.died(
                call.worker,
                reason,
                cluster_nodes(self._placement),
                self._clock(),
                is_unreachable=is_unreachable,
                node_id=self._replica_of[call.worker].node_ids.get(part, ""),
            )
        )

    def _lost_part(self, call: _Call) -> int | None:
        """Return the part of a worker whose actor is gone, though another part was heard to end before it.

        The parts end each other within moments, before the cluster knows that a node is lost, which is neither the
        fault of the units nor of the other nodes.
        """
        others = [
            reference
            for reference, other in self._calls.items()
            if other.worker == call.worker and other.part != call.part and other.kind in ("wait_forever", "follow")
        ]
        returned, _ = ray.wait(others, num_returns=len(others), timeout=_BLAME_S) if others else ([], [])
        for reference in returned:
            try:
                ray.get(reference)
            except RayError:
                return self._calls[reference].part
        return None

    def _launch(self, worker: str, avoid: tuple[str, ...]) -> None:
        replica = Replica.launch(self._actor_class, self._settings, worker, self._placement, avoid)
        self._replica_of[worker] = replica
        self._call(worker, "wait_forever")
        for part in range(len(replica.parts)):
            self._call(worker, "node_id", part=part)

    def _kill(self, worker: str) -> None:
        self._calls = {reference: call for reference, call in self._calls.items() if call.worker != worker}
        self._replica_of.pop(worker).kill()

    def _send(self, worker: str, attempts: tuple[UnitAttempt, ...]) -> None:
        reference = self._replica_of[worker].leader.take.remote(attempts)
        self._calls[reference] = _Call("take", worker, attempts)

    def _call(self, worker: str, kind: _Kind, *arguments: Any, part: int = 0) -> None:
        actor = self._replica_of[worker].parts[part]
        self._calls[getattr(actor, kind).remote(*arguments)] = _Call(kind, worker, part=part)
