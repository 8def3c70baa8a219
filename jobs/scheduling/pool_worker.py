"""The pool's records of its workers. Pure; times are seconds on the caller's monotonic clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..work.units import UnitAttempt
from .worker_load import WorkerLoad


@dataclass
class PoolWorker:
    """One worker, from its launch to its end.

    Attributes:
        name: Name of the worker; never reused within the pool.
        launched_at: When its launch was requested.
        node_id: Id of its node; empty until the cluster has placed it.
        is_ready: Whether its model is loaded.
        since: When it last changed its state, was assigned units or answered; for people.
        silent_since: When it last answered, or was assigned units while it held none. A worker that is silent for too
            long since then counts as hung.
        load: The units that it holds.
    """

    name: str
    launched_at: float
    node_id: str = ""
    is_ready: bool = False
    since: float = field(init=False)
    silent_since: float = field(init=False)
    load: WorkerLoad = field(default_factory=WorkerLoad)

    def __post_init__(self) -> None:
        self.since = self.silent_since = self.launched_at

    @property
    def is_idle(self) -> bool:
        """Whether it is ready and holds no unit."""
        return self.is_ready and self.load.is_empty

    @property
    def doing(self) -> str:
        """Its state: ``waiting`` for a place, ``loading``, ``idle`` or ``working``."""
        if not self.is_ready:
            return "loading" if self.node_id else "waiting"
        return "idle" if self.load.is_empty else "working"

    def placed(self, node_id: str, now: float) -> None:
        """Record its node, on which it now loads the model."""
        self.node_id, self.since, self.silent_since = node_id, now, now

    def assigned(self, attempts: Sequence[UnitAttempt], now: float) -> None:
        """Record an assignment."""
        self.since = now
        if self.load.is_empty:
            # It had nothing to answer until now.
            self.silent_since = now
        self.load.take(attempts)

    def answered(self, now: float) -> float:
        """Record that it answered.

        Returns:
            Seconds for which it had been silent.
        """
        silent_s = now - self.silent_since
        self.since = self.silent_since = now
        return silent_s


@dataclass
class PoolWorkers:
    """All workers of a pool.

    Attributes:
        by_name: Every worker that was launched and is not gone, in the order of their launch.
    """

    by_name: dict[str, PoolWorker] = field(default_factory=dict)

    @property
    def ready(self) -> list[str]:
        """Workers whose model is loaded, busy or not."""
        return [worker.name for worker in self.by_name.values() if worker.is_ready]

    @property
    def idle(self) -> list[str]:
        """Ready workers that hold no unit."""
        return [worker.name for worker in self.by_name.values() if worker.is_idle]

    @property
    def requesting(self) -> list[str]:
        """Busy workers that have requested work and may get some, the least loaded first."""
        takers = [worker for worker in self.by_name.values() if worker.load.takes_more]
        return [worker.name for worker in sorted(takers, key=lambda worker: worker.load.rollouts)]

    @property
    def num_workers(self) -> int:
        """Number of workers that are ready or loading; those that are not placed yet may never be."""
        return sum(bool(worker.node_id) for worker in self.by_name.values())

    @property
    def is_any_placed(self) -> bool:
        """Whether any worker is ready or loading."""
        return any(worker.node_id for worker in self.by_name.values())
