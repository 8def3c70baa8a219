"""The entrypoint of a submitted job: start its driver, print the driver's log, exit with the driver's status.

When Ray stops the entrypoint, it stops the driver. When the entrypoint dies, the driver continues without it.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import time
from contextlib import redirect_stdout
from types import FrameType
from typing import Any

from ...jobs.errors import InputError, JobError, error_lines
from ..pool.ray_environment import prepare_ray_environment, worker_environment
from ..ray_text import PlainStream, one_line
from .driver_actor import DriverActor, DriverReport
from .submitted_job import NAMESPACE, SubmittedJob, driver_actor_name

_POLL_S = 0.5
_SILENCE_S = 15.0
"""A driver that does not answer for so long is mentioned in the log: Ray is probably restarting it."""

_HEAD_RESOURCE = "node:__internal_head__"
"""A resource that Ray gives the head node and no other."""

_STOP_S = 2.5
"""Ray kills an entrypoint three seconds after the signal to stop."""


class _Stopped(BaseException):
    """Ray sent SIGTERM."""


def follow(job: SubmittedJob, version: str) -> int:
    """Start a job's driver, or find the one that is running, and follow it to its end.

    Args:
        job: The job.
        version: Version of Persona Atlas on this cluster.

    Returns:
        The exit status of the job; 130 when it was stopped.

    Raises:
        InputError: The cluster runs another version of Persona Atlas or Python than the machine that submitted.
        JobError: The driver died and Ray does not restart it.
    """
    refuse_other_versions(job, version)
    prepare_ray_environment()
    # What Ray itself logs in this process would be in the job's log.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    driver: Any = None
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        # Set after ray.init, whose own handler would end this process without stopping the driver.
        signal.signal(signal.SIGTERM, _raise_stopped)
        driver = _driver(job)
        # Ray reports lost nodes and workers with a print.
        with redirect_stdout(PlainStream(sys.stdout)):
            return _print_until_end(ray, driver)
    except _Stopped:
        print("Stopping.", file=sys.stderr, flush=True)  # noqa: T201
        if driver is not None:
            _stop(ray, driver)
        return 130


def refuse_other_versions(job: SubmittedJob, version: str) -> None:
    """Refuse a job that was submitted from another version of Persona Atlas or Python.

    Args:
        job: The job, with the versions it was submitted from.
        version: Version of Persona Atlas on this cluster.

    Raises:
        InputError: A version differs; names both.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    if job.version != version:
        raise InputError(
            f"the job was submitted by Persona Atlas {job.version}, but the cluster has {version}.",
            code="other_version",
            hint="Submit with --code ship, which sends the package along, or with an --image of that version.",
        )
    if job.python != python:
        raise InputError(
            f"the job was submitted from Python {job.python}, but the cluster has {python}.",
            code="other_python",
            hint=f"Submit from Python {python}, or use an image with {job.python}.",
        )


def _raise_stopped(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _Stopped


def _driver(job: SubmittedJob) -> Any:
    import ray

    options: dict[str, Any] = {
        "name": driver_actor_name(job.job_id),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        # Calls to a driver that is being restarted wait for it instead of failing.
        "max_task_retries": -1,
        "max_concurrency": 4,
        # The driver must fit on a cluster whose cores are all taken by workers.
        "num_cpus": 0,
        # Worker nodes come and go; the head stays for as long as the cluster does. It must be asked for by a resource:
        # Ray places an actor that needs none on any node, whatever node it is told to prefer.
        "resources": {job.driver_resource or _HEAD_RESOURCE: 0.001},
        # Its workers inherit it.
        "runtime_env": worker_environment(),
    }
    actor_class: Any = ray.remote(DriverActor)
    return actor_class.options(**options).remote(job)


def _print_until_end(ray: Any, driver: Any) -> int:
    report = DriverReport("", (), 0)
    while True:
        report = _next_report(ray, driver, report)
        for line in report.lines:
            print(line, flush=True)  # noqa: T201
        if report.exit_status is not None:
            if report.error is not None:
                print("\n".join(error_lines(report.error)), file=sys.stderr, flush=True)  # noqa: T201
            return report.exit_status
        time.sleep(_POLL_S)


def _next_report(ray: Any, driver: Any, last: DriverReport) -> DriverReport:
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

    pending = driver.report.remote(last.start_id, last.next_line)
    while True:
        try:
            return ray.get(pending, timeout=_SILENCE_S)
        except GetTimeoutError:
            state = "does not answer; Ray restarts it if its node is gone." if last.start_id else "is being started."
            print(f"The driver {state}", flush=True)  # noqa: T201
        except ActorUnavailableError:
            time.sleep(_POLL_S)
            pending = driver.report.remote(last.start_id, last.next_line)
        except RayActorError as error:
            raise JobError(
                f"the driver died: {one_line(str(error))}",
                code="no_driver",
                hint="Committed units are kept; persona-atlas resume does the rest.",
            ) from error


def _stop(ray: Any, driver: Any) -> None:
    from ray.exceptions import RayError

    driver.stop.remote()
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        try:
            if ray.get(driver.report.remote("", 0), timeout=_STOP_S).exit_status is not None:
                return
        except RayError:
            return
        time.sleep(0.1)
