"""The state of a job, from what is known of it. Pure: facts in, a state and its reason out.

The store is the truth where it speaks: a run that is whole has succeeded whatever became of its job, and a driver that
renews its lease runs whatever Ray says. Ray is believed about jobs that have not reached the store, or were stopped.
Knows neither Ray nor the store nor the clock.
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
        """Whether it stays so until somebody resumes the run."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


class RayState(StrEnum):
    """What Ray says of a submitted job, in Ray's words."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a job.

    Attributes:
        done: Units committed.
        planned: Units of the run; 0 when it has not begun.
        is_driven: Whether a driver of this job holds a lease that has not run out.
        told: What its driver said last: RUNNING, or how it ended; None when it has said nothing.
        is_news_fresh: Whether the driver said that within the last moments.
        ray: What Ray says; None when there is no Ray to ask, or it does not know the job.
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
    """Say where a job is, and why that is thought.

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
        # It says so last of all, and the lease goes back in the next moment.
        return False
    if facts.is_driven:
        # A driver that was stopped by force cannot give its lease back; one that works on says so.
        return facts.is_status_fresh or facts.ray is not RayState.STOPPED
    # Reducing needs no lease.
    return facts.told is JobState.RUNNING and facts.is_status_fresh
