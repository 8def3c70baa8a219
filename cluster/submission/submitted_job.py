"""What is sent to a cluster for a job: plain JSON in the job's working directory. Holds no credentials."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from ...jobs.spec import JobSpec

JOB_FILE = "job.json"
CATALOG_FOLDER = "catalog"

NAMESPACE = "persona-atlas"
"""Of the names of our actors on a cluster."""


def driver_actor_name(job_id: str) -> str:
    """Name of a job's driver among Ray's actors."""
    return f"driver-{job_id}"


class SubmittedJob(BaseModel):
    """A job, as its driver is told.

    Attributes:
        job_id: Ours, and Ray's submission id.
        spec: Resolved: paths are absolute, defaults filled in.
        version: Of Persona Atlas where it was submitted.
        python: Likewise, as ``3.11``.
        ships_catalog: Whether the catalog's directory came along, as ``catalog``.
        driver_resource: Name of a Ray resource that the driver's node must have; empty: the head, if it can be had.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    spec: JobSpec
    version: str
    python: str
    ships_catalog: bool = False
    driver_resource: str = ""

    def write(self, folder: Path) -> None:
        """Write it where the job will find it."""
        (folder / JOB_FILE).write_text(self.model_dump_json(indent=1))


def read_submitted_job() -> SubmittedJob:
    """Read the order of the job that this process belongs to."""
    return SubmittedJob.model_validate_json(Path(JOB_FILE).read_bytes())
