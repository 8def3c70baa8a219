"""The file that describes a submitted job: JSON in the job's working directory on the cluster. Holds no credentials."""

from __future__ import annotations

from pathlib import Path

from pydantic import Base64Bytes, BaseModel, ConfigDict

from ...jobs.specs.spec import JobSpec
from ...jobs.work.run_edits import RunEdits
from ...storage.format.stored_edits import StoredEdits, edits_of

JOB_FILE = "job.json"
CATALOG_FOLDER = "catalog"

NAMESPACE = "persona-atlas"
"""Ray namespace of this package's named actors."""


def driver_actor_name(job_id: str) -> str:
    """Name the Ray actor that drives a job.

    Example:
        >>> driver_actor_name("run-3f9a1c")
        'driver-run-3f9a1c'
    """
    return f"driver-{job_id}"


class SubmittedJob(BaseModel):
    """A job as its driver receives it.

    Attributes:
        job_id: Id of the job, the same as Ray's submission id.
        spec: The resolved spec: absolute paths, defaults filled in.
        version: Version of Persona Atlas that submitted it.
        python: Minor version of Python that submitted it, such as ``3.11``.
        ships_catalog: Whether the working directory holds a copy of the spec's catalog directory, named ``catalog``.
        chat_template: Text of the chat template that the spec names; None if it names none.
        driver_resource: Name of a Ray resource that the driver's node must have; empty: the head.
        grow: Whether the job may add to the run in its store.
        interventions: What the spec's ``interventions`` were resolved to, so that the cluster needs no axis; None where
            it has none, or where they could not be resolved on the machine that submits.
        edits: The table of these edits, as a store has it; empty where there are none.
    """

    model_config = ConfigDict(frozen=True)

    job_id: str
    spec: JobSpec
    version: str
    python: str
    ships_catalog: bool = False
    chat_template: str | None = None
    driver_resource: str = ""
    grow: bool = False
    interventions: StoredEdits | None = None
    edits: Base64Bytes = b""

    @property
    def run_edits(self) -> RunEdits | None:
        """The edits that were sent with the job; None where none were."""
        return None if self.interventions is None else edits_of(self.interventions, self.edits, JOB_FILE)

    def write(self, folder: Path) -> None:
        """Write the file into a folder, which becomes the job's working directory."""
        (folder / JOB_FILE).write_text(self.model_dump_json(indent=1))


def read_submitted_job() -> SubmittedJob:
    """Read the job that this process belongs to from its working directory."""
    return SubmittedJob.model_validate_json(Path(JOB_FILE).read_bytes())
