"""The state of a job, derived from evidence: commits, lease, the driver's status file, and Ray's job status.

A pure function of its input. The store takes precedence over Ray: a run whose units are all committed has succeeded
whatever became of its Ray job, a driver that keeps renewing its lease is running whatever Ray reports, and where the
lease is released or has expired none is running whatever its last status file reports. Ray's status decides for jobs
that have not reached the store yet, or were stopped.
Knows neither Ray nor the store nor the clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class JobState(StrEnum):
    """The state of a job as users see it."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def is_final(self) -> bool:
        """Whether the state does not change unless the run is resumed.

        Example:
            >>> JobState.RUNNING.is_final, JobState.CANCELLED.is_final
            (False, True)
        """
        return self not in (JobState.QUEUED, JobState.RUNNING)


class RayState(StrEnum):
    """Status of a submitted job, by Ray's own names."""

    PENDING = "PENDING"
    RUNNING = "RUNNING"
    STOPPED = "STOPPED"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class JobEvidence:
    """What the store and Ray show about a job.

    Attributes:
        done: Number of committed units.
        planned: Number of units in the run; 0 before the run's record is written.
        is_driven: Whether a driver of this job holds a lease that has not expired.
        reported_state: State in the driver's status file: RUNNING, or how the job ended; None without such a file.
        is_status_fresh: Whether the status file was written within the last seconds.
        ray: Ray's status of the job; None when Ray was not asked or does not know the job.
    """

    done: int = 0
    planned: int = 0
    is_driven: bool = False
    reported_state: JobState | None = None
    is_status_fresh: bool = False
    ray: RayState | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every unit of the run is committed."""
        return 0 < self.planned <= self.done


def state_of(evidence: JobEvidence) -> tuple[JobState, str]:
    """Derive the state of a job, with the reason in a few words.

    Example:
        >>> state_of(JobEvidence(done=3, planned=9, is_driven=True))
        (<JobState.RUNNING: 'RUNNING'>, 'its driver is running')
        >>> state_of(JobEvidence(done=3, planned=9, ray=RayState.STOPPED))
        (<JobState.CANCELLED: 'CANCELLED'>, 'it was stopped')
    """
    if _is_running(evidence):
        return JobState.RUNNING, "its driver is running"
    if evidence.is_complete:
        return JobState.SUCCEEDED, "every unit is committed"
    if evidence.ray is RayState.STOPPED:
        return JobState.CANCELLED, "it was stopped"
    reported = evidence.reported_state
    if reported is JobState.SUCCEEDED:
        return JobState.FAILED, "its driver succeeded, but units have gone missing since"
    if reported is not None and reported.is_final:
        return reported, "its driver ended"
    if evidence.ray is RayState.PENDING:
        return JobState.QUEUED, "it is waiting for the cluster"
    if evidence.ray is RayState.RUNNING:
        return JobState.RUNNING, "it has started"
    if evidence.ray is not None:
        return JobState.FAILED, "it ended with units missing"
    if reported is not None or evidence.planned:
        return JobState.FAILED, "no driver is running and units are missing"
    return JobState.QUEUED, "nothing is known about it yet"


def _is_running(evidence: JobEvidence) -> bool:
    if evidence.reported_state is not None and evidence.reported_state.is_final:
        # The final status is the last thing a driver writes; it releases its lease a moment later.
        return False
    # A driver holds its lease to the end, its reduction included: without a lease, its last status is of the past.
    # One that was killed cannot release it, so a live lease alone proves nothing once Ray has stopped the job; a driver
    # that survived that keeps its status fresh.
    return evidence.is_driven and (evidence.is_status_fresh or evidence.ray is not RayState.STOPPED)
