"""``persona-atlas status``: print the state of a job or run, once or until it ends."""

from __future__ import annotations

import time

import click

from ....jobs.scheduling.job_state import JobState
from ....jobs.specs.store_spec import S3Access
from ....jobs.wording import count_of
from ....storage.run.status import RunStatus
from ...run.progress import span
from ...submission.job_view import STATUS_IS_FRESH_S, JobView, view_job, view_run
from ...submission.ray_cluster import Cluster
from .. import output
from ..options import address_option, endpoint_option, is_store, json_option, reading_access_options

_POLL_S = 2.0
_SILENT_S = 10.0
"""A driver writes its status every few seconds; one that is silent for longer is mentioned."""

_HOW_TO_GO_ON = "Committed units are kept: the same command as before, or persona-atlas resume, does the rest."

_MAX_UNITS = 3
"""How many units of a worker are named."""


@click.command()
@click.argument("target", metavar="JOB|STORE")
@click.option("--watch", is_flag=True, help="Print a line whenever something changes, until the job ends.")
@address_option
@endpoint_option
@reading_access_options
@json_option
def status(
    target: str, watch: bool, address: str | None, endpoint_url: str | None, access: S3Access, as_json: bool
) -> int:
    """Print the state of JOB, or of the run at STORE (a directory or s3:// URL), which needs no cluster.

    Exit status: 0 if queued, running or succeeded, 1 if failed or cancelled.
    """
    cluster = None if is_store(target) else Cluster(address)

    def read_view() -> JobView:
        return view_run(target, endpoint_url, access) if cluster is None else view_job(cluster.job(target))

    view = read_view()
    last = ""
    while watch and not view.state.is_final:
        line = _line(view)
        if line != last:
            output.progress().say(line)
            last = line
        time.sleep(_POLL_S)
        view = read_view()
    if as_json:
        output.document(view.as_dict())
    else:
        _print(view)
    return 1 if view.state in (JobState.FAILED, JobState.CANCELLED) else 0


def _is_fresh(status: RunStatus) -> bool:
    """Whether a driver's status is recent enough for its pace to be of the present."""
    return time.time() - status.updated_at < STATUS_IS_FRESH_S


def _line(view: JobView) -> str:
    status = view.status
    rollouts = _rollouts(view)
    parts = [f"{view.state}: {view.done} of {view.planned} units{rollouts}" if view.planned else str(view.state)]
    if status is not None and view.state is JobState.RUNNING:
        parts.append(status.doing)
        if status.units_failed:
            parts.append(f"{status.units_failed} failed")
        if status.rollouts_per_second:
            parts.append(f"{status.rollouts_per_second:.1f} rollouts/s")
        if status.waits:
            parts.append(f"held up: {status.waits[0].who}: {status.waits[0].reason}")
        if status.seconds_left and _is_fresh(status):
            parts.append(f"{span(status.seconds_left)} left")
        silent_s = view.silent_s(time.time())
        if silent_s is not None and silent_s > _SILENT_S:
            # A node that died is noticed by its cluster after some time, and the driver may have been on it.
            parts.append(f"last heard from {span(silent_s)} ago")
        busy = sum(worker.doing == "working" for worker in status.workers)
        parts.append(f"{busy} of {len(status.workers)} workers busy")
    return ", ".join(parts)


def _rollouts(view: JobView) -> str:
    """Say how many rollouts are finished, while units are that take long; empty for what is not running."""
    status = view.status
    if status is None or view.state is not JobState.RUNNING or not status.rollouts_planned:
        return ""
    return f", {status.rollouts_finished or 0:,} of {status.rollouts_planned:,} rollouts"


def _print(view: JobView) -> None:
    status = view.status
    lines = [["state", f"{view.state}: {view.reason}"]]
    lines += [
        [
            stage.name,
            f"{stage.done} of {stage.planned}" + (f" units{_rollouts(view)}" if stage.name == "rollouts" else ""),
        ]
        for stage in view.stages
        if stage.planned
    ]
    lines.append(["store", view.url])
    if view.driver is not None:
        lines.append(["driver", f"process {view.driver.pid} on {view.driver.host}"])
    silent_s = view.silent_s(time.time())
    if silent_s is not None:
        lines.append(["last heard from", f"{span(silent_s)} ago"])
    if status is not None and view.state is JobState.RUNNING:
        lines.append(["phase", status.doing])
        lines.append(["in flight", count_of(status.units_in_flight, "unit")])
        lines += [
            ["held up", f"{wait.who}, for {span(max(0.0, time.time() - wait.since))}: {wait.reason}"]
            for wait in status.waits
        ]
        is_fresh = _is_fresh(status)
        if not is_fresh:
            lines.append(["no news", "its node or its store may be out of reach, or the disk full"])
        if is_fresh and status.rollouts_per_second:
            lines.append(
                ["pace", f"{status.rollouts_per_second:.1f} rollouts/s, {status.tokens_per_second or 0:.0f} tokens/s"]
            )
        if is_fresh and status.seconds_left:
            lines.append(["time left", span(status.seconds_left)])
    output.table(view.job_id or view.url, ["", ""], lines)
    if view.store_error:
        output.text(f"This machine cannot read the store: {view.store_error}")
    if status is not None:
        _print_details(view, status_is_live=view.state is JobState.RUNNING)
    if view.state is JobState.FAILED and view.ray is not None and (status is None or not status.error):
        output.text(view.ray.message.rstrip())


def _shortened(unit_ids: tuple[str, ...]) -> str:
    more = len(unit_ids) - _MAX_UNITS
    return ", ".join(unit_ids[:_MAX_UNITS]) + (f" and {more} more" if more > 0 else "")


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
                _shortened(worker.units),
                span(max(0.0, now - worker.since)),
            ]
            for worker in status.workers
        ]
        output.table("Workers", ["worker", "node", "state", "units", "last change"], rows)
    if status.failures:
        rows = [
            [
                failure.unit_id,
                str(failure.attempts),
                "given up" if failure.is_given_up else "to be retried" if status_is_live else "not done",
                failure.error,
            ]
            for failure in status.failures
        ]
        output.table("Units that failed", ["unit", "attempts", "state", "last error"], rows)
        detail = next((failure.detail for failure in status.failures if failure.detail), "")
        if detail:
            output.text(f"The first error:\n{detail.rstrip()}")
    for node, reason in status.nodes_left_out.items():
        output.text(f"Node {node[:8]} is excluded: {reason.splitlines()[0]}")
    if status.error and not status_is_live and view.state is not JobState.SUCCEEDED:
        # That a job was cancelled is its state already.
        is_cancelled = view.state is JobState.CANCELLED
        output.text(_HOW_TO_GO_ON if is_cancelled else status.error)
