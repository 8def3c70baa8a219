"""The processes of a tensor-parallel group live and die together: none outlives its parent, and none its siblings.

vLLM starts one process for each rank, and ends them politely. A rank that waits for a dead one in a collective does not
hear it, and neither does one whose parent was killed in the middle of a step; both would hold their GPU. Knows no vLLM.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
import weakref
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

_POLL_S = 0.5

_LOOK_S = 5.0
"""How often a rank notes the shared memory of its parent, whose list is locked while it is read."""

_SEMAPHORE = "/dev/shm/sem.mp-"
_SHARED = ("/dev/shm/psm_", _SEMAPHORE, "/dev/shm/vllm_")
"""How names of shared memory begin that Python's ``multiprocessing`` and vLLM create."""

_all: weakref.WeakSet[Ranks] = weakref.WeakSet()


def end_all_ranks() -> None:
    """Kill every rank of this process, and remove their shared memory; called when this process is to be killed.

    A process that is killed cannot do it any more, and its ranks may be killed with it.
    """
    for ranks in list(_all):
        # Before they are killed: Ray may kill this process at any moment, and whoever has it mapped keeps it.
        unlink_shared_memory(ranks.shared | shared_memory_of(ranks.pids))
        ranks.kill()


def end_this_process() -> None:
    """Kill every rank of this process, and then the process itself; for a part of a replica that has lost another."""
    end_all_ranks()
    os.kill(os.getpid(), signal.SIGKILL)


def end_with_starter() -> None:
    """Let this process and its ranks be killed as soon as the process that started it is gone, as Ray's on this node.

    Ray ends its workers then too, but may take a quarter of a minute, in which the other nodes of a replica wait.
    """
    starter = os.getppid()

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(_POLL_S)
        end_this_process()

    threading.Thread(target=watch, name="starter-watch", daemon=True).start()


def end_with_parent() -> None:
    """Let this process be killed as soon as the process that started it is gone; called in each rank.

    Does nothing in a process that ``multiprocessing`` has not started: a single rank lives in the worker itself.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch(sentinel: int, pid: int | None) -> None:
        shared: frozenset[Path] = frozenset()
        next_look_s = 0.0
        # The process id as well: another child of the parent may hold the other end of the sentinel's pipe.
        while not wait([sentinel], timeout=_POLL_S) and os.getppid() == pid:
            if pid is not None and time.monotonic() >= next_look_s:
                shared = shared_memory_of([pid])
                next_look_s = time.monotonic() + _LOOK_S
        # Nobody else may be left to do it, of what the parent alone had mapped neither.
        unlink_shared_memory(shared | shared_memory_of([os.getpid()]))
        # No exit handlers: they would wait for the other ranks.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, args=(parent.sentinel, parent.pid), name="parent-watch", daemon=True).start()


@dataclass(frozen=True, slots=True)
class BeforeRanks:
    """What this process has before it starts ranks.

    Attributes:
        children: Process ids of its children.
        shared: The shared memory that it has mapped.
    """

    children: frozenset[int | None]
    shared: frozenset[Path]

    @classmethod
    def now(cls) -> BeforeRanks:
        """Take down what there is now."""
        children = frozenset(child.pid for child in multiprocessing.active_children())
        return cls(children, shared_memory_of([os.getpid()]))


class Ranks:
    """The rank processes that this process has started; when one dies, the others are killed at once.

    Args:
        processes: The ranks; empty for a single rank in this process.
        shared: Shared memory that is theirs alone.

    Attributes:
        shared: The same.
    """

    def __init__(self, processes: Sequence[BaseProcess], shared: frozenset[Path] = frozenset()) -> None:
        self._processes = tuple(processes)
        self.shared = shared
        _all.add(self)
        if self._processes:
            threading.Thread(target=self._watch, name="rank-watch", daemon=True).start()

    @classmethod
    def started_since(cls, before: BeforeRanks) -> Ranks:
        """Take the children that this process has started.

        Args:
            before: What there was before the ranks were started.
        """
        processes = [child for child in multiprocessing.active_children() if child.pid not in before.children]
        pids = [os.getpid(), *(process.pid for process in processes if process.pid is not None)]
        return cls(processes, (shared_memory_of(pids) - before.shared) if processes else frozenset())

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

    def wait_for_a_death(self) -> None:
        """Wait until one of them has died."""
        wait([process.sentinel for process in self._processes])

    def unlink_shared_memory(self) -> None:
        """Remove what ranks that were killed have left of their shared memory, which is the machine's memory."""
        unlink_shared_memory(without_semaphores(self.shared))

    def _watch(self) -> None:
        self.wait_for_a_death()
        # Without waiting for them, since vLLM's own watcher joins the same processes.
        for process in self._processes:
            process.kill()


def shared_memory_of(pids: Iterable[int]) -> frozenset[Path]:
    """List the named shared memory that processes have mapped; empty where the system does not tell.

    Args:
        pids: Process ids.
    """
    found: set[Path] = set()
    for pid in pids:
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
            names = (line.split(maxsplit=5)[-1] for line in lines)
            found |= {Path(name) for name in names if name.startswith(_SHARED) and not name.endswith(" (deleted)")}
    return frozenset(found)


def without_semaphores(paths: Iterable[Path]) -> frozenset[Path]:
    """Leave out semaphores: those that a rank has mapped by name are its parent's, whose Python removes them itself.

    Args:
        paths: As ``shared_memory_of`` lists it.

    Example:
        >>> sorted(map(str, without_semaphores([Path("/dev/shm/sem.mp-1"), Path("/dev/shm/psm_1")])))
        ['/dev/shm/psm_1']
    """
    return frozenset(path for path in paths if not str(path).startswith(_SEMAPHORE))


def unlink_shared_memory(paths: Iterable[Path]) -> None:
    """Remove shared memory; what is gone already is no error.

    Args:
        paths: As ``shared_memory_of`` lists it.
    """
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)
