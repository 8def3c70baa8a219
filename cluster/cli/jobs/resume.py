"""``persona-atlas resume``: submit a job or run again, to do its missing units."""

from __future__ import annotations

from typing import Any

import click

from ....jobs.spec import JobSpec
from ....storage.query.run import open_run
from ...submission.ray_cluster import Cluster
from ...submission.submit import SubmitOptions, submit_job
from .. import output
from ..options import address_option, code_options, endpoint_option, is_store, json_option
from .submit import print_submitted


@click.command()
@click.argument("target", metavar="JOB|STORE")
@address_option
@code_options
@endpoint_option
@json_option
def resume(target: str, address: str | None, endpoint_url: str | None, as_json: bool, **options: Any) -> None:
    """Submit JOB again, or the run at STORE when its cluster is gone. Only missing units are done.

    The spec is that of the job, or that of the run's first start.
    """
    cluster = Cluster(address)
    template: str | None = None
    if is_store(target):
        run = open_run(target, endpoint_url)
        # The store may have been moved or copied since the run was started.
        store = run.record.spec.store.model_copy(update={"url": run.url, "endpoint_url": run.location.endpoint_url})
        spec = run.record.spec.model_copy(update={"store": store})
        template = run.record.rendering.get("chat_template")
    else:
        spec = JobSpec.model_validate_json(cluster.job(target).spec)
    job_id = submit_job(spec, cluster, SubmitOptions(**options), output.progress(), template)
    print_submitted(job_id, cluster, as_json=as_json)
