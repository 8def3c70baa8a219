"""Run the missing units of a prepared job: acquire the lease, start workers, drive, update the index."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version

from ...jobs.engines import Engine
from ...jobs.errors import StoreError
from ...jobs.scheduling.ledger import Failure, Ledger, row_blocks_needed
from ...jobs.sizing.estimate import estimate
from ...jobs.sizing.streaming import planned_weights
from ...jobs.work.rollouts import Canary
from ...storage.format.planned_units import encode_units
from ...storage.format.records import Manifest, RunRecord
from ...storage.format.stored_edits import stored_edits
from ...storage.run.additions import add_to_run
from ...storage.run.commits import commit_unit, committed_units, now_iso
from ...storage.run.index_keeper import IndexKeeper, refresh_index
from ...storage.run.lease import HeldLease, acquire, refuse_if_driven
from ...storage.run.run_store import begin_run, reserve_rows, write_skipped
from ...workers.vllm.versions import installed_version
from ..pool.executor import Executor
from ..retry import with_retries
from .backend import Backend, OpenBackend
from .drive import drive
from .growth import Growth
from .prepare import Job
from .progress import Progress
from .status_reporter import StatusReporter, is_stop

_VERSIONED = ("persona-atlas", "torch", "transformers", "ray", "zarr", "numcodecs", "numpy")


@dataclass(frozen=True)
class Outcome:
    """How the units of a job ended.

    Attributes:
        planned: Number of units of the job.
        done: Number of units that are committed in the store.
        worked: Number of units that this driver committed.
        failures: Units that were given up, each with its last error.
        canary_rollouts: Number of rollouts of the ``worked`` units that were compared with a plain forward pass.
        worst_relative_error: Largest relative error of these; None when none was compared.
        canaries_above: How many of them were above the limit and kept with a warning (``capture.canary.action``).
    """

    planned: int
    done: int
    worked: int
    failures: tuple[Failure, ...]
    canary_rollouts: int = 0
    worst_relative_error: float | None = None
    canaries_above: int = 0

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.done == self.planned


@contextmanager
def worked_job(
    job: Job,
    progress: Progress,
    reporter: StatusReporter,
    open_backend: OpenBackend,
) -> Iterator[Outcome]:
    """Run the missing units of a job, and hold the lease until the ``with`` block ends.

    The workers are gone in the block. What belongs to the job and needs none, such as the reduction, is done there, so
    that a run without a live lease never has a driver at work.

    Args:
        job: The prepared job.
        progress: Prints progress.
        reporter: Writes the driver's status, and raises when the job was asked to stop.
        open_backend: Opens what runs the workers: ``open_ray_backend``, ``open_local_backend``, or that of a test.

    Yields:
        How the units ended.

    Raises:
        InputError: There is no chat template, not enough memory or no such cluster, or another driver is working on the
            run.
        StoreError: The lease was lost, a record is damaged, or commit records were withdrawn at the same time.
        TransientError: The store failed, after retries.
        JobError: No worker could be started, or none is left.
        JobStoppedError: The job was asked to stop.
    """
    if not job.num_missing:
        if job.record is not None:
            refresh_index(job.location, job.record)
        yield Outcome(len(job.plan.units), len(job.plan.units), 0, ())
        return
    refuse_if_driven(job.location, reporter.job_id)
    with ExitStack() as held:
        with open_backend(job, progress) as backend:
            reporter.raise_if_stopped()
            blocks = row_blocks_needed(job.plan, job.committed)
            lease = held.enter_context(acquire(job.location, blocks, reporter.job_id))
            reporter.attach(job.location, lease.generation)
            if not lease.is_exclusive:
                progress.say(
                    "Warning: this object store ignores conditional writes, so nothing here can keep a second driver "
                    "out. Start one at a time."
                )
            outcome = _work_under_lease(job, lease, backend, progress, reporter)
        yield outcome


def work_job(job: Job, progress: Progress, reporter: StatusReporter, open_backend: OpenBackend) -> Outcome:
    """Run the missing units of a job and release the lease; see :func:`worked_job`.

    Args:
        job: The prepared job.
        progress: Prints progress.
        reporter: Writes the driver's status.
        open_backend: Opens what runs the workers.

    Returns:
        How the units ended.
    """
    with worked_job(job, progress, reporter, open_backend) as outcome:
        return outcome


def _work_under_lease(
    job: Job, lease: HeldLease, backend: Backend, progress: Progress, reporter: StatusReporter
) -> Outcome:
    """Start workers, create the run once a model is loaded, drive, and update the index."""
    executor = backend.make_executor(lease)
    reporter.set_phase("loading")
    # Takes seconds for a large plan, so it is done before workers are started and would wait.
    units = encode_units(job.plan.units if job.growth is None else job.growth.added.units)
    interventions, edits = (None, None) if job.plan.edits is None else stored_edits(job.plan.edits)
    try:

        def while_starting() -> None:
            reporter.update_workers(executor)
            progress.show_waits(reporter.waits)

        executor.start(while_starting)
        if executor.passes:
            progress.say(executor.passes)
        record = job.record or RunRecord.of(
            job.plan,
            units_sha256=sha256(units).hexdigest(),
            rendering=backend.rendering,
            passes=executor.passes,
            versions=_versions(backend.engine),
            created_at=now_iso(),
            engine=backend.engine,
            interventions=interventions,
        )
        if skipped := job.plan.source.skipped:
            lines = [problem.as_dict() for problem in skipped]
            with_retries(lambda: write_skipped(job.location, lines), progress.say)
        with_retries(lambda: begin_run(job.location, record, units, edits), progress.say)
        if job.growth is not None:
            record = _grow(job, job.growth, record, units, backend.engine, lease, progress)
        with_retries(lambda: reserve_rows(job.location, record, lease.row_blocks.stop), progress.say)
        # Listed again, because another driver may have committed units after planning and before this lease.
        committed = with_retries(lambda: committed_units(job.location), progress.say)
        if row_blocks_needed(job.plan, committed) > len(lease.row_blocks):
            raise StoreError(
                "commit records were taken out of the run while this job was starting.",
                code="units_withdrawn",
                file=job.location.url,
                hint="Start it again.",
            )
        figures = estimate(job.plan, backend.engine, planned_weights(job.plan))
        ledger = Ledger(job.plan, committed, iter(lease.row_blocks), figures.rows_per_assignment)
        done_before = ledger.num_done
        # Appended to by several threads.
        canaries: list[Canary] = []
        with IndexKeeper(job.location, record, progress.say, lease.generation) as keeper, progress.working():

            def commit(manifest: Manifest) -> None:
                record_of_unit = commit_unit(job.location, lease, manifest)
                keeper.add(record_of_unit)
                reporter.count_commit(manifest)
                canary = record_of_unit.manifest.canary
                if canary is not None:
                    canaries.append(canary)

            def on_turn(ledger: Ledger, executor: Executor) -> None:
                reporter.update(ledger, executor)
                progress.rollouts(ledger, reporter.rollouts_finished)
                progress.show_waits(reporter.waits)

            reporter.set_phase("working")
            drive(ledger, executor, commit, progress, on_turn, reporter.require_store)
    except BaseException as error:
        if is_stop(error):
            # Stopping the workers takes a while, and a status must not say meanwhile that they work.
            reporter.end_by(error)
        raise
    finally:
        executor.close()
    done = ledger.num_done
    failures = tuple(ledger.failed[unit_id] for unit_id in sorted(ledger.failed))
    return Outcome(
        len(job.plan.units),
        done,
        done - done_before,
        failures,
        sum(canary.num_rollouts for canary in canaries),
        max((canary.worst_relative_error for canary in canaries), default=None),
        sum(canary.num_above for canary in canaries),
    )


def _grow(
    job: Job, growth: Growth, record: RunRecord, units: bytes, engine: Engine, lease: HeldLease, progress: Progress
) -> RunRecord:
    """Add to the run what the job adds, and return the run's record since."""
    addition = growth.record(
        units_sha256=sha256(units).hexdigest(),
        rows=job.rows_concerned,
        versions=_versions(engine),
        created_at=now_iso(),
    )
    lease.check()
    with_retries(lambda: add_to_run(job.location, record, addition, units), progress.say)
    return record.grown([addition])


def _versions(engine: Engine) -> dict[str, str]:
    found = {name: version(name) for name in _VERSIONED} | {"python": platform.python_version()}
    # The driver's machine may lack vLLM; the commit records have the version of each worker.
    vllm = installed_version() if engine == "vllm" else None
    return found if vllm is None else found | {"vllm": vllm}
