"""What is known of a job or a run, put together from Ray's word and the store's. Asks both, changes neither."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from ...jobs.errors import AtlasError, InputError
from ...jobs.scheduling.job_state import Facts, JobState, state_of
from ...storage.format.records import Lease, RunRecord
from ...storage.locations.location import Location, open_location
from ...storage.run.commits import committed_units
from ...storage.run.lease import is_live, newest_lease
from ...storage.run.run_store import read_run_record
from ...storage.run.status import RunStatus, Stage, read_status
from .ray_cluster import RayJob

NEWS_IS_FRESH_S = 30.0


@dataclass(frozen=True)
class JobView:
    """A job, or a run without a job, as it stands.

    Attributes:
        job_id: Empty for a run that was started by hand.
        url: Of its run.
        state: Where it is.
        why: Why that is thought.
        done: Units committed.
        planned: Units of the run; 0 when it has not begun.
        driver: The lease of the driver that is at work; None when none is.
        status: What the job's driver said last.
        ray: What Ray knows; None when it was not asked.
        trouble: Why the store could not be read; empty when it could.
    """

    job_id: str
    url: str
    state: JobState
    why: str
    done: int
    planned: int
    driver: Lease | None
    status: RunStatus | None
    ray: RayJob | None
    trouble: str = ""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """How far each stage is; of the rollouts the commits tell, which are the truth."""
        rest = [stage for stage in (self.status.stages if self.status else ()) if stage.name != "rollouts"]
        return (Stage(name="rollouts", done=self.done, planned=self.planned), *rest)

    def as_dict(self) -> dict[str, Any]:
        """Give it as plain data, for ``--json``."""
        status = (
            self.status.model_dump(mode="json", by_alias=True, exclude={"job_id", "state", "stages"})
            if self.status
            else {}
        )
        driver = self.driver
        return status | {
            "job_id": self.job_id,
            "state": self.state,
            "why": self.why,
            "store": self.url,
            "units_done": self.done,
            "units_planned": self.planned,
            "stages": [stage.model_dump() for stage in self.stages],
            "driver": {"host": driver.host, "pid": driver.pid} if driver else None,
            "ray_state": self.ray.state if self.ray else None,
            "ray_message": self.ray.message if self.ray else None,
            "trouble": self.trouble or None,
        }


def view_run(url: str, endpoint_url: str | None = None) -> JobView:
    """Look at a run through its store alone, as when the cluster is gone.

    Raises:
        InputError: There is no run.
        TransientError: The store failed.
    """
    location = open_location(url, endpoint_url)
    record = read_run_record(location)
    lease = newest_lease(location)
    if record is None and lease is None:
        raise InputError(
            f"there is no run at {location.url}.", code="no_run", field="store.url", hint="Check the path."
        )
    return _view(lease.holder if lease else "", location, record, lease, None)


def view_job(job: RayJob) -> JobView:
    """Look at a job of a cluster; a store that cannot be read from here leaves Ray's word."""
    try:
        location = open_location(job.run_url, job.endpoint_url)
        return _view(job.job_id, location, read_run_record(location), newest_lease(location), job)
    except AtlasError as error:
        state, why = state_of(Facts(ray=job.state))
        return JobView(job.job_id, job.run_url, state, why, 0, 0, None, None, job, trouble=str(error))


def _view(
    job_id: str, location: Location, record: RunRecord | None, lease: Lease | None, ray: RayJob | None
) -> JobView:
    done = len(committed_units(location)) if record is not None else 0
    planned = record.num_units if record is not None else 0
    # The newest driver may be another job's: then there is no news of this one.
    is_own = lease is not None and lease.holder == job_id
    status = read_status(location, lease.generation) if lease is not None and is_own else None
    is_driven = lease is not None and is_own and is_live(lease)
    facts = Facts(
        done=done,
        planned=planned,
        is_driven=is_driven,
        told=status.state if status else None,
        is_status_fresh=status is not None and time.time() - status.updated_at < NEWS_IS_FRESH_S,
        ray=ray.state if ray else None,
    )
    state, why = state_of(facts)
    driver = lease if is_driven and state is JobState.RUNNING else None
    return JobView(job_id, location.url, state, why, done, planned, driver, status, ray)
