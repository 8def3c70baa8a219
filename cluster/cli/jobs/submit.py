"""``persona-atlas submit``: submit a job to a cluster without waiting for it."""

from __future__ import annotations

from typing import Any

import click

from ....jobs.specs.spec import load_spec
from ...submission.cluster_fit import SubmitOptions
from ...submission.ray_cluster import Cluster
from ...submission.submit import submit_job
from .. import output
from ..options import address_option, code_options, grow_option, json_option, set_option, spec_argument


@click.command()
@spec_argument
@set_option
@grow_option
@address_option
@code_options
@json_option
def submit(
    spec_file: str, overrides: tuple[str, ...], grow: bool, address: str | None, as_json: bool, **options: Any
) -> None:
    """Submit the job in SPEC to a cluster and print its id. The job does not depend on this machine after that.

    Submitting the same spec again does the missing units only. With --grow the job adds to the run in its store.
    """
    spec = load_spec(spec_file, overrides)
    cluster = Cluster(address)
    job_id = submit_job(spec, cluster, SubmitOptions(**options), output.progress(), grow=grow)
    print_submitted(job_id, cluster, as_json=as_json)


def print_submitted(job_id: str, cluster: Cluster, *, as_json: bool) -> None:
    """Print the id of a submitted job on stdout, and how to watch it on stderr."""
    if as_json:
        output.document({"job_id": job_id, "address": cluster.address})
        return
    output.text(job_id)
    output.progress().say(
        f"Submitted. Watch it with: persona-atlas status {job_id} --watch --address {cluster.address}"
    )
