"""The processes of a tensor-parallel group live and die together: none outlives its parent, and none its siblings.

vLLM starts one process for each rank, and ends them politely. A rank that waits for a dead one in a collective does not
hear it, and neither does one whose parent was killed in the middle of a step; both would hold their GPU. Knows no vLLM.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess

_POLL_S = 0.5


def end_with_parent() -> None:
    """Let this process be killed as soon as the process that started it is gone; called in each rank.

    Does nothing in a process that ``multiprocessing`` has not started: a single rank lives in the worker itself.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int, pid: int | None) -> None:
        # The process id as well: another child of the parent may hold the other end of the sentinel's pipe.
        while not wait([sentinel], timeout=_POLL_S) and os.getppid() == pid:
            pass
        # No exit handlers: they would wait for the other ranks.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, args=(parent.sentinel, parent.pid), name="parent-watch", daemon=True).start()


class Ranks:
    """The rank processes that this process has started; when one dies, the others are killed at once.

    Args:
        processes: The ranks; empty for a single rank in this process.
    """

    def __init__(self, processes: Sequence[BaseProcess]) -> None:
        self._processes = tuple(processes)
        if self._processes:
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    @classmethod
    def started_since(cls, before: Sequence[BaseProcess]) -> Ranks:
        """Take the children that this process has started.

        Args:
            before: ``multiprocessing.active_children()`` before the ranks were started.
        """
        earlier = {child.pid for child in before}
        return cls([child for child in multiprocessing.active_children() if child.pid not in earlier])

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the ranks."""
        return tuple(process.pid for process in self._processes if process.pid is not None)

    def kill(self) -> None:
        """Kill every rank that is alive, and wait until it is gone."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()

    def _watch(self) -> None:
        wait([process.sentinel for process in self._processes])
        # Without waiting for them, since vLLM's own watcher joins the same processes.
        for process in self._processes:
            process.kill()
