"""``persona-atlas logs``: print the log of a job."""

from __future__ import annotations

import sys

import click

from ...submission.ray_cluster import Cluster
from ..options import address_option


@click.command()
@click.argument("job_id", metavar="JOB")
@click.option("--follow", "-f", is_flag=True, help="Keep printing until the job ends.")
@address_option
def logs(job_id: str, follow: bool, address: str | None) -> None:
    """Print the log of JOB."""
    cluster = Cluster(address)
    cluster.job(job_id)
    if not follow:
        sys.stdout.write(cluster.logs(job_id))
        return
    for piece in cluster.follow(job_id):
        sys.stdout.write(piece)
        sys.stdout.flush()
