"""``persona-atlas cancel``: stop a job; committed units are kept."""

from __future__ import annotations

import time

import click

from ....jobs.errors import InputError, JobError
from ....jobs.scheduling.job_state import RayState
from ...submission.job_view import JobView, view_job
from ...submission.ray_cluster import Cluster
from .. import output
from ..options import address_option, json_option

_STOP_DRIVER_AFTER_S = 8.0
"""If the entrypoint was killed, it cannot stop its driver, which is detached; after this time another job stops it."""

_TIMEOUT_S = 60.0


@click.command()
@click.argument("job_id", metavar="JOB")
@address_option
@json_option
def cancel(job_id: str, address: str | None, as_json: bool) -> None:
    """Stop JOB and free its workers within seconds. Committed units are kept, and resume does the rest."""
    cluster = Cluster(address)
    before = view_job(cluster.job(job_id))
    if before.state.is_final:
        raise InputError(
            f"job {job_id} is already {before.state}: {before.reason}.",
            code="job_over",
            field="JOB",
            hint="Only a queued or running job can be cancelled.",
        )
    cluster.stop(job_id)
    started = time.monotonic()
    may_stop_driver = True
    while not (view := _ended(cluster, job_id)):
        if may_stop_driver and time.monotonic() - started > _STOP_DRIVER_AFTER_S:
            cluster.stop_driver(job_id)
            may_stop_driver = False
        if time.monotonic() - started > _TIMEOUT_S:
            raise JobError(
                f"job {job_id} was asked to stop and has not stopped within {_TIMEOUT_S:.0f} s.",
                code="not_stopped",
                hint=f"See persona-atlas logs {job_id}, and cancel again.",
            )
        time.sleep(0.3)
    if as_json:
        output.document(view.as_dict())
        return
    output.text(f"{job_id} is {view.state}; {view.done} of {view.planned} units are committed and kept.")


def _ended(cluster: Cluster, job_id: str) -> JobView | None:
    job = cluster.job(job_id)
    if job.state in (RayState.PENDING, RayState.RUNNING):
        return None
    view = view_job(job)
    return view if view.state.is_final else None
