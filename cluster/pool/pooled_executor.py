"""What all executors with a pool have in common: the pool decides, the executor carries out. Knows no Ray.

A subclass has three verbs (launch, kill, send) and a ``wait`` that turns whatever its workers and its cluster do into
events of the pool. Ray's executor is one; simulations and tests have others, with the same policy.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from ...jobs.scheduling.pool import WorkerPool
from ...jobs.scheduling.pool_commands import Command, Deliver, GiveUp, Launch
from ...jobs.units import UnitAttempt
from ...storage.format.records import Manifest
from .executor import Answer, WorkerView


class PooledExecutor:
    """An executor that follows a :class:`WorkerPool`.

    Args:
        pool: Decides.
        clock: Gives the time of the pool, in seconds; must never go back.
    """

    def __init__(self, pool: WorkerPool[Manifest], clock: Callable[[], float] = time.monotonic) -> None:
        self._pool = pool
        self._clock = clock

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Wait until a worker is ready; the others join when they are.

        Args:
            tick: Called about once a second meanwhile; what it raises ends the waiting.

        Raises:
            InputError: The model cannot be loaded.
            JobError: No worker comes up.
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
        """Busy workers that ask for more and may have it, the least loaded first."""
        return self._pool.workers.requesting

    @property
    def num_workers(self) -> int:
        """Workers that are ready, or are loading the model."""
        return self._pool.workers.num_workers

    @property
    def views(self) -> list[WorkerView]:
        """What each worker is doing, including those that wait for a place."""
        # The pool has a clock that never goes back, people have one that tells the time.
        to_epoch = time.time() - self._clock()
        return [
            WorkerView(
                worker.name,
                worker.node_id,
                worker.doing,
                tuple(attempt.unit.unit_id for attempt in worker.load.attempts),
                worker.since + to_epoch,
            )
            for worker in self._pool.workers.by_name.values()
        ]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Nodes on which no more workers are placed, by node id, with the reason."""
        return self._pool.nodes_left_out

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Hand an assignment over.

        Args:
            worker: One of ``idle`` or ``requesting``.
            attempts: Its units; some later answer has a result for each.
        """
        self._pool.assigned(worker, attempts, self._clock())
        self._send(worker, tuple(attempts))

    def wait(self, timeout_s: float) -> list[Answer]:
        """Wait for answers.

        Args:
            timeout_s: Seconds to wait at most for the first.

        Returns:
            All that have arrived.

        Raises:
            InputError: No worker can load the model.
            JobError: No worker is left.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Kill every worker; what is in flight is lost."""
        self._carry_out(self._pool.close())

    def _launch(self, worker: str, avoid: tuple[str, ...]) -> None:
        """Begin to launch a worker, on none of the nodes to avoid, and to load its model."""
        raise NotImplementedError

    def _kill(self, worker: str) -> None:
        """End a worker, dead or alive, and report no more events of it."""
        raise NotImplementedError

    def _send(self, worker: str, attempts: tuple[UnitAttempt, ...]) -> None:
        """Send an assignment to a worker; whether it arrives is reported as an event."""
        raise NotImplementedError

    def _carry_out(self, commands: Iterable[Command[Manifest]]) -> list[Answer]:
        """Carry out what the pool decided, in its order; gives what it delivers."""
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
