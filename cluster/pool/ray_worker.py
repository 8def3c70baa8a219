"""One worker: the actor that works units, and the driver's handle of it. Knows nothing of other workers or of the pool.

What a worker has told must survive it. Ray keeps the result of a call that has ended, whatever becomes of the actor,
and drops what has not been read of a stream; hence one call after another that gives what there is to say.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from ...jobs.errors import AtlasError, JobError
from ...jobs.units import UnitAttempt
from .worker_load import WorkerLoad
from .worker_task import UnitTask, WorkerReport, WorkerSettings


class UnitActor:
    """A replica: a ``UnitTask`` in a process of its own."""

    def __init__(self, settings: WorkerSettings, name: str) -> None:
        self._task = UnitTask(settings, name)

    def where(self) -> str:
        """Give the id of the node this runs on."""
        return ray.get_runtime_context().get_node_id()

    def live(self) -> None:
        """Never answer: that this call fails is how the driver hears of a death, whatever the worker was doing."""
        threading.Event().wait()

    def prepare(self) -> AtlasError | None:
        """Load the model; gives the error rather than raising it, so that it arrives as itself."""
        try:
            self._task.prepare()
        except AtlasError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a library's own error would reach the driver as a lost worker
            return JobError(f"the model cannot be loaded: {error!r}.", code="model_not_loaded")
        return None

    def take(self, attempts: Sequence[UnitAttempt]) -> None:
        """Begin to work units."""
        self._task.take(attempts)

    def said(self) -> WorkerReport:
        """Wait until there is something to say, and say it."""
        return self._task.said()


@dataclass
class RayWorker:
    """What the driver knows of an actor.

    Attributes:
        name: Who.
        actor: Ray's handle.
        node: Id of its node; empty until it has a place.
        is_ready: Whether its model is loaded.
        asked_at: When it was made, on the monotonic clock.
        since: When what it does began, or it last took or answered something; seconds since the epoch.
        heard_at: When it last answered, or was given something to do after nothing; on the monotonic clock.
        load: What it holds.
    """

    name: str
    actor: Any
    node: str = ""
    is_ready: bool = False
    asked_at: float = field(default_factory=time.monotonic)
    since: float = field(default_factory=time.time)
    heard_at: float = field(default_factory=time.monotonic)
    load: WorkerLoad = field(default_factory=WorkerLoad)

    @property
    def is_idle(self) -> bool:
        """Whether it could work and has nothing to do."""
        return self.is_ready and self.load.is_empty

    @property
    def doing(self) -> str:
        """As :class:`.executor.WorkerView` names it."""
        if not self.is_ready:
            return "loading" if self.node else "waiting"
        return "idle" if self.load.is_empty else "working"

    def assign(self, attempts: Sequence[UnitAttempt]) -> Any:
        """Give it an assignment; gives Ray's reference of the call, which brings nothing back but errors."""
        self.since = time.time()
        if self.is_idle:
            self.heard_at = time.monotonic()
        self.load.take(attempts)
        return self.actor.take.remote(tuple(attempts))

    def heard(self) -> float:
        """Take note that it answered; gives how long it was silent before, seconds."""
        now = time.monotonic()
        silent_s, self.since, self.heard_at = now - self.heard_at, time.time(), now
        return silent_s
