"""``persona-atlas resume``: submit a job or run again, to do its missing units."""

from __future__ import annotations

from typing import Any

import click

from ....jobs.specs.store_spec import S3Access
from ...submission.cluster_fit import SubmitOptions
from ...submission.ray_cluster import Cluster
from ...submission.resumed_spec import spec_of_job, spec_of_store
from ...submission.submit import submit_job
from .. import output
from ..options import access_options, address_option, code_options, endpoint_option, grow_option, is_store, json_option
from .submit import print_submitted


@click.command()
@click.argument("target", metavar="JOB|STORE")
@address_option
@code_options
@endpoint_option
@click.option(
    "--send-key-to",
    "receiver",
    default=None,
    metavar="HOST:PORT",
    help="The server of generation.endpoint, if the spec sends it a key (generation.api_key_env).",
)
@access_options
@grow_option
@json_option
def resume(
    target: str,
    address: str | None,
    endpoint_url: str | None,
    access: S3Access,
    receiver: str | None,
    grow: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Submit JOB again, or the run at STORE when its cluster is gone. Only missing units are done.

    The spec is that of the job, or that of the run with all its additions. Others may have written it, so a server
    that generates gets a key only if --send-key-to names it. A job that was to add to a run, and has not done so yet,
    needs --grow again.
    """
    template, edits = None, None
    if is_store(target):
        spec, template, edits = spec_of_store(target, endpoint_url, access, receiver)
        cluster = Cluster(address)
    else:
        cluster = Cluster(address)
        spec = spec_of_job(cluster.job(target), receiver)
    job_id = submit_job(spec, cluster, SubmitOptions(**options), output.progress(), template, grow=grow, edits=edits)
    print_submitted(job_id, cluster, as_json=as_json)
