"""The Ray actor that is one worker. Knows nothing of other workers or of the pool."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import ray

from ...jobs.errors import AtlasError, JobError
from ...jobs.machine_faults import machine_fault
from ...jobs.work.units import UnitAttempt
from ...workers.vllm.over_nodes.lifeline import LeaderLifeline
from ...workers.vllm.over_nodes.node_group import NodeGroup, NodePlace
from ...workers.vllm.ranks import end_all_ranks, end_this_process, end_with_starter
from .worker_loop import WorkerLoop, WorkerReport
from .worker_settings import WorkerSettings


class UnitActor:
    """A replica: a ``WorkerLoop`` in a separate process.

    Its methods run concurrently in threads, so that it can report while it accepts an assignment. Of a replica over
    several nodes it is the process on the first one, which leads; ``ray_follower.py`` has the others.

    Args:
        settings: Settings of the worker.
        name: Name of the worker.
    """

    # Only a replica over several nodes has them.
    _lifeline: LeaderLifeline | None = None
    _group: NodeGroup | None = None

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        settings = on_own_node(settings)
        if settings.num_nodes > 1:
            end_with_starter()
            address = ray.util.get_node_ip_address()
            self._lifeline = LeaderLifeline(address, settings.num_nodes - 1, lambda _: end_this_process())
            self._group = NodeGroup.led_from(address, settings.num_nodes, self._lifeline.port, self._lifeline.secret)
            settings = replace(settings, place=NodePlace(self._group, 0, address))
        self._loop = WorkerLoop(settings, name)

    def node_id(self) -> str:
        """Return the id of the node that this actor runs on."""
        return ray.get_runtime_context().get_node_id()

    def group(self) -> NodeGroup | None:
        """Return how the processes of this replica find one another; None if it is on one node."""
        return self._group

    def wait_forever(self) -> None:
        """Never return: when the worker dies, this call fails, which notifies the driver whatever the worker did."""
        threading.Event().wait()

    def prepare(self) -> AtlasError | str:
        """Load the model.

        Returns:
            Which texts have a forward pass of their own (:attr:`WorkerLoop.passes`), or why the model cannot be loaded.
            The error is returned and not raised, because Ray would wrap it.
        """
        try:
            require_current_directory()
            self._loop.prepare()
        except AtlasError as error:
            return error
        except Exception as error:  # noqa: BLE001 - raised, it would look like a lost worker to the driver
            return not_loaded(error)
        if self._lifeline is not None:
            self._lifeline.loaded()
        return self._loop.passes

    def take(self, attempts: Sequence[UnitAttempt]) -> None:
        """Accept an assignment; see :meth:`WorkerLoop.take`."""
        self._loop.take(attempts)

    def end(self) -> None:
        """End the other processes of the engine, at once: this one is about to be killed, which would leave traces."""
        end_all_ranks()

    def next_report(self) -> WorkerReport:
        """Wait until there is something to report, and return it; see :meth:`WorkerLoop.next_report`."""
        return self._loop.next_report()


def not_loaded(error: Exception) -> AtlasError:
    """Make the error of a model that cannot be loaded from one that nobody expected."""
    return machine_fault(error) or JobError(f"the model cannot be loaded: {error!r}.", code="model_not_loaded")


def require_current_directory() -> None:
    """Leave the current directory if it is gone, as when Ray unpacks a job's files anew; libraries ask for it."""
    try:
        Path.cwd()
    except FileNotFoundError:
        os.chdir("/")


def on_own_node(settings: WorkerSettings) -> WorkerSettings:
    """Return the settings of a worker with the threads that this node has for it."""
    own = ray.get_runtime_context().get_node_id()
    resources = next((node["Resources"] for node in ray.nodes() if node["NodeID"] == own), {})
    return settings.on_node(resources.get("CPU", 0), resources.get("GPU", 0))
