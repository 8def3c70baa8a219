"""The backend of a job, which runs its workers: Ray actors, for the duration of the job, and their settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from ...jobs.engines import Engine
from ...jobs.sizing.estimate import Estimate, batch_tokens, estimate, resolved_dtype
from ...jobs.specs.spec import JobSpec
from ...jobs.wording import count_of
from ...storage.format.layout import driver_path
from ...storage.locations.s3_server import resolved_access
from ...storage.run.lease import HeldLease
from ...workers.chat.renderer import ChatRenderer
from ...workers.chat.spans import load_renderer
from ...workers.engine import EngineSettings
from ..pool.dialogues import DialogueSettings
from ..pool.executor import Executor
from ..pool.placement import Placement, place
from ..pool.session import local_resources, ray_session
from ..pool.vllm_nodes import vllm_here, vllm_on_cluster
from ..pool.worker_settings import WorkerSettings
from .engine_choice import ENGINE_NAMES, engine_for
from .held_weights import HeldWeights, described_weights, weights_asked, weights_here
from .prepare import Job
from .progress import Progress
from .rendering import RENDERING_RULES


@dataclass(frozen=True)
class Backend:
    """What runs the workers of a job; no worker is started yet.

    Attributes:
        rendering: How prompts become tokens, for the run's record.
        make_executor: Makes the executor. Called when the lease is held, because workers check for the lease's object
            in the store (the sentinel).
        engine: The engine of all workers, for the run's record.
    """

    rendering: dict[str, object]
    make_executor: Callable[[HeldLease], Executor]
    engine: Engine = "builtin"


OpenBackend = Callable[[Job, Progress], AbstractContextManager[Backend]]
"""Opens a backend for the duration of a job, or refuses the job; see :func:`open_ray_backend`."""


@contextmanager
def open_ray_backend(job: Job, progress: Progress, address: str | None = None) -> Iterator[Backend]:
    """Connect to Ray for the duration of a job, and refuse a job that cannot run there.

    Args:
        job: The prepared job.
        progress: Prints a line before each step that takes long.
        address: Address of a Ray cluster; None starts Ray on this machine.

    Yields:
        A backend whose workers are Ray actors.

    Raises:
        InputError: There is no chat template, not enough memory or no such cluster, no engine can run the job there, or
            the server that generates does not serve the model.
    """
    # Ray is imported only if there are units to do.
    from ..pool.ray_executor import RayExecutor

    renderer = load_renderer(job.model_directory, job.chat_template).renderer
    rendering = rendering_of(job, renderer)
    engine: Engine | None = None
    settled: HeldWeights | None = None
    if address is None:
        engine, settled = _refuse_what_cannot_run(job, progress)
    # On a cluster the workers check the server, which need not be reachable from here.
    rendering |= describe_server(job.plan.spec, renderer, is_checked=address is None)
    progress.say("Starting Ray on this machine." if address is None else f"Joining the Ray cluster at {address}.")
    with ray_session(address) as resources:
        placement = place(job.plan.spec.placement, resources, may_grow=address is not None)
        runs = engine or engine_for(job.plan, placement, lambda: vllm_on_cluster(placement), progress)
        weights = settled or weights_asked(job, runs)

        def make_executor(lease: HeldLease) -> Executor:
            progress.say(f"Loading the model: {_described(placement, runs)}{described_weights(job, weights)}.")
            settings = worker_settings(job, placement, driver_path(lease.generation), runs, weights)
            return RayExecutor(settings, placement, replicas=job.plan.spec.placement.replicas)

        yield Backend(rendering, make_executor, runs)


def _described(placement: Placement, engine: Engine) -> str:
    """Describe the replicas for people."""
    threads = f"{count_of(placement.threads, 'thread')} each"
    if placement.node_decides:
        threads = "with the threads that each node has cores for"
    device = placement.device if placement.num_gpus < 2 else f"{placement.num_gpus} GPUs each"
    if placement.num_nodes > 1:
        parts = count_of(placement.num_gpus, "GPU") if placement.num_gpus else placement.device
        device = f"{placement.num_nodes} nodes each, with {parts} of every node"
    return f"{count_of(placement.replicas, 'replica')} on {device}, {threads}, {ENGINE_NAMES[engine]}"


def worker_settings(
    job: Job,
    placement: Placement,
    sentinel: str,
    engine: Engine = "builtin",
    weights: HeldWeights | None = None,
) -> WorkerSettings:
    """Make the settings of all workers of a job.

    Args:
        job: The prepared job.
        placement: Device and threads of each worker.
        sentinel: Path of an object that the driver has written and workers check for.
        engine: The engine of every worker.
        weights: How its weights are held; None: as the spec says.
    """
    spec = job.plan.spec
    weights = weights or weights_asked(job, engine)
    figures = job.estimate if job.estimate.engine == engine else estimate(job.plan, engine)
    return WorkerSettings(
        engine=EngineSettings(
            directory=job.model_directory,
            dtype=resolved_dtype(spec.model.dtype, job.plan.facts.dtype),
            device=placement.device,
            threads=placement.threads,
            # On a GPU the built-in engine fills the memory, of which only the worker knows how much there is.
            batch_tokens=spec.placement.batch_tokens
            if engine == "builtin" and placement.device == "cuda"
            else batch_tokens(spec.placement, engine, placement.device),
            layers=job.plan.layers,
            sampling=spec.sampling,
            capture=spec.capture,
            token_layers=job.plan.token_layers,
            chat_template=job.chat_template,
            tensor_parallel=spec.placement.tensor_parallel,
            pipeline_parallel=spec.placement.pipeline_parallel,
            edited_layers=() if job.plan.edits is None else job.plan.edits.intervention.layers,
            kept_turns=figures.turns.share,
        ),
        needed_bytes=_bytes_on(placement, job.estimate) // placement.num_nodes,
        store_url=job.location.url,
        endpoint_url=job.location.endpoint_url,
        rows_per_block=job.plan.rows_per_block,
        mantissa_bits=spec.store.mantissa_bits,
        model=spec.model,
        reads_given=not job.plan.source.generates,
        reads_stored=spec.reads_stored_tokens,
        generation=spec.generation,
        served_model=spec.served_model,
        sentinel=sentinel,
        tokens_per_block=job.plan.tokens_per_block,
        canary=spec.capture.canary,
        placement=placement if placement.node_decides or weights == "auto" else None,
        access=resolved_access(spec.store),
        engine_name=engine,
        num_nodes=placement.num_nodes,
        intervention=None if job.plan.edits is None else job.plan.edits.intervention,
        dialogues=_dialogues(job, figures.turns.user_share),
        weights=weights,
        streamed_bytes=0 if weights == "resident" else _bytes_on(placement, estimate(job.plan, "builtin", "streamed")),
        walk_tokens=spec.placement.batch_tokens,
    )


def _bytes_on(placement: Placement, figures: Estimate) -> int:
    """Return the bytes of memory that one replica needs where it is placed."""
    return figures.machine_bytes if placement.device == "cpu" else figures.replica_bytes


def _dialogues(job: Job, kept_turns: float) -> DialogueSettings | None:
    """Say what workers need for dialogues; None where the job has none."""
    spec, facts = job.plan.spec, job.plan.facts
    if not spec.has_turns or not job.plan.source.generates:
        return None
    return DialogueSettings(
        facts.d_model, facts.max_context, None if spec.drift is None else spec.drift.user, kept_turns
    )


def rendering_of(job: Job, renderer: ChatRenderer) -> dict[str, object]:
    """Describe for the run's record how its texts become tokens.

    Args:
        job: The prepared job.
        renderer: Renders prompts for its model.
    """
    described: dict[str, object] = renderer.describe() | {"rules": RENDERING_RULES, "rows": job.rows_concerned}
    asked = job.plan.spec.conversations
    if asked is not None and asked.texts_of is not None:
        described |= {"texts_of": asked.texts_of, "texts_rendering": asked.rendering}
    return described if job.chat_template is None else described | {"chat_template": job.chat_template}


def describe_server(spec: JobSpec, renderer: ChatRenderer, *, is_checked: bool) -> dict[str, object]:
    """Check the server that generates, if any, before a model is loaded or Ray is started, and describe it.

    Args:
        spec: The job.
        renderer: Renders prompts for its model.
        is_checked: Whether to ask the server; if not, what it does not take is only known to the commit records.

    Returns:
        ``server_requests``, for the run's record; empty where no server generates.

    Raises:
        InputError: The server does not answer or does not serve the model.
    """
    if spec.generation is None:
        return {}
    # The HTTP client is imported only if a server generates.
    from ...workers.responders.endpoint import check_endpoint, describe_requests

    left_out = check_endpoint(spec.generation, spec.served_model, renderer) if is_checked else None
    return {"server_requests": describe_requests(spec.sampling, left_out)}


def _refuse_what_cannot_run(job: Job, progress: Progress) -> tuple[Engine, HeldWeights]:
    """Check, before Ray is started on this machine, that it has cores, GPUs and memory for all replicas, and an engine.

    Returns:
        The engine, and how the replicas hold their weights.
    """
    placement = place(job.plan.spec.placement, local_resources())
    engine = engine_for(job.plan, placement, lambda: vllm_here(placement), progress)
    return engine, weights_here(job, engine, placement)
