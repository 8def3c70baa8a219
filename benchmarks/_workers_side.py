"""The workers' half of a simulation, in a process of its own: unpacks orders, writes objects, answers with manifests.

The objects are a few bytes each, of the names and sizes that their manifests say: a driver looks at no more. What
the manifests say of a unit is as long as for a real one.
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

from persona_atlas.jobs.rollouts import Canary
from persona_atlas.jobs.units import UnitAttempt
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import Manifest, StoredObject, StoredShard

ARRAY = ("resid_post", "response_mean")
MAX_TOKENS = 512
CUT = 1 / 3
"""Share of responses that reach the limit; the others are of any length from an eighth of it, all as likely."""

_CONTENT = b"texts or numbers\n"
_DIGEST = sha256(_CONTENT).hexdigest()


def response_share(seed: int) -> float:
    """Say how long a rollout's response is, of the longest; drawn from its own seed, so both sides know."""
    drawn = seed / 2**63
    return 1.0 if drawn < CUT else 1 / 8 + 7 / 8 * (drawn - CUT) / (1 - CUT)


class Stopwatch(Protocol):
    """A clock that can be stopped for what no driver would have to wait for."""

    def stopped(self) -> AbstractContextManager[None]:
        """Take no time."""
        ...


class WorkersSide:
    """The driver's end of it. Use as a context manager.

    Args:
        root: The store's directory.
        layers: Captured ones of the plan, for the length of what manifests say.
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
        """Send an assignment. Packing it takes time; that the other side listens does not."""
        data = pickle.dumps((number, worker, tuple(attempts)))
        with clock.stopped():
            self._ours.send_bytes(data)

    def manifest(self, clock: Stopwatch, number: int, unit_id: str) -> Manifest:
        """Ask what was answered for a unit. Unpacking takes time; waiting for the other side does not."""
        with clock.stopped():
            self._ours.send_bytes(pickle.dumps((number, unit_id, None)))
            data = self._ours.recv_bytes()
        return pickle.loads(data)  # noqa: S301 - from our own process


def _serve(connection: Connection, root: Path, layers: int) -> None:
    # Read at once, so that the driver never waits for room in the pipe.
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    reader = threading.Thread(target=_read, args=(connection, inbox), daemon=True)
    reader.start()
    answers: dict[tuple[int, str], bytes] = {}
    while (data := inbox.get()) is not None:
        number, asked, attempts = pickle.loads(data)  # noqa: S301 - likewise
        if attempts is None:
            connection.send_bytes(answers.pop((number, asked)))
        else:
            for attempt in attempts:
                answers[number, attempt.unit.unit_id] = pickle.dumps(_work(root, layers, asked, attempt))


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
    block = StoredShard(
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
        blocks=(block,),
        prompt_tokens=(74,) * len(tokens),
        content_tokens=tokens,
        finish_reasons=tuple("length" if count == MAX_TOKENS else "stop" for count in tokens),
        worker=worker,
        seconds=3.4,
        canary=Canary(1, (1.25e-3,) * layers, (0.999998,) * layers),
    )
