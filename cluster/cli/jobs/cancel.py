"""``persona-atlas cancel``: end a job; what is committed stays."""

from __future__ import annotations

import time

import click

from ....jobs.errors import InputError, JobError
from ....jobs.scheduling.job_state import RayState
from ...submission.job_view import JobView, view_job
from ...submission.ray_cluster import Cluster
from .. import output
from ..options import address_option, json_option

_INSIST_AFTER_S = 8.0
"""A driver outlives the job that began it, if that was ended by force: then it is ended by another."""

_PATIENCE_S = 60.0


@click.command()
@click.argument("job_id", metavar="JOB")
@address_option
@json_option
def cancel(job_id: str, address: str | None, as_json: bool) -> None:
    """Cancel JOB: its workers go within seconds, what is committed stays, and resume does the rest."""
    cluster = Cluster(address)
    before = view_job(cluster.job(job_id))
    if before.state.is_final:
        raise InputError(
            f"job {job_id} is {before.state} already: {before.why}.",
            code="job_over",
            field="JOB",
            hint="Nothing is left to stop.",
        )
    cluster.stop(job_id)
    began = time.monotonic()
    must_insist = True
    while not (view := _ended(cluster, job_id)):
        if must_insist and time.monotonic() - began > _INSIST_AFTER_S:
            cluster.end_driver(job_id)
            must_insist = False
        if time.monotonic() - began > _PATIENCE_S:
            raise JobError(
                f"job {job_id} was told to stop and has not, after {_PATIENCE_S:.0f} s.",
                code="not_stopped",
                hint="Look at its logs; cancel again.",
            )
        time.sleep(0.3)
    if as_json:
        output.document(view.as_dict())
        return
    output.text(f"{job_id} is {view.state}: {view.done} of {view.planned} units are committed and stay.")


def _ended(cluster: Cluster, job_id: str) -> JobView | None:
    job = cluster.job(job_id)
    if job.state in (RayState.PENDING, RayState.RUNNING):
        return None
    view = view_job(job)
    return view if view.state.is_final else None
