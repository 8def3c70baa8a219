"""Where a worker's block meets the store: run units, write each block, answer with manifests. Knows no Ray.

One object of this class lives in each Ray actor; the local executor holds one too. Assignments may come while others
are worked: their units join the running batch as room comes, and what is finished is encoded and uploaded beside it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

from ..jobs.block import UnitBlock
from ..jobs.errors import InputError
from ..jobs.ledger import Failure
from ..jobs.spec import GenerationSpec, ModelSpec
from ..jobs.units import UnitOrder
from ..storage.blocks import write_block
from ..storage.location import Location, open_location
from ..storage.records import Manifest
from ..workers.chat_spans import load_renderer
from ..workers.engine import Engine, EngineSettings
from ..workers.given_engine import GivenEngine
from ..workers.memory import require_memory
from ..workers.model_files import find_model
from ..workers.run_units import failure_of, run_units
from .load import Hungry
from .patience import patiently

_TOKENS_AHEAD = 1024
"""Where every token is kept, a quarter of the tokens of given texts that are taken up at a time: one pass's worth."""

_BLOCKS_WAITING = 2
"""Finished blocks that may wait to be written; then generation waits for the store, and memory does not grow."""

_LANDMARK_PAUSES_S = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that a worker is told; the orders bring the rest.

    Attributes:
        engine: The model and how to run it.
        needed_bytes: Memory of one replica, asked for before loading.
        store_url: Where blocks go.
        endpoint_url: Of an S3-compatible server.
        rows_per_block: Of the run.
        tokens_per_block: Of the run; 0 when it keeps no tokens.
        mantissa_bits: Of the run.
        model: Which model, for a machine that does not have its files where the driver has them; None: all have.
        reads_given: Whether the orders bring their texts.
        generation: The server that generates; None where nothing does, or the engine itself.
        served_model: What that server calls the model.
        landmark: Path of an object that the driver has written; a machine that does not see it looks at another store.
    """

    engine: EngineSettings
    needed_bytes: int
    store_url: str
    endpoint_url: str | None
    rows_per_block: int
    mantissa_bits: int
    model: ModelSpec | None = None
    reads_given: bool = False
    generation: GenerationSpec | None = None
    served_model: str = ""
    landmark: str = ""
    tokens_per_block: int = 0


def load_engine(settings: WorkerSettings) -> Engine:
    """Load the model, if there is room for it, and put before it what brings the texts, if it does not generate them.

    Raises:
        InputError: There is no room, it cannot be loaded, or the server that is to generate does not serve it.
    """
    # Torch is loaded where a model is, and not by the driver or the command line.
    from ..workers.transformers_engine import TransformersEngine

    if settings.engine.device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise InputError(
                "the worker's machine has a GPU, but its torch cannot use it.",
                code="no_gpu",
                field="placement.device",
                mend="Install a CUDA build of torch there, or use placement.device: cpu.",
            )
    require_memory(settings.needed_bytes, 1, settings.engine.device)
    engine = settings.engine
    if settings.model is not None and not engine.directory.is_dir():
        engine = replace(engine, directory=find_model(settings.model, lambda _: None))
    if not settings.reads_given and settings.generation is None:
        return TransformersEngine(engine)
    conversations = load_renderer(engine.directory)
    if settings.generation is None:
        # What it reads at a time it holds: of every token that is much, so then it sorts fewer texts by length.
        ahead = min(engine.batch_tokens, _TOKENS_AHEAD) if engine.token_layers else engine.batch_tokens
        return GivenEngine(TransformersEngine(engine), conversations, ahead)
    # Only where there is a server to ask is its client loaded.
    from ..workers.endpoint_engine import EndpointEngine, check_endpoint

    # A model may take minutes to load: first whether it will be of use.
    check_endpoint(settings.generation, settings.served_model, conversations.renderer)
    return EndpointEngine(
        TransformersEngine(engine),
        conversations,
        settings.generation,
        settings.served_model,
        engine.sampling,
    )


def require_same_store(location: Location, landmark: str) -> None:
    """Make sure that this machine sees what the driver wrote, before a model is loaded for nothing.

    Args:
        location: The run's store, as seen from here.
        landmark: Path of an object that the driver has written; empty: nothing is looked for.

    Raises:
        InputError: It is not there: a directory that the machines do not share, or another endpoint.
        TransientError: The store failed.
    """
    for pause_s in (*_LANDMARK_PAUSES_S, None):
        if not landmark or patiently(lambda: location.size(landmark)) is not None:
            return
        if pause_s is not None:
            # A shared file system may show a new file a little late.
            time.sleep(pause_s)
    raise InputError(
        f"{socket.gethostname()} does not see the run at {location.url}: {landmark}, which the driver wrote, is not "
        "there.",
        code="other_store",
        field="store.url",
        mend="Use s3://, or a directory that every machine shares under the same path.",
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    order: UnitOrder
    mailbox: SimpleQueue[Manifest | Failure | Hungry]


class UnitTask:
    """A worker without its process: loads the model when first needed, then works units.

    Args:
        settings: What to load and where to write.
        name: Who it is, for people.
        load: Makes the engine.
    """

    def __init__(
        self, settings: WorkerSettings, name: str, load: Callable[[WorkerSettings], Engine] = load_engine
    ) -> None:
        self._settings = settings
        self._name = name
        self._load = load
        self._engine: Engine | None = None
        self._location = open_location(settings.store_url, settings.endpoint_url)
        self._loading = threading.Lock()
        self._slots = threading.BoundedSemaphore(_BLOCKS_WAITING)
        # All below belongs to this lock.
        self._lock = threading.Lock()
        self._inbox: deque[_Asked] = deque()
        self._is_generating = False
        self._mailboxes: list[SimpleQueue[Manifest | Failure | Hungry]] = []
        self._num_handed = 0
        self._said_hungry = False

    def prepare(self) -> None:
        """Load the model now.

        Raises:
            InputError: It cannot be loaded, or this machine looks at another store than the driver.
            TransientError: The store failed.
        """
        with self._loading:
            if self._engine is None:
                require_same_store(self._location, self._settings.landmark)
                self._engine = self._load(self._settings)

    def work(self, orders: Sequence[UnitOrder]) -> Iterator[Manifest | Failure | Hungry]:
        """Run units and write their blocks; gives an answer for each, the first that is known first.

        Between the answers it says when it could do with more. May be called from another thread meanwhile: one thread
        has the model, and takes up what both asked for.
        """
        self.prepare()
        mailbox: SimpleQueue[Manifest | Failure | Hungry] = SimpleQueue()
        with self._lock:
            self._inbox.extend(_Asked(order, mailbox) for order in orders)
            if not self._is_generating:
                # Set after: a thread that cannot be started leaves the next caller to try.
                threading.Thread(target=self._generate, name="model", daemon=True).start()
                self._is_generating = True
            self._num_handed += len(orders)
            self._mailboxes.append(mailbox)
            self._said_hungry = False
        left = len(orders)
        while left:
            said = mailbox.get()
            left -= not isinstance(said, Hungry)
            yield said
        with self._lock:
            self._mailboxes.remove(mailbox)
            if not mailbox.empty():
                # Nobody hears it here any more; another call that is still open does.
                self._said_hungry = False

    def _generate(self) -> None:
        """Work until the inbox is empty; the thread that has the model."""
        assert self._engine is not None
        # By row block, which is an attempt's own.
        under_way: dict[int, _Asked] = {}
        with ThreadPoolExecutor(1, thread_name_prefix="writer") as writer:
            while True:
                try:
                    for result in run_units(self._engine, partial(self._next_order, under_way)):
                        self._settle(result, under_way, writer)
                except Exception as error:  # noqa: BLE001 - who waits for an answer must have one
                    for asked in under_way.values():
                        asked.mailbox.put(failure_of(asked.order, error))
                    under_way.clear()
                with self._lock:
                    if not self._inbox:
                        self._is_generating = False
                        return

    def _settle(self, result: UnitBlock | Failure, under_way: dict[int, _Asked], writer: ThreadPoolExecutor) -> None:
        if isinstance(result, Failure):
            mine = (row_block for row_block, asked in under_way.items() if _is_of(asked.order, result))
            under_way.pop(next(mine)).mailbox.put(result)
            return
        asked = under_way[result.order.row_block]
        self._slots.acquire()
        try:
            writer.submit(self._write, result, asked)
        except BaseException:
            self._slots.release()
            raise
        del under_way[result.order.row_block]

    def _next_order(self, under_way: dict[int, _Asked]) -> UnitOrder | None:
        with self._lock:
            asked = self._inbox.popleft() if self._inbox else None
            if asked is None:
                self._say_hungry()
                return None
        under_way[asked.order.row_block] = asked
        return asked.order

    def _say_hungry(self) -> None:
        """Tell once, on any call that is open; holds the lock."""
        if not self._said_hungry and self._mailboxes:
            self._mailboxes[-1].put(Hungry(self._num_handed))
            self._said_hungry = True

    def _write(self, block: UnitBlock, asked: _Asked) -> None:
        try:
            # Written again, not made again: the block is worth more than the wait.
            asked.mailbox.put(patiently(partial(self._write_once, block)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is this unit's failure and no other's
            asked.mailbox.put(failure_of(asked.order, error))
        finally:
            self._slots.release()

    def _write_once(self, block: UnitBlock) -> Manifest:
        return write_block(
            self._location,
            block,
            rows_per_block=self._settings.rows_per_block,
            tokens_per_block=self._settings.tokens_per_block,
            mantissa_bits=self._settings.mantissa_bits,
            worker=self._name,
        )


def _is_of(order: UnitOrder, failure: Failure) -> bool:
    return (order.unit.unit_id, order.attempt) == (failure.unit_id, failure.attempt)
