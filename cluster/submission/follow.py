"""The entrypoint of a job on a cluster: start its driver, say what it says, end as it ends. Stopped, it stops it."""

from __future__ import annotations

import logging
import os
import platform
import signal
import sys
import time
from types import FrameType
from typing import Any

from ...jobs.errors import InputError, JobError
from .driver_actor import Driver, DriverReport
from .submitted_job import NAMESPACE, SubmittedJob, driver_actor_name

_ASK_EVERY_S = 0.5
_SILENCE_S = 15.0
"""When a driver does not answer for so long, that is said: Ray is starting it again."""

_HEAD_MARK = "node:__internal_head__"
"""A resource that Ray gives the head alone."""

_STOP_S = 2.5
"""Ray kills an entrypoint three seconds after it told it to stop."""


class _ToldToStop(BaseException):
    pass


def follow(job: SubmittedJob, version: str) -> int:
    """Start a job's driver, or find it, and follow it to its end.

    Args:
        job: The job.
        version: Of Persona Atlas here.

    Returns:
        The exit status.

    Raises:
        InputError: The code here is of another version than where the job was submitted.
        JobError: The driver is gone for good.
    """
    refuse_other_versions(job, version)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    driver: Any = None
    try:
        ray.init(namespace=NAMESPACE, log_to_driver=False, logging_level=logging.WARNING)
        # After Ray has set a handler of its own, which would end this process without a word to the driver.
        signal.signal(signal.SIGTERM, _stop)
        driver = _driver(job)
        return _listen(ray, driver)
    except _ToldToStop:
        print("Stopping.", file=sys.stderr, flush=True)  # noqa: T201
        if driver is not None:
            _end(ray, driver)
        return 130


def refuse_other_versions(job: SubmittedJob, version: str) -> None:
    """Refuse a job that comes from another version than this.

    Raises:
        InputError: Names both.
    """
    python = ".".join(platform.python_version_tuple()[:2])
    if job.version != version:
        raise InputError(
            f"the job was submitted by Persona Atlas {job.version}, and the cluster has {version}.",
            code="other_version",
            hint="Submit with --code ship, which brings the code along, or with an image of that version.",
        )
    if job.python != python:
        raise InputError(
            f"the job was submitted from Python {job.python}, and the cluster has {python}.",
            code="other_python",
            hint=f"Submit from Python {python}, or use an image with {job.python}.",
        )


def _stop(_signal: int, _frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise _ToldToStop


def _driver(job: SubmittedJob) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    options: dict[str, Any] = {
        "name": driver_actor_name(job.job_id),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "max_restarts": -1,
        # Asking a driver that is being started again waits for it.
        "max_task_retries": -1,
        "max_concurrency": 4,
        # It must find a place on a cluster whose cores all belong to workers.
        "num_cpus": 0,
    }
    if job.driver_resource:
        options["resources"] = {job.driver_resource: 0.001}
    else:
        # Nodes that come and go do not take the driver with them.
        options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(_head(ray), soft=True)
    actor_class: Any = ray.remote(Driver)
    return actor_class.options(**options).remote(job)


def _head(ray: Any) -> str:
    """Find the head, where this process runs; but of several nodes on one machine Ray may call another its own."""
    heads = [node["NodeID"] for node in ray.nodes() if _HEAD_MARK in node["Resources"]]
    return heads[0] if heads else ray.get_runtime_context().get_node_id()


def _listen(ray: Any, driver: Any) -> int:
    news = DriverReport("", (), 0)
    while True:
        news = _ask(ray, driver, news)
        for line in news.lines:
            print(line, flush=True)  # noqa: T201
        if news.exit_status is not None:
            if news.error is not None:
                print(f"Error: {news.error}", file=sys.stderr, flush=True)  # noqa: T201
            return news.exit_status
        time.sleep(_ASK_EVERY_S)


def _ask(ray: Any, driver: Any, last: DriverReport) -> DriverReport:
    from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError

    question = driver.news.remote(last.incarnation, last.next_line)
    while True:
        try:
            return ray.get(question, timeout=_SILENCE_S)
        except GetTimeoutError:
            known = "does not answer; Ray starts it again when its node is gone."
            print(f"The driver {known if last.incarnation else 'is being started.'}", flush=True)  # noqa: T201
        except ActorUnavailableError:
            time.sleep(_ASK_EVERY_S)
            question = driver.news.remote(last.incarnation, last.next_line)
        except RayActorError as error:
            raise JobError(
                f"the driver is gone: {error}",
                code="no_driver",
                hint="What was committed stays; persona-atlas resume does the rest.",
            ) from error


def _end(ray: Any, driver: Any) -> None:
    from ray.exceptions import RayError

    driver.stop.remote()
    deadline = time.monotonic() + _STOP_S
    while time.monotonic() < deadline:
        try:
            if ray.get(driver.news.remote("", 0), timeout=_STOP_S).exit_status is not None:
                return
        except RayError:
            return
        time.sleep(0.1)
