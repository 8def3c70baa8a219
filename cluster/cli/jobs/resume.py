"""``persona-atlas resume``: do what is missing of a job or a run, under a new driver."""

from __future__ import annotations

from typing import Any

import click

from ....jobs.spec import JobSpec
from ....storage.query.run import open_run
from ...submission.ray_cluster import Cluster
from ...submission.submit import SubmitOptions, submit_job
from .. import output
from ..options import address_option, code_options, endpoint_option, is_store, json_option
from .submit import tell


@click.command()
@click.argument("target", metavar="JOB|STORE")
@address_option
@code_options
@endpoint_option
@json_option
def resume(target: str, address: str | None, endpoint_url: str | None, as_json: bool, **options: Any) -> None:
    """Submit JOB again, or the run at STORE when its cluster is gone: what is missing is done, nothing else.

    The spec is the one that was submitted, or that the run was begun with.
    """
    cluster = Cluster(address)
    if is_store(target):
        run = open_run(target, endpoint_url)
        # Where it lies now, which may not be where it was begun.
        store = run.record.spec.store.model_copy(update={"url": run.url, "endpoint_url": run.location.endpoint_url})
        spec = run.record.spec.model_copy(update={"store": store})
    else:
        spec = JobSpec.model_validate_json(cluster.job(target).spec)
    tell(submit_job(spec, cluster, SubmitOptions(**options), output.progress()), cluster, as_json=as_json)
