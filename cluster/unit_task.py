"""Where a worker's block meets the store: run units, write each block, answer with manifests. Knows no Ray.

One object of this class lives in each Ray actor; the local executor holds one too. It may be given a second assignment
while it works the first: then what the first made is encoded and uploaded while the second is generated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ..jobs.block import UnitBlock
from ..jobs.errors import AtlasError, InputError
from ..jobs.ledger import Failure
from ..jobs.spec import ModelSpec
from ..jobs.units import UnitOrder
from ..storage.blocks import write_block
from ..storage.location import open_location
from ..storage.records import Manifest
from ..workers.engine import Engine, EngineSettings
from ..workers.memory import require_memory
from ..workers.model_files import find_model
from ..workers.run_units import failure_of, run_units
from .patience import patiently


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that a worker is told; the orders bring the rest.

    Attributes:
        engine: The model and how to run it.
        needed_bytes: Memory of one replica, asked for before loading.
        store_url: Where blocks go.
        endpoint_url: Of an S3-compatible server.
        rows_per_block: Of the run.
        mantissa_bits: Of the run.
        model: Which model, for a machine that does not have its files where the driver has them; None: all have.
    """

    engine: EngineSettings
    needed_bytes: int
    store_url: str
    endpoint_url: str | None
    rows_per_block: int
    mantissa_bits: int
    model: ModelSpec | None = None


def load_engine(settings: WorkerSettings) -> Engine:
    """Load the model, if there is room for it.

    Raises:
        InputError: There is not, or it cannot be loaded.
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
    return TransformersEngine(engine)


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
        self._model = threading.Lock()

    def prepare(self) -> None:
        """Load the model now.

        Raises:
            InputError: It cannot be loaded.
        """
        with self._model:
            if self._engine is None:
                self._engine = self._load(self._settings)

    def work(self, orders: Sequence[UnitOrder]) -> list[Manifest | Failure]:
        """Run units and write their blocks; one answer for each, in order.

        May be called again from another thread meanwhile: one call has the model at a time, and only so many blocks
        are held as two calls make.
        """
        self.prepare()
        assert self._engine is not None
        with self._model:
            made = list(run_units(self._engine, orders))
        answers: list[Manifest | Failure] = []
        for result in made:
            if isinstance(result, Failure):
                answers.append(result)
                continue
            try:
                # Written again, not made again: the block is worth more than the wait.
                answers.append(patiently(partial(self._write, result)))
            except AtlasError as error:
                answers.append(failure_of(result.order, error))
        return answers

    def _write(self, block: UnitBlock) -> Manifest:
        return write_block(
            self._location,
            block,
            rows_per_block=self._settings.rows_per_block,
            mantissa_bits=self._settings.mantissa_bits,
            worker=self._name,
        )
