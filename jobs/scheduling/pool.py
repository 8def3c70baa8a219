"""The pool of workers, as a pure state machine: events and the time in, commands out. No Ray, no clock, no I/O.

The pool follows the cluster: it wants as many workers as the job requests, or as the cluster has room for, and launches
new ones for those that are lost. A lost worker is replaced by a new one and not restarted by the cluster, because a new
one can be kept off the node where the last one died. The units of a lost worker fail and go back to the ledger, which
decides whether and where they are retried.

The executor communicates with the cluster. It calls a method of the pool for each event, and carries out the commands
that the method returns, in that order. Times are seconds on a monotonic clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic

from ..errors import AtlasError, InputError
from ..work.units import UnitAttempt
from .ledger import Failure
from .loading_health import REFUSED_PAUSE_S, LoadingHealth, Refusal
from .node_health import NodeHealth
from .pool_commands import ClusterNodes, Command, Deliver, GiveUp, Kill, Launch, R, failures_of, no_room, no_worker
from .pool_worker import PoolWorker, PoolWorkers
from .worker_health import FailureStreaks, is_hung
from .worker_load import WorkRequest

FOLLOW_EVERY_S = 3.0
"""Interval at which the pool is compared with the cluster."""

PLACEMENT_TIMEOUT_S = 60.0
"""A worker that was not placed within this time is given up if the pool has more workers than it wants."""


class WorkerPool(Generic[R]):
    """Decides when workers are launched, replaced and given up.

    Args:
        replicas: Number of workers to keep, those that are not placed yet included; None: as many as the cluster has
            room for, more when nodes join and fewer when they leave.
        load_timeout_s: Seconds that a worker may take to load its model. Also the time that the job waits, before any
            worker is ready, for a cluster without room for one.

    Attributes:
        workers: All workers, whatever their state.
        follow_at: When :meth:`follow` next has something to do.
        last_refusal: The last error with which a worker refused to load the model, and when, until one loads it.
    """

    def __init__(self, replicas: int | None, load_timeout_s: float) -> None:
        self._replicas = replicas
        self._load_timeout_s = load_timeout_s
        self.workers = PoolWorkers()
        self.follow_at = float("-inf")
        self._nodes = ClusterNodes({})
        self._node_health = NodeHealth()
        self._streaks = FailureStreaks()
        self._loading = LoadingHealth()
        self._longest_silence_s = 0.0
        self._num_launched = 0
        self._num_wanted = 1
        self.last_refusal: tuple[AtlasError, float] | None = None
        self._commands: list[Command[R]] = []

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Nodes on which no workers are placed at present, by node id, with the reason."""
        return self._node_health.excluded

    def follow(self, nodes: ClusterNodes, now: float) -> list[Command[R]]:
        """Compare the pool with the cluster: launch missing workers, and give up surplus ones that were not placed.

        Does nothing before ``follow_at``.

        Args:
            nodes: The cluster as it is now.
            now: Seconds.

        Returns:
            Commands to carry out, in this order.
        """
        if now < self.follow_at:
            return []
        self._nodes = nodes
        self.follow_at = now + FOLLOW_EVERY_S
        if self._node_health.wake(now):
            self._relaunch_waiting()
        if nodes.num_places() and not nodes.num_places(self._node_health.excluded):
            if not self._loading.any_was_ready and not self.workers.is_any_placed:
                # Every node has refused. An error of the input keeps its own message, code and field.
                reason = list(self._node_health.excluded.values())[-1]
                error = self.last_refusal[0] if self.last_refusal else None
                self._give_up(error if isinstance(error, InputError) else no_worker(reason))
                return self._taken()
            self._readmit_last_node()
        # At least one: a worker that waits to be placed makes an autoscaler add a node, and uses a node that joins.
        self._num_wanted = self._replicas or max(1, nodes.num_places(self._node_health.excluded))
        for _ in range(self._num_wanted - len(self.workers.by_name)):
            self._launch(now)
        unplaced = [
            worker
            for worker in self.workers.by_name.values()
            if not worker.node_id and now - worker.launched_at > PLACEMENT_TIMEOUT_S
        ]
        for worker in unplaced[: max(0, len(self.workers.by_name) - self._num_wanted)]:
            self._kill(worker)
        self._require_room(now)
        return self._taken()

    def placed(self, name: str, node_id: str, now: float) -> list[Command[R]]:
        """Record on which node a worker runs.

        Args:
            name: The worker.
            node_id: Its node.
            now: Seconds.

        Returns:
            Commands to carry out, in this order.
        """
        worker = self.workers.by_name.get(name)
        if worker is not None and node_id in self._node_health.excluded:
            # It was launched before the node was left out; another is launched in its place.
            self._kill(worker)
        elif worker is not None:
            self._loading.placed()
            worker.placed(node_id, now)
        return self._taken()

    def loaded(self, name: str, now: float) -> list[Command[R]]:
        """Record that a worker has loaded its model.

        Args:
            name: The worker.
            now: Seconds.

        Returns:
            Commands to carry out, in this order.
        """
        worker = self.workers.by_name.get(name)
        if worker is not None:
            self._loading.loaded()
            self.last_refusal = None
            self._node_health.loaded(worker.node_id)
            worker.is_ready, worker.since = True, now
        return self._taken()

    def refused(
        self, name: str, error: AtlasError, nodes: ClusterNodes, now: float, *, node_id: str = ""
    ) -> list[Command[R]]:
        """Record that a worker says that it cannot load the model.

        Args:
            name: The worker.
            error: Why it cannot.
            nodes: The cluster as it is now.
            now: Seconds.
            node_id: The node that cannot, of a worker over several; empty: the worker's.

        Returns:
            Commands to carry out, in this order.
        """
        worker = self.workers.by_name.get(name)
        if worker is None:
            return []
        self._nodes = nodes
        self.last_refusal = error, now
        self._kill(worker)
        node_id = node_id or worker.node_id
        is_room_elsewhere = bool(nodes.num_places({*self._node_health.excluded, node_id}))
        verdict = self._loading.refused(
            is_retryable=error.retryable, is_room_elsewhere=is_room_elsewhere, is_any_placed=self.workers.is_any_placed
        )
        if verdict is Refusal.GIVE_UP:
            # An error of the input keeps its own message, code and field.
            self._give_up(error if isinstance(error, InputError) else no_worker(f"{worker.name}: {error}"))
        elif verdict is Refusal.RETRY_LATER:
            self.follow_at = now + REFUSED_PAUSE_S
        else:
            # Other nodes may be able to load the model, so the node is the cause and not the job.
            self._leave_out(node_id, str(error), refused_at=now)
            self.follow_at = now if is_room_elsewhere else now + REFUSED_PAUSE_S
        return self._taken()

    def assigned(self, name: str, attempts: Sequence[UnitAttempt], now: float) -> None:
        """Record an assignment.

        Args:
            name: One of ``idle`` or ``requesting``.
            attempts: What it is assigned.
            now: Seconds.
        """
        self.workers.by_name[name].assigned(attempts, now)

    def rejected(self, name: str, attempts: Sequence[UnitAttempt], reason: str, now: float) -> list[Command[R]]:
        """Record that a worker is alive but could not accept an assignment, whose units fail.

        Args:
            name: The worker.
            attempts: The assignment.
            reason: The reason, usually a traceback.
            now: Seconds.

        Returns:
            Commands to carry out, in this order.
        """
        worker = self.workers.by_name.get(name)
        if worker is not None:
            worker.load.rejected(attempts)
            self._answered(worker, attempts, failures_of(attempts, "the worker failed", reason), now)
        return self._taken()

    def reported(
        self, name: str, results: Sequence[R | Failure], request: WorkRequest | None, now: float
    ) -> list[Command[R]]:
        """Record what a worker reports.

        Args:
            name: The worker.
            results: Results of units; those of units that it does not hold are ignored.
            request: A request for work; None if it made none.
            now: Seconds.

        Returns:
            Commands to carry out, in this order.
        """
        worker = self.workers.by_name.get(name)
        if worker is None:
            return []
        if request is not None:
            worker.load.note_request(request)
        pairs = [(worker.load.answered(result.unit_id), result) for result in results]
        held = [(attempt, result) for attempt, result in pairs if attempt is not None]
        if held:
            self._answered(worker, [attempt for attempt, _ in held], tuple(result for _, result in held), now)
        return self._taken()

    def died(
        self,
        name: str,
        reason: str,
        nodes: ClusterNodes,
        now: float,
        *,
        is_unreachable: bool = False,
        node_id: str = "",
    ) -> list[Command[R]]:
        """Record that a worker is dead or unreachable.

        Args:
            name: The worker.
            reason: What is known about the cause.
            nodes: The cluster as it is now, which shows whether the worker's node is gone.
            now: Seconds.
            is_unreachable: Whether it cannot be reached but may be alive: the first sign of a lost node, because the
                cluster takes some time to declare a node dead.
            node_id: The node of the part that died, of a worker over several; empty: the worker's.

        Returns:
            Commands to carry out, in this order.
        """
        worker = self.workers.by_name.get(name)
        if worker is None:
            return []
        self._nodes = nodes
        if is_unreachable or (node_id or worker.node_id) in nodes.gone:
            self._lose(worker, "the worker's node is gone", reason, now, is_worker_fault=True, charged="")
            return self._taken()
        if not worker.is_ready and self._dies_as_all_do(worker, now):
            self._kill(worker)
            self._give_up(no_worker(f"{worker.name}: {reason}"))
            return self._taken()
        self._lose(worker, "the worker died", reason, now, charged=node_id or None)
        if not worker.node_id:
            self.follow_at = now + self._loading.died_unplaced()
        return self._taken()

    def check_silence(self, now: float) -> list[Command[R]]:
        """Replace workers that have been silent for too long.

        Call it after recording all events that have arrived: a worker whose answer was not read yet is not silent.

        Args:
            now: Seconds.

        Returns:
            Commands to carry out, in this order.
        """
        for worker in list(self.workers.by_name.values()):
            silent_s = now - worker.silent_since
            if not worker.load.is_empty and is_hung(silent_s, self._longest_silence_s):
                reason = f"silent for {silent_s:.0f} s; the longest before was {self._longest_silence_s:.0f} s"
                self._lose(worker, "the worker hung and was replaced", reason, now)
            elif worker.node_id and not worker.is_ready and silent_s > self._load_timeout_s:
                self._kill(worker)
                self._leave_out(worker.node_id, f"the model was not loaded in {self._load_timeout_s:.0f} s")
        return self._taken()

    def close(self) -> list[Command[R]]:
        """Kill every worker.

        Returns:
            Commands to carry out, in this order.
        """
        for worker in list(self.workers.by_name.values()):
            self._kill(worker)
        return self._taken()

    def _taken(self) -> list[Command[R]]:
        commands, self._commands = self._commands, []
        return commands

    def _launch(self, now: float) -> None:
        name = f"worker-{self._num_launched}"
        self._num_launched += 1
        self.workers.by_name[name] = PoolWorker(name, now)
        self._commands.append(Launch(name, tuple(sorted(self._node_health.excluded))))

    def _kill(self, worker: PoolWorker) -> None:
        if self.workers.by_name.pop(worker.name, None) is not None:
            self._commands.append(Kill(worker.name))

    def _give_up(self, error: AtlasError) -> None:
        self._commands.append(GiveUp(error))

    def _dies_as_all_do(self, worker: PoolWorker, now: float) -> bool:
        """Record that a worker died while it loaded; return whether none is left that may yet load the model."""
        others = [other for other in self.workers.by_name.values() if other is not worker]
        # A worker that is loading changed its state last when it was placed, one that was not when it was launched.
        return self._loading.died_loading(
            self._num_wanted,
            now - worker.since,
            is_any_ready=bool(self.workers.ready),
            others_s=max((now - other.since for other in others if other.node_id and not other.is_ready), default=0.0),
        )

    def _require_room(self, now: float) -> None:
        """Give up the job if, before any worker was ready, no node has had room for one for too long."""
        has_room = self.workers.is_any_placed or bool(self._nodes.num_places())
        if self._loading.waits_in_vain(now, has_room=has_room, timeout_s=self._load_timeout_s):
            self._give_up(no_room(self._load_timeout_s))

    def _answered(
        self, worker: PoolWorker, attempts: Sequence[UnitAttempt], results: tuple[R | Failure, ...], now: float
    ) -> None:
        self._longest_silence_s = max(self._longest_silence_s, worker.answered(now))
        self._commands.append(Deliver(worker.name, results))
        if self._streaks.ends_broken(worker.name, attempts, [isinstance(result, Failure) for result in results]):
            failure = next(result for result in reversed(results) if isinstance(result, Failure))
            what = "the worker failed unit after unit and was replaced"
            self._lose(worker, what, failure.message, now, is_worker_fault=True)

    def _lose(
        self,
        worker: PoolWorker,
        what: str,
        reason: str,
        now: float,
        *,
        is_worker_fault: bool = False,
        charged: str | None = None,
    ) -> None:
        """Remove a worker: its units fail, another one is launched at once, and its node may be left out.

        Args:
            worker: The worker.
            what: What happened to it; the message of the failures.
            reason: Why; the detail of the failures.
            now: Seconds.
            is_worker_fault: Whether its units are certainly not the cause.
            charged: The node that this counts against; empty: none; None: the worker's.
        """
        charged = worker.node_id if charged is None else charged
        attempts, has_suspect = worker.load.attempts, worker.load.has_suspect
        self._kill(worker)
        self.follow_at = now
        if attempts:
            failures = failures_of(attempts, what, reason, is_worker_fault=is_worker_fault)
            self._commands.append(Deliver(worker.name, failures))
        if charged and self._node_health.died(charged, now, reason, is_unit_suspect=has_suspect):
            self._leave_out(charged, self._node_health.left_out[charged])

    def _readmit_last_node(self) -> None:
        """Give work to a node that is left out again, because the other nodes that had room are gone since.

        A node that dies is listed as alive for some seconds, so a node may be left out in favour of one that is dead.
        """
        excluded = self._node_health.excluded
        self._node_health.readmit(next(node for node in reversed(excluded) if self._nodes.places.get(node)))
        self._relaunch_waiting()

    def _relaunch_waiting(self) -> None:
        """Kill the workers that wait to be placed, since they were launched with a node excluded that no longer is."""
        for worker in [worker for worker in self.workers.by_name.values() if not worker.node_id]:
            self._kill(worker)

    def _leave_out(self, node_id: str, reason: str, refused_at: float | None = None) -> None:
        """Place no more workers on a node, unless no other node is left; only for a while if a worker refused now."""
        if not node_id:
            return
        if refused_at is None:
            self._node_health.leave_out(node_id, reason)
        else:
            self._node_health.refused(node_id, reason, refused_at)
        if self._nodes.num_places(self._node_health.excluded):
            return
        # The last node is kept, as long as any worker has been able to run.
        self._node_health.readmit(node_id)
        if not self._loading.any_was_ready and not self.workers.is_any_placed:
            self._give_up(no_worker(reason))
