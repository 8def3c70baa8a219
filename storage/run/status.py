"""What a driver says of how it goes: one small object in the store, written over every few seconds.

News and never the truth: what is committed and who holds the run is read from the commits and the leases. A driver
that dies leaves its last words here, and the time it said them.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError

from ...jobs.scheduling.job_state import JobState
from ..format import layout
from ..locations.location import Location


class _News(BaseModel):
    # Read by other versions than the one that wrote it: what they do not know they pass over.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Stage(_News):
    """A stage of the job and how far it is.

    Attributes:
        name: ``rollouts`` or ``reduction``.
        done: Units, or for the reduction 1 when it is stored.
        planned: Of how many.
    """

    name: str
    done: int
    planned: int


class WorkerStatus(_News):
    """What one worker is doing.

    Attributes:
        name: Who.
        node: Id of its node; empty until it has a place.
        doing: ``waiting`` for a place, ``loading``, ``idle`` or ``working``.
        units: What it works on.
        since: Seconds since the epoch.
    """

    name: str
    node: str = ""
    doing: str
    units: tuple[str, ...] = ()
    since: float


class UnitFailure(_News):
    """A unit that failed, so far or for good.

    Attributes:
        unit_id: Which.
        attempts: How often.
        error: One line of the last.
        detail: All that is known; kept in full for the first failure alone.
        is_given_up: Whether it is not tried again.
    """

    unit_id: str
    attempts: int
    error: str
    detail: str = ""
    is_given_up: bool


class RunStatus(_News):
    """How a driver's work goes.

    Attributes:
        job_id: Of the job on a cluster; empty for a driver that was started by hand.
        state: RUNNING, or how it ended.
        doing: ``starting``, ``loading``, ``working``, ``reducing`` or ``ended``.
        told_at: Seconds since the epoch.
        begun_at: Likewise.
        stages: How far each stage is.
        units_failed: Given up.
        units_in_flight: Handed out and not answered.
        rollouts_per_second: Committed, over the last minutes; None before there is a measure.
        tokens_per_second: Of responses, likewise.
        seconds_left: Estimated for the rollouts; None before there is a measure.
        workers: What each does.
        failures: The units that failed.
        nodes_left_out: Nodes that get no more work, with the reason.
        error: What ended it, in full; empty when nothing did.
    """

    job_id: str = ""
    state: JobState
    doing: str
    told_at: float
    begun_at: float
    stages: tuple[Stage, ...] = ()
    units_failed: int = 0
    units_in_flight: int = 0
    rollouts_per_second: float | None = None
    tokens_per_second: float | None = None
    seconds_left: float | None = None
    workers: tuple[WorkerStatus, ...] = ()
    failures: tuple[UnitFailure, ...] = ()
    nodes_left_out: dict[str, str] = {}
    error: str = ""


def write_status(location: Location, generation: int, status: RunStatus) -> None:
    """Write a driver's news over its last.

    Raises:
        AtlasError: The store failed.
    """
    location.write(layout.status_path(generation), (status.model_dump_json(indent=1) + "\n").encode())


def read_status(location: Location, generation: int) -> RunStatus | None:
    """Read the news of the driver of one generation; None when there is none that can be read."""
    data = location.read(layout.status_path(generation))
    try:
        return RunStatus.model_validate_json(data) if data is not None else None
    except ValidationError:
        return None
