"""Load a model to judge with, in this process, on the built-in engine."""

from __future__ import annotations

from ...jobs.errors import InputError
from ...jobs.sizing.estimate import BYTES_PER_PARAMETER, HEADROOM, batch_tokens, resolved_dtype
from ...jobs.specs.spec_parts import CaptureSpec, ModelSpec, PlacementSpec, SamplingSpec
from ...workers.engine import EngineSettings
from ...workers.judging.engine_judge import EngineJudge
from ...workers.models.model_files import find_model, read_facts
from ..pool.assemble import load_engine
from ..pool.placement import place
from ..pool.session import local_resources
from ..pool.worker_settings import WorkerSettings
from ..run.progress import Progress


def load_judge(source: str, max_tokens: int, progress: Progress) -> EngineJudge:
    """Load a model that judges in this process.

    Args:
        source: A Hugging Face id, a local directory, or ``package://module/file.gguf``.
        max_tokens: Most tokens of a reply.
        progress: Prints a line before something that takes long.

    Raises:
        InputError: There is no such model, it cannot be run, or it does not fit the memory.
    """
    model = ModelSpec(source=source)
    try:
        directory = find_model(model, progress.say)
    except InputError as error:
        # Where the model of a spec is judged, that is another.
        error.field = "--model"
        raise
    facts = read_facts(directory)
    dtype = resolved_dtype(model.dtype, facts.dtype)
    placement = place(PlacementSpec(replicas=1), local_resources())
    engine = EngineSettings(
        directory=directory,
        dtype=dtype,
        device=placement.device,
        threads=placement.threads,
        batch_tokens=batch_tokens(PlacementSpec()),
        # An engine captures something; the mean at the first layer is the least, and is dropped.
        layers=(0,),
        sampling=SamplingSpec(temperature=0, top_p=1, max_new_tokens=max_tokens),
        capture=CaptureSpec(layers=[0]),
    )
    needed_bytes = int(HEADROOM * facts.num_parameters * BYTES_PER_PARAMETER[dtype])
    progress.say(f"Loading {source} in this process: {placement.device}.")
    settings = WorkerSettings(engine, needed_bytes, "", None, rows_per_block=1, mantissa_bits=10)
    return EngineJudge(load_engine(settings, lambda _: None))
