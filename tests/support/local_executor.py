"""The simplest executor: runs units one after another in this process, so that a test knows what happens when."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from persona_atlas.cluster.pool.executor import Answer, WorkerView
from persona_atlas.cluster.pool.worker_loop import WorkerLoop
from persona_atlas.jobs.work.units import UnitAttempt

_NAME = "local"
_PAUSE_S = 0.002


class LocalExecutor:
    """Runs each assignment in this process, within ``wait``.

    Args:
        loop: The worker's loop, which a Ray actor would run in its own process.
    """

    def __init__(self, loop: WorkerLoop) -> None:
        self._loop = loop
        self._assigned: deque[tuple[UnitAttempt, ...]] = deque()
        self._since = time.time()

    def start(self, tick: Callable[[], None] = lambda: None) -> None:
        """Load the model.

        Args:
            tick: Not called, because loading is synchronous.
        """
        del tick
        self._loop.prepare()

    @property
    def passes(self) -> str:
        """Those of the loop."""
        return self._loop.passes

    @property
    def ready(self) -> list[str]:
        """This process."""
        return [_NAME]

    @property
    def idle(self) -> list[str]:
        """This process, while it holds no unit."""
        return [] if self._assigned else [_NAME]

    @property
    def requesting(self) -> list[str]:
        """Always empty: it runs one assignment at a time."""
        return []

    @property
    def num_workers(self) -> int:
        """Always 1."""
        return 1

    @property
    def views(self) -> list[WorkerView]:
        """What this process is doing."""
        units = tuple(attempt.unit.unit_id for attempts in self._assigned for attempt in attempts)
        return [WorkerView(_NAME, _NAME, "working" if units else "idle", units, self._since)]

    @property
    def nodes_left_out(self) -> dict[str, str]:
        """Always empty."""
        return {}

    def assign(self, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Queue an assignment until the next ``wait``.

        Args:
            worker: The only worker.
            attempts: Attempts at its units.
        """
        del worker
        self._since = time.time()
        self._assigned.append(tuple(attempts))

    def wait(self, timeout_s: float) -> list[Answer]:
        """Run everything that was assigned.

        Args:
            timeout_s: Ignored where there is something to run: the call returns when all units are finished. Otherwise
                the call sleeps for part of it: a loop that waits for commits and does not sleep takes the interpreter
                from the threads that make them.

        Returns:
            An answer for each report of the worker that had results.
        """
        if not self._assigned:
            time.sleep(min(timeout_s, _PAUSE_S))
        answers: list[Answer] = []
        for attempts in self._assigned:
            self._loop.take(attempts)
            left = len(attempts)
            while left:
                results = self._loop.next_report().results
                left -= len(results)
                if results:
                    answers.append(Answer(_NAME, results))
        self._assigned.clear()
        return answers

    def close(self) -> None:
        """Discard assignments that were not run."""
        self._assigned.clear()
