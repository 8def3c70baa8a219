"""The workers of a simulation, in a process of their own: receive assignments, write objects, return manifests.

Objects have the names and sizes of their manifests, which is all that a driver checks, but only a few bytes. Manifests
are as long as those of real units.
"""

from __future__ import annotations

import multiprocessing
import pickle
import queue
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from persona_atlas.jobs.work.rollouts import Canary
from persona_atlas.jobs.work.units import UnitAttempt
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import Manifest, StoredObject, StoredShard

ARRAY = ("resid_post", "response_mean")
MAX_TOKENS = 512
CUT = 1 / 3
"""Share of responses that reach the limit; lengths of the others are uniform between an eighth of it and the limit."""

_CONTENT = b"texts or numbers\n"
_DIGEST = sha256(_CONTENT).hexdigest()


def response_share(seed: int) -> float:
    """Draw the length of a response from the seed of its rollout, so that both processes agree on it.

    Args:
        seed: Seed of the rollout.

    Returns:
        Length in relation to the longest response, an eighth to 1.
    """
    drawn = seed / 2**63
    return 1.0 if drawn < CUT else 1 / 8 + 7 / 8 * (drawn - CUT) / (1 - CUT)


class Stopwatch(Protocol):
    """A clock that can be stopped while the simulation does what a real driver would not wait for."""

    def stopped(self) -> AbstractContextManager[None]:
        """Stop the clock while the context is open."""
        ...


class WorkersSide:
    """Starts the workers' process and talks to it from the driver's. A context manager.

    Args:
        root: Directory of the store.
        layers: Number of captured layers, which decides the length of manifests.
    """

    def __init__(self, root: Path, layers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._ours, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, root, layers), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> WorkersSide:
        return self

    def __exit__(self, *_: object) -> None:
        self._ours.close()
        self._process.join(60)

    def work(self, clock: Stopwatch, number: int, worker: str, attempts: Sequence[UnitAttempt]) -> None:
        """Send an assignment to a worker. Pickling it counts as the driver's time, sending it does not.

        Args:
            clock: Clock of the simulation.
            number: Number of the assignment.
            worker: Name of the worker.
            attempts: The assignment.
        """
        data = pickle.dumps((number, worker, tuple(attempts)))
        with clock.stopped():
            self._ours.send_bytes(data)

    def manifest(self, clock: Stopwatch, number: int, unit_id: str) -> Manifest:
        """Fetch the manifest of a unit. Unpickling it counts as the driver's time, waiting for it does not.

        Args:
            clock: Clock of the simulation.
            number: Number of the assignment.
            unit_id: Id of the unit.
        """
        with clock.stopped():
            self._ours.send_bytes(pickle.dumps((number, unit_id, None)))
            data = self._ours.recv_bytes()
        return pickle.loads(data)  # noqa: S301 - from our own process


def _serve(connection: Connection, root: Path, layers: int) -> None:
    # A thread empties the pipe at once, so that the driver never blocks on a full one.
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(connection, inbox), daemon=True)
    reader.start()
    manifests: dict[tuple[int, str], bytes] = {}
    while (data := inbox.get()) is not None:
        number, name, attempts = pickle.loads(data)  # noqa: S301 - from our own process
        if attempts is None:
            connection.send_bytes(manifests.pop((number, name)))
        else:
            for attempt in attempts:
                manifests[number, attempt.unit.unit_id] = pickle.dumps(_work(root, layers, name, attempt))


def _read(connection: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    try:
        while True:
            inbox.put(connection.recv_bytes())
    except EOFError:
        inbox.put(None)


def _work(root: Path, layers: int, worker: str, attempt: UnitAttempt) -> Manifest:
    unit_id = attempt.unit.unit_id
    texts = layout.rollouts_path(unit_id, attempt.row_block)
    shard = layout.shard_path(*ARRAY, attempt.row_block)
    for path in (texts, shard):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(_CONTENT)
    tokens = tuple(max(1, round(MAX_TOKENS * response_share(request.seed))) for request in attempt.first_requests())
    stored = StoredShard(
        path=shard,
        num_bytes=len(_CONTENT),
        sha256=_DIGEST,
        hook_point=ARRAY[0],
        pooling=ARRAY[1],
        chunk_bytes=(786_432,) * layers,
    )
    return Manifest(
        unit=attempt.unit,
        attempt=attempt.number,
        row_block=attempt.row_block,
        texts=StoredObject(path=texts, num_bytes=len(_CONTENT), sha256=_DIGEST),
        blocks=(stored,),
        prompt_tokens=(74,) * len(tokens),
        content_tokens=tokens,
        finish_reasons=tuple("length" if count == MAX_TOKENS else "stop" for count in tokens),
        worker=worker,
        seconds=3.4,
        canary=Canary(1, (1.25e-3,) * layers, (0.999998,) * layers),
    )
