"""A driver's status: one small JSON object per driver, overwritten every few seconds, for people who watch a run.

No decision is based on it: committed units are read from the commit records, and who holds the run from the leases.
A driver that crashes leaves its last status with the time at which it was written.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from ...jobs.redaction import value_without_secrets
from ...jobs.scheduling.job_state import JobState
from ..format import layout
from ..locations.location import Location


def _stored_as(key: str, name: str) -> Any:
    """Keep a field's key in stored files, which clients of other versions read."""
    return Field(validation_alias=AliasChoices(key, name), serialization_alias=key)


class _StatusModel(BaseModel):
    # A client of another version than the driver's may read it, so fields that it does not know are ignored.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Stage(_StatusModel):
    """Progress of one stage of a job.

    Attributes:
        name: ``rollouts`` or ``reduction``.
        done: Committed units; for the reduction 1 when it is stored, else 0.
        planned: Planned units; 1 for the reduction.
    """

    name: str
    done: int
    planned: int


class WorkerStatus(_StatusModel):
    """State of one worker.

    Attributes:
        name: Name of the worker, such as ``worker-0``.
        node: Ray's id of its node; empty until it is scheduled.
        doing: ``waiting`` to be scheduled, ``loading`` the model, ``idle`` or ``working``.
        units: Ids of the units it works on.
        since: When it entered that state, in seconds since the epoch.
    """

    name: str
    node: str = ""
    doing: str
    units: tuple[str, ...] = ()
    since: float


class WaitStatus(_StatusModel):
    """Something outside the job that holds it up.

    Attributes:
        who: The worker that waits, ``the driver`` or ``the job``.
        reason: What it waits for, in a sentence.
        since: When that began, in seconds since the epoch.
    """

    who: str
    reason: str
    since: float


class UnitFailure(_StatusModel):
    """A unit whose last attempt failed.

    Attributes:
        unit_id: Id of the unit.
        attempts: Number of failed attempts.
        error: The last error, in one line.
        detail: Full text of the error with its traceback; empty except for the first failure in the list.
        is_given_up: Whether it is not retried any more.
    """

    unit_id: str
    attempts: int
    error: str
    detail: str = ""
    is_given_up: bool


class RunStatus(_StatusModel):
    """Status of a driver. Stored under the keys ``told_at`` and ``begun_at`` for ``updated_at`` and ``started_at``.

    Attributes:
        job_id: Id of the cluster job; empty for a driver that was started by hand.
        state: RUNNING, or the state in which the job ended.
        doing: ``starting``, ``loading``, ``working``, ``reducing`` or ``ended``.
        updated_at: When this status was made, in seconds since the epoch.
        started_at: When the driver started, in seconds since the epoch.
        stages: Progress of each stage.
        units_failed: Number of units that are not retried any more.
        units_in_flight: Number of units that were sent to a worker and are not finished.
        rollouts_per_second: Committed rollouts per second over the last minutes; None until it is measured.
        tokens_per_second: Response tokens per second over the last minutes; None until it is measured.
        rollouts_finished: Rollouts of committed units and, as workers last reported, those that are finished of the
            units in flight; None in the status of an earlier version.
        rollouts_planned: Rollouts of all units; None likewise.
        seconds_left: Estimated time until all rollouts are committed, in seconds; None until it is measured.
        workers: State of each worker.
        failures: Units whose last attempt failed.
        nodes_left_out: By node id, why a node gets no more work.
        error: The error that ended the job, in full; empty when none did.
        waits: What holds the job up now, and tried again.
    """

    job_id: str = ""
    state: JobState
    doing: str
    updated_at: float = _stored_as("told_at", "updated_at")
    started_at: float = _stored_as("begun_at", "started_at")
    stages: tuple[Stage, ...] = ()
    units_failed: int = 0
    units_in_flight: int = 0
    rollouts_per_second: float | None = None
    tokens_per_second: float | None = None
    rollouts_finished: int | None = None
    rollouts_planned: int | None = None
    seconds_left: float | None = None
    workers: tuple[WorkerStatus, ...] = ()
    failures: tuple[UnitFailure, ...] = ()
    nodes_left_out: dict[str, str] = {}
    error: str = ""
    waits: tuple[WaitStatus, ...] = ()


def write_status(location: Location, generation: int, status: RunStatus) -> None:
    """Write a driver's status over its previous one.

    Args:
        location: The run's store.
        generation: Number of the driver's lease.
        status: The new status.

    Raises:
        AtlasError: The store cannot be reached or written.
    """
    # Reasons and errors of libraries are in it, which may repeat a URL with a password.
    body = value_without_secrets(status.model_dump(mode="json", by_alias=True))
    location.write(layout.status_path(generation), (json.dumps(body, indent=1, ensure_ascii=False) + "\n").encode())


def read_status(location: Location, generation: int) -> RunStatus | None:
    """Read the status of the driver of one generation; None when there is none or it cannot be parsed."""
    data = location.read(layout.status_path(generation))
    try:
        return RunStatus.model_validate_json(data) if data is not None else None
    except ValidationError:
        return None
