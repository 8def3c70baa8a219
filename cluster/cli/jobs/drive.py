"""``persona-atlas drive``: the entrypoint of a submitted job. Hidden, because only the cluster runs it."""

from __future__ import annotations

import click

from ....jobs.version import __version__


@click.command(hidden=True)
def drive() -> int:
    """Start the driver of the job in this directory and follow it to its end."""
    from ...submission.follow import follow
    from ...submission.submitted_job import read_submitted_job

    return follow(read_submitted_job(), __version__)
