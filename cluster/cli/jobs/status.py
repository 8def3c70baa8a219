"""``persona-atlas status``: where a job or a run is, once or until it ends."""

from __future__ import annotations

import time

import click

from ....jobs.scheduling.job_state import JobState
from ...run.progress import span
from ...submission.job_view import JobView, view_job, view_run
from ...submission.ray_cluster import Cluster
from .. import output
from ..options import address_option, endpoint_option, is_store, json_option

_EVERY_S = 2.0
_SHOWN = 3
"""Units of a worker, by name."""


@click.command()
@click.argument("target", metavar="JOB|STORE")
@click.option("--watch", is_flag=True, help="Go on until it has ended; a line whenever something changes.")
@address_option
@endpoint_option
@json_option
def status(target: str, watch: bool, address: str | None, endpoint_url: str | None, as_json: bool) -> int:
    """Say where JOB is, or the run at STORE (a directory or s3:// URL), which needs no cluster.

    Exit status: 0 when it is queued, running or has succeeded, 1 when it failed or was cancelled.
    """
    cluster = None if is_store(target) else Cluster(address)

    def look() -> JobView:
        return view_run(target, endpoint_url) if cluster is None else view_job(cluster.job(target))

    view = look()
    last = ""
    while watch and not view.state.is_final:
        line = _line(view)
        if line != last:
            output.progress().say(line)
            last = line
        time.sleep(_EVERY_S)
        view = look()
    if as_json:
        output.document(view.as_dict())
    else:
        _print(view)
    return 1 if view.state in (JobState.FAILED, JobState.CANCELLED) else 0


def _line(view: JobView) -> str:
    parts = [f"{view.state}: {view.done} of {view.planned} units" if view.planned else str(view.state)]
    status = view.status
    if status is not None and view.state is JobState.RUNNING:
        parts.append(status.doing)
        if status.units_failed:
            parts.append(f"{status.units_failed} failed")
        if status.rollouts_per_second:
            parts.append(f"{status.rollouts_per_second:.1f} rollouts/s")
        if status.seconds_left:
            parts.append(f"{span(status.seconds_left)} left")
        working = sum(worker.doing == "working" for worker in status.workers)
        parts.append(f"{working} of {len(status.workers)} workers at work")
    return ", ".join(parts)


def _print(view: JobView) -> None:
    status = view.status
    lines = [["state", f"{view.state}: {view.why}"]]
    lines += [
        [stage.name, f"{stage.done} of {stage.planned}{' units' if stage.name == 'rollouts' else ''}"]
        for stage in view.stages
        if stage.planned
    ]
    lines.append(["store", view.url])
    if view.driver is not None:
        lines.append(["driver", f"process {view.driver.pid} on {view.driver.host}"])
    if status is not None and view.state is JobState.RUNNING:
        lines.append(["doing", status.doing])
        lines.append(["in flight", f"{status.units_in_flight} units"])
        if status.rollouts_per_second:
            lines.append(
                ["pace", f"{status.rollouts_per_second:.1f} rollouts/s, {status.tokens_per_second or 0:.0f} tokens/s"]
            )
        if status.seconds_left:
            lines.append(["time left", span(status.seconds_left)])
    output.table(view.job_id or view.url, ["", ""], lines)
    if view.trouble:
        output.text(f"The store cannot be read from here: {view.trouble}")
    if status is not None:
        _print_details(view, status_is_live=view.state is JobState.RUNNING)
    if view.state is JobState.FAILED and view.ray is not None and (status is None or not status.error):
        output.text(view.ray.message.rstrip())


def _some(unit_ids: tuple[str, ...]) -> str:
    more = len(unit_ids) - _SHOWN
    return ", ".join(unit_ids[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _print_details(view: JobView, *, status_is_live: bool) -> None:
    status = view.status
    assert status is not None
    if status_is_live and status.workers:
        now = time.time()
        rows = [
            [
                worker.name,
                worker.node[:8],
                worker.doing,
                _some(worker.units),
                span(max(0.0, now - worker.since)),
            ]
            for worker in status.workers
        ]
        output.table("Workers", ["worker", "node", "doing", "units", "last news"], rows)
    if status.failures:
        rows = [
            [
                failure.unit_id,
                str(failure.attempts),
                "given up" if failure.is_given_up else "tried again",
                failure.error,
            ]
            for failure in status.failures
        ]
        output.table("Units that failed", ["unit", "attempts", "", "last error"], rows)
        detail = next((failure.detail for failure in status.failures if failure.detail), "")
        if detail:
            output.text(f"The first error:\n{detail.rstrip()}")
    for node, reason in status.nodes_left_out.items():
        output.text(f"Node {node[:8]} is left out: {reason.splitlines()[0]}")
    if status.error and not status_is_live and view.state is not JobState.SUCCEEDED:
        output.text(status.error)
