"""What a worker is told when it starts. Plain values, which travel to the worker's process."""

from __future__ import annotations

from dataclasses import dataclass

from ...jobs.spec import GenerationSpec, ModelSpec
from ...workers.engine import EngineSettings


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All that a worker is told when it starts; its assignments bring the rest.

    Attributes:
        engine: The model and how to run it.
        needed_bytes: Memory of one replica in bytes; a machine that has less is refused before the model is loaded.
        store_url: URL of the run's store, as in the spec.
        endpoint_url: URL of an S3-compatible server; None for the default of the store.
        rows_per_block: Rows of a row block in the run's arrays.
        mantissa_bits: Bits of each stored number's mantissa that are kept.
        model: The model, for a machine that does not have its files where the driver has them; None: every machine
            has them there.
        reads_given: Whether the texts are given, and read rather than generated.
        generation: The server that generates; None where the engine does, or nothing.
        served_model: What that server calls the model; empty without one.
        sentinel: Path of an object that the driver has written, in the store. A machine that does not see it is
            connected to another store. Empty: not checked.
        tokens_per_block: Rows of a row block in the arrays that keep every token; 0 when the run has none.
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
    sentinel: str = ""
    tokens_per_block: int = 0
