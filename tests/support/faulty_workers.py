"""Workers of a real Ray that have no model and fail as scripted, on one node or over one persona's units.

Each time one fails, it leaves a note in a folder; the healthy ones wait for given numbers of notes, so that no test
depends on who is faster.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from persona_atlas.cluster.pool.ray_worker import UnitActor
from persona_atlas.cluster.pool.worker_loop import WorkerLoop
from persona_atlas.cluster.pool.worker_settings import WorkerSettings
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.engine import CapturedRollout

from fakes import FakeEngine

_TIMEOUT_S = 120.0

GO = "go"
"""The note for which ``dies_later`` waits."""


@dataclass(frozen=True)
class Fault:
    """A scripted fault.

    Attributes:
        folder: Folder of the notes; one for each test.
        what: ``cannot_begin``, ``other_disk``, ``dies``, ``dies_later`` (all other units of its batch are answered,
            then it waits for a note), ``fails``, ``hangs`` or ``nothing``.
        node: Id of the node where it goes wrong; empty: on every node.
        persona: Whose units it goes wrong over; empty: over all.
        pace: Healthy workers run their n-th unit when there are n times this many notes, or ``enough``.
        enough: Number of notes from which on healthy workers wait for none.
    """

    folder: Path
    what: str
    node: str = ""
    persona: str = ""
    pace: int = 0
    enough: int = 0

    def notes(self) -> list[str]:
        """Names of the workers that have failed, once for each time."""
        return [path.name.split("@")[0] for path in sorted(self.folder.iterdir())]

    def note(self, name: str) -> None:
        """Leave a note that a worker has failed."""
        (self.folder / f"{name}@{time.time_ns()}").touch()

    def actor_class(self) -> type[UnitActor]:
        """The class of such actors."""
        fault = self

        class Faulty(UnitActor):
            def __init__(self, settings: WorkerSettings, name: str) -> None:
                import ray

                is_here = fault.node in ("", ray.get_runtime_context().get_node_id())
                if is_here and fault.what == "cannot_begin":
                    fault.note(name)
                    raise ImportError("there is no module of that name")
                if is_here and fault.what == "other_disk":
                    settings = replace(settings, store_url=str(fault.folder / "elsewhere"))
                self._loop = WorkerLoop(settings, name, load=lambda *_: _FaultyEngine(fault, name, is_here))

        return Faulty


@dataclass
class _FaultyEngine(FakeEngine):
    fault: Any = None
    name: str = ""
    is_here: bool = False
    worked: int = field(default=0)

    def __init__(self, fault: Fault, name: str, is_here: bool) -> None:
        super().__init__()
        self.fault, self.name, self.is_here, self.worked = fault, name, is_here, 0

    def generate(self, next_request: Callable[[], RolloutRequest | None]) -> Iterator[CapturedRollout]:
        requests = list(iter(next_request, None))
        if not requests:
            return
        personas = {request.address.persona for request in requests}
        goes_wrong = self.is_here and self.fault.persona in {"", *personas}
        if goes_wrong and self.fault.what == "dies_later":
            rest = iter([request for request in requests if request.address.persona != self.fault.persona])
            yield from super().generate(lambda: next(rest, None))
            # Until the results have been read.
            self._wait_for(self.fault.folder / GO)
        if goes_wrong:
            self._go_wrong()
        self._keep_pace()
        rest = iter(requests)
        yield from super().generate(lambda: next(rest, None))

    def _go_wrong(self) -> None:
        self.fault.note(self.name)
        if self.fault.what in ("dies", "dies_later"):
            os._exit(1)
        if self.fault.what == "hangs":
            time.sleep(3600)
        if self.fault.what == "fails":
            # As fast as a broken device, but slow enough for another worker to do a unit meanwhile.
            time.sleep(0.2)
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    @staticmethod
    def _wait_for(path: Path) -> None:
        deadline = time.monotonic() + _TIMEOUT_S
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)

    def _keep_pace(self) -> None:
        self.worked += 1
        wanted = min(self.worked * self.fault.pace, self.fault.enough)
        deadline = time.monotonic() + _TIMEOUT_S
        while len(self.fault.notes()) < wanted and time.monotonic() < deadline:
            time.sleep(0.02)
