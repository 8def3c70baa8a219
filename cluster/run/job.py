"""Run the missing units of a prepared job: acquire the lease, start workers, drive, update the index."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version

from ...jobs.scheduling.ledger import Failure, Ledger, row_blocks_needed
from ...storage.format.planned_units import encode_units
from ...storage.format.records import Manifest, RunRecord
from ...storage.run.commits import commit_unit, committed_units, now_iso
from ...storage.run.index_keeper import IndexKeeper, refresh_index
from ...storage.run.lease import HeldLease, acquire, refuse_if_driven
from ...storage.run.run_store import begin_run, reserve_rows
from ..retry import with_retries
from .backend import Backend, OpenBackend
from .drive import drive
from .prepare import Job
from .progress import Progress
from .status_reporter import StatusReporter

_VERSIONED = ("persona-atlas", "torch", "transformers", "ray", "zarr", "numcodecs", "numpy")


@dataclass(frozen=True)
class Outcome:
    """How the units of a job ended.

    Attributes:
        planned: Number of units of the job.
        done: Number of units that are committed in the store.
        worked: Number of units that this driver committed.
        failures: Units that were given up, each with its last error.
    """

    planned: int
    done: int
    worked: int
    failures: tuple[Failure, ...]

    @property
    def is_complete(self) -> bool:
        """Whether every planned unit is committed."""
        return self.done == self.planned


def work_job(
    job: Job,
    progress: Progress,
    reporter: StatusReporter,
    open_backend: OpenBackend,
) -> Outcome:
    """Run the missing units of a job.

    Args:
        job: The prepared job.
        progress: Prints progress.
        reporter: Writes the driver's status, and raises when the job was asked to stop.
        open_backend: Opens what runs the workers: ``open_ray_backend``, ``open_local_backend``, or that of a test.

    Returns:
        How the units ended.

    Raises:
        InputError: There is no chat template, not enough memory or no such cluster, or another driver is working on the
            run.
        StoreError: The lease was lost, or a record is damaged.
        TransientError: The store failed, after retries.
        JobError: No worker could be started, or none is left.
        JobStoppedError: The job was asked to stop.
    """
    if not job.num_missing:
        if job.record is not None:
            refresh_index(job.location, job.record)
        return Outcome(len(job.plan.units), len(job.plan.units), 0, ())
    refuse_if_driven(job.location, reporter.job_id)
    with open_backend(job, progress) as backend:
        reporter.raise_if_stopped()
        with acquire(job.location, row_blocks_needed(job.plan, job.committed), reporter.job_id) as lease:
            reporter.attach(job.location, lease.generation)
            if not lease.is_exclusive:
                progress.say(
                    "Warning: this object store ignores conditional writes, so nothing here can keep a second driver "
                    "out. Start one at a time."
                )
            return _work_under_lease(job, lease, backend, progress, reporter)


def _work_under_lease(
    job: Job, lease: HeldLease, backend: Backend, progress: Progress, reporter: StatusReporter
) -> Outcome:
    """Start workers, create the run once a model is loaded, drive, and update the index."""
    executor = backend.make_executor(lease)
    reporter.set_phase("loading")
    # Takes seconds for a large plan, so it is done before workers are started and would wait.
    units = encode_units(job.plan.units)
    record = job.record or RunRecord.of(
        job.plan,
        units_sha256=sha256(units).hexdigest(),
        rendering=backend.rendering,
        versions={name: version(name) for name in _VERSIONED} | {"python": platform.python_version()},
        created_at=now_iso(),
    )
    try:
        executor.start(lambda: reporter.update_workers(executor))
        with_retries(lambda: begin_run(job.location, record, units), progress.say)
        with_retries(lambda: reserve_rows(job.location, record, lease.row_blocks.stop), progress.say)
        # Listed again, because another driver may have committed units after planning and before this lease.
        committed = with_retries(lambda: committed_units(job.location), progress.say)
        ledger = Ledger(job.plan, committed, iter(lease.row_blocks), job.estimate.rows_per_assignment)
        with IndexKeeper(job.location, record, progress.say, lease.generation) as keeper, progress.working():

            def commit(manifest: Manifest) -> None:
                keeper.add(commit_unit(job.location, lease, manifest))
                reporter.count_commit(manifest)

            reporter.set_phase("working")
            drive(ledger, executor, commit, progress, reporter.update)
    finally:
        executor.close()
    done = ledger.num_done
    failures = tuple(ledger.failed[unit_id] for unit_id in sorted(ledger.failed))
    return Outcome(len(job.plan.units), done, done - len(job.committed), failures)
