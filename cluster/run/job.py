"""One job on this machine or a cluster it can reach: plan, refuse or start, drive, bring the index up to date."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from ...jobs.errors import InputError
from ...jobs.plan import Plan, make_plan
from ...jobs.scheduling.ledger import Failure, Ledger, row_blocks_needed
from ...jobs.sizing.estimate import Estimate, batch_tokens, estimate, resolved_dtype
from ...jobs.sources.load import load_source
from ...jobs.spec import JobSpec
from ...storage.format.layout import driver_path
from ...storage.format.planned_units import encode_units
from ...storage.format.records import Manifest, RunRecord
from ...storage.locations.location import Location, open_location
from ...storage.run.commits import commit_unit, committed_units, now_iso
from ...storage.run.index_keeper import IndexKeeper, refresh_index
from ...storage.run.lease import HeldLease, acquire, refuse_if_driven
from ...storage.run.run_store import begin_run, check_same_run, read_run_record, reserve_rows
from ...workers.chat.renderer import ChatRenderer
from ...workers.chat.spans import load_renderer, require_within_context
from ...workers.chat.user_span import require_user_spans
from ...workers.engine import EngineSettings
from ...workers.models.memory import require_memory
from ...workers.models.model_files import find_model, read_facts
from ..pool.executor import Executor
from ..pool.session import Placement, local_resources, place, ray_session
from ..pool.worker_task import WorkerSettings
from ..retry import with_retries
from .drive import drive
from .progress import Progress
from .status_reporter import StatusReporter

_VERSIONED = ("persona-atlas", "torch", "transformers", "ray", "zarr", "numcodecs", "numpy")


@dataclass(frozen=True)
class Job:
    """A job that has been planned and not refused so far.

    Attributes:
        plan: Its units.
        estimate: What it takes.
        model_directory: The model's files on this machine.
        location: Its store.
        record: What the store holds already; None for a new run.
        committed: Units done before.
    """

    plan: Plan
    estimate: Estimate
    model_directory: Path
    location: Location
    record: RunRecord | None
    committed: frozenset[str]

    @property
    def num_missing(self) -> int:
        """Units that are still to do."""
        return len(set(self.plan.by_id) - self.committed)


@dataclass(frozen=True)
class Outcome:
    """How a start of a job ended.

    Attributes:
        planned: Units of the job.
        done: Units committed in the store.
        worked: Units this start committed.
        failures: Units given up, with the last error of each.
    """

    planned: int
    done: int
    worked: int
    failures: tuple[Failure, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.done == self.planned


def plan_job(spec: JobSpec, progress: Progress, catalog_directory: str | None = None) -> tuple[Plan, Path]:
    """Plan a spec against the model and the catalog or conversations it names; the store is not read.

    Args:
        spec: What to run.
        progress: Shows a line when something takes long.
        catalog_directory: Where the catalog lies on this machine, when that is not where the spec says.

    Raises:
        InputError: A persona, conversation, layer, model or file is wrong.
    """
    # First what costs nothing: a model may have to be fetched.
    source = load_source(spec, catalog_directory)
    directory = find_model(spec.model, progress.say)
    return make_plan(spec, source, read_facts(directory)), directory


def require_readable(plan: Plan, directory: Path, progress: Progress) -> None:
    """Render every conversation that exists once, so that a bad one is found before anything is spent.

    Where a pooling is over the user's message, its tokens are looked for too, in prompts as in conversations.

    Raises:
        InputError: The model's template refuses one or hides the user's words, or it is longer than the model's
            context.
    """
    needs_user_spans = plan.spec.capture.needs_user_spans
    if plan.source.generates and needs_user_spans:
        progress.say("Checking the prompts against the chat template.")
        requests = (request for unit in plan.units for request in plan.requests(unit).first(unit))
        require_user_spans(load_renderer(directory).user_spans(), requests)
    conversations = plan.source.conversations
    if not conversations:
        return
    progress.say(f"Checking {len(conversations):,} conversations against the chat template.")
    renderer = load_renderer(directory)
    user_spans = renderer.user_spans() if needs_user_spans else None
    for given in conversations:
        require_within_context(renderer.render(given), plan.facts.max_context)
        if user_spans is not None:
            user_spans.of_turns(given, list(given.turn_indices()))


def prepare_job(spec: JobSpec, progress: Progress, catalog_directory: str | None = None) -> Job:
    """Plan a spec and hold it against its store; nothing is written.

    Args:
        spec: What to run.
        progress: Shows a line when something takes long.
        catalog_directory: Where the catalog lies on this machine, when that is not where the spec says.

    Raises:
        InputError: The spec is wrong or asks for what cannot be run yet, or the store belongs to another run.
        StoreError: The store is damaged.
    """
    refuse_tensor_parallel(spec)
    location = open_location(spec.store.url, spec.store.endpoint_url)
    record = read_run_record(location)
    plan, directory = plan_job(spec, progress, catalog_directory)
    if record is not None:
        check_same_run(record, plan, location.url)
    else:
        require_readable(plan, directory, progress)
    committed = frozenset(committed_units(location)) if record is not None else frozenset()
    return Job(plan, estimate(plan), directory, location, record, committed)


def work_job(job: Job, progress: Progress, reporter: StatusReporter, address: str | None = None) -> Outcome:
    """Do what is missing of a job.

    Args:
        job: Prepared.
        progress: Shows how far it is.
        reporter: Keeps the job's status, and learns of a request to stop.
        address: Of a Ray cluster; None starts Ray on this machine.

    Returns:
        How it ended; units that failed three times are in it.

    Raises:
        InputError: No template, no room, no such cluster, or another driver works the run.
        TransientError: The store failed for good.
        JobError: No worker could be had.
        JobStoppedError: The job was asked to stop.
    """
    if not job.num_missing:
        if job.record is not None:
            refresh_index(job.location, job.record)
        return Outcome(len(job.plan.units), len(job.plan.units), 0, ())
    renderer = load_renderer(job.model_directory).renderer
    rendering = renderer.describe()
    if address is None:
        _refuse_what_cannot_fit(job)
        _refuse_without_server(job.plan.spec, renderer)
    refuse_if_driven(job.location, reporter.job_id)
    progress.say("Starting Ray on this machine." if address is None else f"Joining the Ray cluster at {address}.")
    with ray_session(address) as resources:
        placement = place(job.plan.spec.placement, resources, may_grow=address is not None)
        reporter.raise_if_stopped()
        with acquire(job.location, row_blocks_needed(job.plan, job.committed), reporter.job_id) as lease:
            reporter.open(job.location, lease.generation)
            if not lease.is_exclusive:
                progress.say(
                    "Warning: this object store ignores conditional writes, so nothing here can keep a second driver "
                    "out. Start one at a time."
                )
            return _work_under_lease(job, lease, placement, rendering, progress, reporter)


def _work_under_lease(
    job: Job,
    lease: HeldLease,
    placement: Placement,
    rendering: dict[str, object],
    progress: Progress,
    reporter: StatusReporter,
) -> Outcome:
    from ..pool.ray_executor import RayExecutor

    progress.say(
        f"Loading the model: {placement.replicas} replica(s) on {placement.device}, {placement.threads} thread(s) each."
    )
    executor = RayExecutor(
        _worker_settings(job, placement, driver_path(lease.generation)),
        placement,
        replicas=job.plan.spec.placement.replicas,
    )
    return work_units(job, lease, executor, rendering, progress, reporter)


def work_units(
    job: Job,
    lease: HeldLease,
    executor: Executor,
    rendering: dict[str, object],
    progress: Progress,
    reporter: StatusReporter,
) -> Outcome:
    """Load the models, begin the run once one is loaded, drive it, and bring the index up to date.

    Args:
        job: Prepared.
        lease: On its run.
        executor: Its workers, not started; closed when this returns.
        rendering: How prompts become tokens, for the run's record.
        progress: Shows how far it is.
        reporter: Keeps the job's status, and learns of a request to stop.

    Returns:
        How it ended.

    Raises:
        TransientError: The store failed for good.
        JobError: No worker could be had.
        JobStoppedError: The job was asked to stop.
    """
    reporter.doing("loading")
    # Seconds for a large plan: before there are workers to wait for it.
    units = encode_units(job.plan.units)
    record = job.record or RunRecord.of(
        job.plan,
        units_sha256=sha256(units).hexdigest(),
        rendering=rendering,
        versions={name: version(name) for name in _VERSIONED} | {"python": platform.python_version()},
        created_at=now_iso(),
    )
    try:
        executor.start(lambda: reporter.wait_for_workers(executor))
        with_retries(lambda: begin_run(job.location, record, units), progress.say)
        with_retries(lambda: reserve_rows(job.location, record, lease.row_blocks.stop), progress.say)
        # Read again: another driver may have worked between planning and this lease.
        committed = with_retries(lambda: committed_units(job.location), progress.say)
        ledger = Ledger(job.plan, committed, iter(lease.row_blocks), job.estimate.rows_per_assignment)
        with IndexKeeper(job.location, record, progress.say) as keeper, progress.working():

            def commit(manifest: Manifest) -> None:
                keeper.add(commit_unit(job.location, lease, manifest))
                reporter.count(manifest)

            reporter.doing("working")
            drive(ledger, executor, commit, progress, reporter.look)
    finally:
        executor.close()
    done = ledger.num_done
    failures = tuple(ledger.failed[unit_id] for unit_id in sorted(ledger.failed))
    return Outcome(len(job.plan.units), done, done - len(job.committed), failures)


def _worker_settings(job: Job, placement: Placement, sentinel: str) -> WorkerSettings:
    spec = job.plan.spec
    return WorkerSettings(
        engine=EngineSettings(
            directory=job.model_directory,
            dtype=resolved_dtype(spec.model.dtype, job.plan.facts.dtype),
            device=placement.device,
            threads=placement.threads,
            batch_tokens=batch_tokens(spec.placement),
            layers=job.plan.layers,
            sampling=spec.sampling,
            capture=spec.capture,
            token_layers=job.plan.token_layers,
        ),
        needed_bytes=job.estimate.machine_bytes if placement.device == "cpu" else job.estimate.replica_bytes,
        store_url=job.location.url,
        endpoint_url=job.location.endpoint_url,
        rows_per_block=job.plan.rows_per_block,
        mantissa_bits=spec.store.mantissa_bits,
        model=spec.model,
        reads_given=not job.plan.source.generates,
        generation=spec.generation,
        served_model=spec.served_model,
        sentinel=sentinel,
        tokens_per_block=job.plan.tokens_per_block,
    )


def refuse_tensor_parallel(spec: JobSpec) -> None:
    """Refuse replicas of several GPUs before the model is fetched, which may be 140 GB.

    Raises:
        InputError: The spec asks for one.
    """
    if spec.placement.tensor_parallel > 1:
        raise InputError(
            f"asks for {spec.placement.tensor_parallel} GPUs a replica; a run takes 1 so far. Planning, pricing and "
            "rendering such a job work.",
            code="not_yet",
            field="placement.tensor_parallel",
            hint="Run a model that fits one GPU, with --set placement.tensor_parallel=1.",
        )


def _refuse_without_server(spec: JobSpec, renderer: ChatRenderer) -> None:
    """Where the workers run on this machine, check the server that is to generate before Ray is started."""
    if spec.generation is None:
        return
    # The client is imported only where a server is used.
    from ...workers.responders.endpoint import check_endpoint

    check_endpoint(spec.generation, spec.served_model, renderer)


def _refuse_what_cannot_fit(job: Job) -> None:
    """On this machine, before Ray is started: room for the replicas, and on the CPU memory for all of them."""
    placement = place(job.plan.spec.placement, local_resources())
    if placement.device == "cpu":
        require_memory(job.estimate.machine_bytes, placement.replicas, "cpu")
