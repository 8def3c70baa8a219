"""Base class of executors with a pool: the pool decides, the executor carries out its commands. Knows no Ray.

A subclass implements launch, kill and send, and a ``wait`` that translates what happens to its workers and its cluster
to events of the pool. ``RayExecutor`` is one; simulations and tests have others, with the same policy.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence

from ...jobs.scheduling.pool import WorkerPool
from ...jobs.scheduling.pool_commands import Command, Deliver, GiveUp, Launch
from ...jobs.work.units import UnitAttempt
from ...storage.format.records import Manifest
from .executor import Answer, Wait, WorkerView

_NEXT = "the next worker"


class PooledExecutor(ABC):
    """An executor that follows a :class:`WorkerPool`.

    Args:
        pool: The pool, which makes all decisions.
        clock: Returns the pool's time in seconds; must be monotonic.

    Attributes:
        passes: Which texts have a forward pass of their own, as the last worker that loaded its model reported.
    """

    def __init__(self, pool: WorkerPool[Manifest], clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock
        self.passes = ""
        self._waits: dict[str, Wait] = {}
        self._num_rows: dict[str, int] = {}

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Wait until a worker is ready; the others join when they are.

        Args:
            tick: Called about once a second while waiting; an exception that it raises ends the wait.

        Raises:
            InputError: The model cannot be loaded.
            JobError: No worker could be started.
        """
        while not self.idle:
            tick()
            self.wait(1.0)

    @property
    def ready(self) -> list[str]:
        """Workers whose model is loaded, busy or not."""
        return self._pool.workers.ready

    @property
    def idle(self) -> list[str]:
        """Ready workers that hold no unit."""
        return self._pool.workers.idle

    @property
    def requesting(self) -> list[str]:
        """Busy workers that have requested work and may get some, the least loaded first."""
        return self._pool.workers.requesting

    @property
    def num_workers(self) -> int:
        """Workers that are ready, or are loading the model."""
        return self._pool.workers.num_workers

    @property
    def views(self) -> list[WorkerView]:
        """What each worker is doing, including those that wait for a place."""
        # The pool's clock is monotonic; views have wall-clock times.
        to_epoch = time.time() - self._clock()
        if not self._pool.workers.by_name and self._pool.last_refusal is not None:
            # A pause before the next worker is launched: without this, nobody would see why nothing happens.
            error, refused_at = self._pool.last_refusal
            since = refused_at + to_epoch
            return [WorkerView(_NEXT, "", "waiting", (), since, Wait(str(error), since))]
        return [
            WorkerView(
                worker.name,
                worker.node_id,
                worker.doing,
                tuple(attempt.unit.unit_id for attempt in worker.load.attempts),
                worker.since + to_epoch,
                self._waits.get(worker.name),
                self._num_rows.get(worker.name, 0),
            )
            for worker in self._pool.workers.by_name.values()
        ]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Nodes on which no more workers are placed, by node id, with the reason."""
        return self._pool.nodes_left_out

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Send an assignment to a worker.

        Args:
            worker: One of ``idle`` or ``requesting``.
            attempts: Attempts at its units; later answers have a result for each.
        """
        self._pool.assigned(worker, attempts, self._clock())
        self._send(worker, tuple(attempts))

    @abstractmethod
    def wait(self, timeout_s: float) -> list[Answer]:
        """Wait for answers.

        Args:
            timeout_s: Most seconds to wait for the first answer.

        Returns:
            All answers that have arrived; empty after a timeout.

        Raises:
            InputError: No worker can load the model.
            JobError: No worker is left.
        """

    def close(self) -> None:
        """Kill every worker; what is in flight is lost."""
        self._carry_out(self._pool.close())

    def _note_wait(self, worker: str, held_up_by: str | None) -> None:
        """Record what a worker reports to wait for; see ``WorkerReport.held_up_by``."""
        if held_up_by == "":
            self._waits.pop(worker, None)
        elif held_up_by is not None:
            began = self._waits.get(worker)
            self._waits[worker] = Wait(held_up_by, began.since if began else time.time())

    def _note_rows(self, worker: str, num_rows: int | None) -> None:
        """Record how far a worker is with its units; see ``WorkerReport.num_rows``."""
        if num_rows is not None:
            self._num_rows[worker] = num_rows

    @abstractmethod
    def _launch(self, worker: str, avoid: tuple[str, ...]) -> None:
        """Launch a worker on any node except those to avoid, and let it load its model; returns without waiting."""

    @abstractmethod
    def _kill(self, worker: str) -> None:
        """Kill a worker, dead or alive, and report no further events of it."""

    @abstractmethod
    def _send(self, worker: str, attempts: tuple[UnitAttempt, ...]) -> None:
        """Send an assignment to a worker; if it cannot accept it, that is reported as an event."""

    def _carry_out(self, commands: Iterable[Command[Manifest]]) -> list[Answer]:
        """Carry out the pool's commands in order; return the results that it delivers."""
        answers: list[Answer] = []
        for command in commands:
            if isinstance(command, Deliver):
                answers.append(Answer(command.worker, command.results))
            elif isinstance(command, Launch):
                self._launch(command.worker, command.avoid)
            elif isinstance(command, GiveUp):
                raise command.error
            else:
                self._kill(command.worker)
        return answers
