"""The current state of a job or a run, read from its store and from Ray. Reads only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from ...jobs.errors import AtlasError, InputError
from ...jobs.scheduling.job_state import JobEvidence, JobState, RayState, state_of
from ...jobs.specs.spec import JobSpec
from ...jobs.specs.store_spec import S3Access
from ...storage.format.lease_record import Lease
from ...storage.format.records import RunRecord
from ...storage.locations.location import Location, open_location
from ...storage.run.commits import committed_units
from ...storage.run.lease import LEASE_SECONDS, is_live, newest_lease
from ...storage.run.run_store import read_run_record
from ...storage.run.status import RunStatus, Stage, read_status
from .ray_cluster import RayJob

STATUS_IS_FRESH_S = 30.0
"""A running driver writes its status every few seconds; an older one is of a driver that died or hangs."""


@dataclass(frozen=True)
class JobView:
    """State of a job, or of a run that no job on a cluster belongs to.

    Attributes:
        job_id: Id of the job; empty for a run that was started by hand.
        url: Store of its run.
        state: State of the job.
        reason: Why it is in that state, in a few words.
        done: Number of committed units.
        planned: Number of units in the run; 0 before the run's record is written.
        driver: Lease of the driver that is running; None when none is.
        status: What the job's driver wrote into its status file last; None without such a file.
        ray: The job as Ray reports it; None when Ray was not asked.
        store_error: Why the store could not be read; empty when it could.
        heard_at: When the driver last renewed its lease or wrote its status, in seconds since the epoch; None when no
            driver is running.
    """

    job_id: str
    url: str
    state: JobState
    reason: str
    done: int
    planned: int
    driver: Lease | None
    status: RunStatus | None
    ray: RayJob | None
    store_error: str = ""
    heard_at: float | None = None

    def silent_s(self, now: float) -> float | None:
        """Return the seconds since the driver was last heard from; None when no driver is running.

        Args:
            now: Seconds since the epoch.
        """
        return None if self.heard_at is None else max(0.0, now - self.heard_at)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Progress of each stage; that of the rollouts is counted from commits, not taken from the status file."""
        rest = [stage for stage in (self.status.stages if self.status else ()) if stage.name != "rollouts"]
        return (Stage(name="rollouts", done=self.done, planned=self.planned), *rest)

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``status --json`` prints."""
        status = (
            self.status.model_dump(mode="json", by_alias=True, exclude={"job_id", "state", "stages"})
            if self.status
            else {}
        )
        driver = self.driver
        return status | {
            "job_id": self.job_id,
            "state": self.state,
            "why": self.reason,
            "store": self.url,
            "units_done": self.done,
            "units_planned": self.planned,
            "stages": [stage.model_dump() for stage in self.stages],
            "driver": {"host": driver.host, "pid": driver.pid} if driver else None,
            "driver_heard_at": self.heard_at,
            "ray_state": self.ray.state if self.ray else None,
            "ray_message": self.ray.message if self.ray else None,
            "trouble": self.store_error or None,
        }


def view_run(url: str, endpoint_url: str | None = None, access: S3Access | None = None) -> JobView:
    """Read the state of a run from its store alone, without asking any cluster.

    Args:
        url: Store of the run.
        endpoint_url: S3-compatible server of the store; None for AWS, a directory, or the one that botocore finds.
        access: How requests to a bucket are made.

    Raises:
        InputError: The store holds no run.
        TransientError: The store failed.
    """
    location = open_location(url, endpoint_url, access)
    record = read_run_record(location)
    lease = newest_lease(location)
    if record is None and lease is None:
        raise InputError(
            f"there is no run at {location.url}.", code="no_run", field="store.url", hint="Check the path."
        )
    return _view(lease.holder if lease else "", location, record, lease, None)


def view_job(job: RayJob) -> JobView:
    """Read the state of a job from its store and Ray, or from Ray alone when this machine cannot read the store."""
    try:
        location = open_location(job.run_url, job.endpoint_url, _access_of(job))
        return _view(job.job_id, location, read_run_record(location), newest_lease(location), job)
    except AtlasError as error:
        state, reason = state_of(JobEvidence(ray=job.state))
        return JobView(job.job_id, job.run_url, state, reason, 0, 0, None, None, job, store_error=str(error))


def _access_of(job: RayJob) -> S3Access | None:
    """Read from a job's spec how its bucket is accessed; None when another version wrote that spec."""
    try:
        return JobSpec.model_validate_json(job.spec).store.access
    except ValidationError:
        return None


def _view(
    job_id: str, location: Location, record: RunRecord | None, lease: Lease | None, ray: RayJob | None
) -> JobView:
    done = len(committed_units(location)) if record is not None else 0
    planned = record.num_units if record is not None else 0
    # The newest lease may be another job's, whose status says nothing about this one.
    is_own = lease is not None and lease.holder == job_id
    status = read_status(location, lease.generation) if lease is not None and is_own else None
    is_driven = lease is not None and is_own and is_live(lease)
    is_to_come = record is not None and ray is not None and _is_to_grow(record, ray, status)
    evidence = JobEvidence(
        done=done,
        # What a job is to add is not planned before its driver has written it; until then, nothing is complete.
        planned=0 if is_to_come else planned,
        is_driven=is_driven,
        reported_state=status.state if status else None,
        is_status_fresh=status is not None and time.time() - status.updated_at < STATUS_IS_FRESH_S,
        ray=ray.state if ray else None,
    )
    state, reason = state_of(evidence)
    driver = lease if is_driven and state is JobState.RUNNING else None
    heard_at = None
    if driver is not None:
        heard_at = max(driver.expires_at - LEASE_SECONDS, status.updated_at if status else 0.0)
    return JobView(job_id, location.url, state, reason, done, planned, driver, status, ray, heard_at=heard_at)


def _is_to_grow(record: RunRecord, ray: RayJob, status: RunStatus | None) -> bool:
    """Whether a job was to add to the run and has not done so: it waits, has just started, or failed before it did."""
    has_succeeded = ray.state is RayState.SUCCEEDED or (status is not None and status.state is JobState.SUCCEEDED)
    return ray.grows_from == record.plan_digest and not has_succeeded
