"""The state of a job, derived from what is known of it. Pure: facts in, a state and its reason out.

The store decides where it has an answer: a run that is complete has succeeded whatever became of its job, and a driver
that renews its lease is running whatever Ray reports. Ray decides about jobs that have not reached the store, and about
jobs that were stopped. Knows neither Ray nor the store nor the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """Where a job is."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether the state stays until somebody resumes the run."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class RayState(StrEnum):
    """What Ray reports of a submitted job, in Ray's terms."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a job.

    Attributes:
        done: Number of committed units.
        planned: Number of units of the run; 0 when it has not begun.
        is_driven: Whether a driver of this job holds a lease that has not expired.
        told: The state in the driver's last status: RUNNING, or how it ended; None when it has written none.
        is_status_fresh: Whether that status was written within the last moments.
        ray: What Ray reports; None when there is no Ray to ask, or it does not know the job.
    """

    done: int = 0
    planned: int = 0
    is_driven: bool = False
    told: JobState | None = None
    is_status_fresh: bool = False
    ray: RayState | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every unit of the run is committed."""
        return 0 < self.planned <= self.done


def state_of(facts: Facts) -> tuple[JobState, str]:
    """Derive the state of a job, and the reason for it.

    Example:
        >>> state_of(Facts(done=3, planned=9, is_driven=True))[0]
        <JobState.RUNNING: 'RUNNING'>
    """
    if _is_at_work(facts):
        return JobState.RUNNING, "its driver is at work"
    if facts.is_whole:
        return JobState.SUCCEEDED, "every unit is committed"
    if facts.ray is RayState.STOPPED:
        return JobState.CANCELLED, "it was stopped"
    if facts.told is JobState.SUCCEEDED:
        return JobState.FAILED, "its driver ended well, and units are missing since"
    if facts.told is not None and facts.told.is_final:
        return facts.told, "its driver ended"
    if facts.ray is RayState.PENDING:
        return JobState.QUEUED, "it waits for the cluster"
    if facts.ray is RayState.RUNNING:
        return JobState.RUNNING, "it has begun"
    if facts.ray is not None:
        return JobState.FAILED, "it ended and units are missing"
    if facts.told is not None or facts.planned:
        return JobState.FAILED, "no driver is at work and units are missing"
    return JobState.QUEUED, "nothing is known of it yet"


def _is_at_work(facts: Facts) -> bool:
    if facts.told is not None and facts.told.is_final:
        # That is the last status a driver writes; its lease is released a moment later.
        return False
    if facts.is_driven:
        # A driver that was killed cannot release its lease; one that is alive keeps its status fresh.
        return facts.is_status_fresh or facts.ray is not RayState.STOPPED
    # A reduction is running: it needs no lease.
    return facts.told is JobState.RUNNING and facts.is_status_fresh
