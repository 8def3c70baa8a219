"""``persona-atlas resume``: submit a job or run again, to do its missing units."""

from __future__ import annotations

import json
from typing import Any

import click

from ....jobs.spec import JobSpec
from ....jobs.store_spec import S3Access
from ....jobs.yaml_file import validate
from ....storage.query.run import open_run
from ...submission.ray_cluster import Cluster
from ...submission.submit import SubmitOptions, submit_job
from .. import output
from ..options import access_options, address_option, code_options, endpoint_option, is_store, json_option
from .submit import print_submitted


@click.command()
@click.argument("target", metavar="JOB|STORE")
@address_option
@code_options
@endpoint_option
@access_options
@json_option
def resume(
    target: str, address: str | None, endpoint_url: str | None, access: S3Access, as_json: bool, **options: Any
) -> None:
    """Submit JOB again, or the run at STORE when its cluster is gone. Only missing units are done.

    The spec is that of the job, or that of the run's first start.
    """
    cluster = Cluster(address)
    if is_store(target):
        run = open_run(target, endpoint_url, access)
        # The store may have been moved or copied since the run was started.
        spec = run.record.spec.replaced(
            store={"url": run.url, "endpoint_url": run.location.endpoint_url, **access.model_dump()}
        )
    else:
        spec = validate(JobSpec, json.loads(cluster.job(target).spec), text="", file=f"job {target}")
    print_submitted(submit_job(spec, cluster, SubmitOptions(**options), output.progress()), cluster, as_json=as_json)
