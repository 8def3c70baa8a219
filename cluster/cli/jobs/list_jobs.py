"""``persona-atlas list``: list the jobs of a cluster."""

from __future__ import annotations

from datetime import datetime

import click

from ....jobs.wording import count_of
from ...submission.job_view import JobView, view_job
from ...submission.ray_cluster import Cluster
from .. import output
from ..options import address_option, json_option


@click.command("list")
@address_option
@json_option
def list_jobs(address: str | None, as_json: bool) -> None:
    """List the jobs that were submitted to a cluster, the newest first, with state and number of committed units."""
    views = [view_job(job) for job in Cluster(address).jobs()]
    if as_json:
        output.document({"jobs": [_as_dict(view) for view in views]})
        return
    lines = [[view.job_id, view.state, _units(view), _when(view), view.url] for view in views]
    output.table(count_of(len(views), "job"), ["job", "state", "units", "submitted", "store"], lines, keep_first=True)


def _units(view: JobView) -> str:
    return f"{view.done} of {view.planned}" if view.planned else ""


def _when(view: JobView) -> str:
    return datetime.fromtimestamp(view.ray.submitted_at).isoformat(" ", "seconds") if view.ray else ""


def _as_dict(view: JobView) -> dict[str, object]:
    return {
        "job_id": view.job_id,
        "state": view.state,
        "units_done": view.done,
        "units_planned": view.planned,
        "store": view.url,
        "submitted_at": view.ray.submitted_at if view.ray else None,
    }
