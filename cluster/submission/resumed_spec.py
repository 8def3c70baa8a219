"""The spec of a run or a job that is resumed. Others may have written it: it sends no key without the user's word."""

from __future__ import annotations

from pydantic import ValidationError

from ...jobs.errors import InputError
from ...jobs.specs.endpoint_keys import from_store, refuse_keys, with_receiver
from ...jobs.specs.spec import JobSpec
from ...jobs.specs.store_spec import S3Access
from ...jobs.work.run_edits import RunEdits
from ...storage.query.run import open_run
from ...storage.run.run_store import read_edits
from .ray_cluster import RayJob


def spec_of_store(
    url: str, endpoint_url: str | None, access: S3Access, receiver: str | None
) -> tuple[JobSpec, str | None, RunEdits | None]:
    """Return the spec of a run with all its additions, naming the store where it is now, and what the run has kept.

    Args:
        url: Directory or URL of the store, which may have been moved or copied.
        endpoint_url: URL of its S3-compatible server; None: that of the environment.
        access: How requests to its bucket are made.
        receiver: Server to which the user lets the spec send a key, see ``with_receiver``; None for none.

    Returns:
        The spec; the text of the chat template that it names, as the run has kept it; and the edits that its
        interventions were resolved to. None if it names or has none.

    Raises:
        InputError: There is no run, or its spec sends a key without the user's word.
        StoreError: The run's record or the table of its edits is damaged.
    """
    run = open_run(url, endpoint_url, access)
    store = {"url": run.url, "endpoint_url": run.location.endpoint_url, **access.model_dump()}
    spec = _confirmed(run.record.spec, receiver).replaced(store=store)
    return spec, run.record.rendering.get("chat_template"), read_edits(run.location, run.record)


def spec_of_job(job: RayJob, receiver: str | None) -> JobSpec:
    """Return the spec of a submitted job from its metadata.

    Args:
        job: The job.
        receiver: Server to which the user lets the spec send a key, see ``with_receiver``; None for none.

    Raises:
        InputError: The metadata hold no spec that this version reads, or it sends a key without the user's word.
    """
    try:
        spec = JobSpec.model_validate_json(job.spec)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise InputError(
            f"the metadata of job {job.job_id} hold no spec that this version reads: {problem['msg']}.",
            code="bad_job",
            field="JOB",
            hint="Resume the run by its store, or submit its spec file again.",
        ) from None
    return _confirmed(from_store(spec), receiver)


def _confirmed(spec: JobSpec, receiver: str | None) -> JobSpec:
    spec = with_receiver(spec, receiver)
    refuse_keys(spec)
    return spec
