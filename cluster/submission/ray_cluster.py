"""Jobs on a cluster through its dashboard, over HTTP. The one file that knows Ray's job submission.

A job's metadata holds where its run lies, its spec and our version; none of it is a secret, for everybody who may look
at the cluster reads it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ...jobs.errors import AtlasError, InputError, JobError, TransientError, closest
from ...jobs.scheduling.job_state import RayState
from .submitted_job import NAMESPACE, driver_actor_name

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_FIELD = "--address"
_MARK = "persona_atlas"
_URL, _ENDPOINT, _SPEC = "run_url", "endpoint_url", "spec"

_SUBMIT_TRIES = 20
"""A cluster that has just begun takes no jobs yet; it says so with a server error, for some seconds."""

_PROBE_S = 120.0

_TALKATIVE = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")

_END_DRIVER = """
import time, ray
ray.init(namespace={namespace!r}, log_to_driver=False)
try:
    driver = ray.get_actor({name!r})
    ray.get(driver.stop.remote(), timeout=5)
    time.sleep(5)
    ray.kill(driver, no_restart=True)
except (ValueError, ray.exceptions.RayError) as gone:
    print(gone)
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """What a cluster is.

    Attributes:
        ray_version: Its Ray's.
        python_version: Its head's, in full.
        num_gpus: Of all nodes that are alive.
        is_open: Whether it answers whoever comes, without a token.
        cores: Of the node that has most of them.
        memory_bytes: Of the node that has most of it; None when no node has told yet.
        gpu_bytes: Of the largest GPU, likewise.
    """

    ray_version: str
    python_version: str
    num_gpus: int
    is_open: bool
    cores: int = 0
    memory_bytes: int | None = None
    gpu_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class RayJob:
    """One of our jobs, as Ray knows it.

    Attributes:
        job_id: Its id.
        state: What Ray says.
        message: Why, when it failed.
        run_url: Where its run lies.
        endpoint_url: Of an S3-compatible server.
        spec: The resolved spec as JSON.
        version: Of Persona Atlas, that submitted it.
        submitted_at: Seconds since the epoch.
        ended_at: Likewise; None while it has not.
    """

    job_id: str
    state: RayState
    message: str
    run_url: str
    endpoint_url: str | None
    spec: str
    version: str
    submitted_at: float
    ended_at: float | None


class Cluster:
    """A cluster's dashboard.

    Args:
        address: As ``http://head:8265``; None: ``RAY_API_SERVER_ADDRESS``, or this machine's.

    Raises:
        InputError: Nothing answers there, or it wants another token.
    """

    def __init__(self, address: str | None = None) -> None:
        given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        self.address = (given if "://" in given else f"http://{given}").rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise InputError(
                f"{self.address!r} is not the address of a dashboard.",
                code="no_cluster",
                field=_FIELD,
                hint="Give the one that Ray's jobs are sent to, as http://head:8265.",
            )
        self._client = _connect(self.address)

    def facts(self) -> ClusterInfo:
        """Ask what the cluster is."""
        metadata = self._get("/api/v0/cluster_metadata")["data"]
        nodes = self._get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
        totals = [node.get("resources_total") or {} for node in nodes if node.get("state") == "ALIVE"]
        return ClusterInfo(
            ray_version=str(metadata["rayVersion"]),
            python_version=str(metadata["pythonVersion"]),
            num_gpus=int(sum(total.get("GPU", 0) for total in totals)),
            is_open=_answers_anybody(self.address),
            cores=int(max((total.get("CPU", 0) for total in totals), default=0)),
            **self._sizes(),
        )

    def _sizes(self) -> dict[str, int | None]:
        """Ask what memory the nodes have, as their own agents have seen it."""
        seen = self._get("/nodes?view=summary")["data"]["summary"]
        alive = [node for node in seen if node.get("raylet", {}).get("state") == "ALIVE"]
        # A head that only steers is none of the nodes that a model must fit.
        workers = [node for node in alive if node["raylet"].get("resourcesTotal", {}).get("CPU")]
        memory = [int(node["mem"][0]) for node in workers if node.get("mem")]
        gpus = [gpu for node in workers for gpu in node.get("gpus") or ()]
        mebibytes = [gpu.get("memoryTotal") or gpu.get("memory_total") or 0 for gpu in gpus]
        return {
            "memory_bytes": max(memory, default=None),
            "gpu_bytes": max((int(size) * 2**20 for size in mebibytes), default=0) or None,
        }

    def submit(
        self,
        job_id: str,
        command: str,
        *,
        working_directory: Path,
        code: Path | None,
        image: str | None,
        metadata: dict[str, str],
    ) -> None:
        """Hand in a job.

        Args:
            job_id: Not used before on this cluster.
            command: Its entrypoint.
            working_directory: Sent along; the entrypoint and its workers begin in it.
            code: A package's folder, sent along and put on the Python path; None when the cluster has it.
            image: A container image the job's processes run in; None for what the nodes are.
            metadata: See ``metadata_of``.
        """
        environment: dict[str, Any] = {"working_dir": str(working_directory)}
        if code is not None:
            environment["py_modules"] = [str(code)]
        if image is not None:
            environment["image_uri"] = image
        for attempt in range(_SUBMIT_TRIES):
            try:
                self._client.submit_job(
                    entrypoint=command, submission_id=job_id, runtime_env=environment, metadata=metadata
                )
                return
            except RuntimeError as error:
                if "status code 5" not in str(error) or attempt == _SUBMIT_TRIES - 1:
                    raise _refused(self.address, error) from error
                time.sleep(1.0)

    def jobs(self) -> list[RayJob]:
        """Give our jobs, the newest first."""
        found = self._ask(self._client.list_jobs)
        ours = [_ray_job(details) for details in found if (details.metadata or {}).get(_MARK)]
        return sorted(ours, key=lambda job: -job.submitted_at)

    def job(self, job_id: str) -> RayJob:
        """Find one of our jobs.

        Raises:
            InputError: There is none of that id.
        """
        known = {job.job_id: job for job in self.jobs()}
        if job_id not in known:
            raise InputError(
                f"the cluster at {self.address} has no job {job_id!r}.",
                code="no_job",
                field="JOB",
                hint=f"{closest(job_id, known)} `persona-atlas list` names them all.".strip(),
            )
        return known[job_id]

    def stop(self, job_id: str) -> None:
        """Tell a job to stop; does not wait for it."""
        self._ask(lambda: self._client.stop_job(job_id))

    def end_driver(self, job_id: str) -> None:
        """End a driver whose job has ended without it, with a small job; does not wait for it."""
        program = _END_DRIVER.format(name=driver_actor_name(job_id), namespace=NAMESPACE)
        self._ask(lambda: self._client.submit_job(entrypoint=shlex.join(["python", "-c", program])))

    def logs(self, job_id: str) -> str:
        """Give what a job has said so far."""
        return self._ask(lambda: self._client.get_job_logs(job_id))

    def follow(self, job_id: str) -> Iterator[str]:
        """Give what a job has said and says, piece by piece, until it ends."""
        loop = asyncio.new_event_loop()
        pieces = self._client.tail_job_logs(job_id)
        try:
            while True:
                try:
                    yield self._ask(lambda: loop.run_until_complete(anext(pieces)))
                except StopAsyncIteration:
                    return
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def installed_version(self) -> str | None:
        """Ask, with a small job, which version of Persona Atlas the cluster has; None: it has none."""
        program = "import persona_atlas; print('has', persona_atlas.__version__)"
        probe = self._ask(lambda: self._client.submit_job(entrypoint=f'python -c "{program}"'))
        deadline = time.monotonic() + _PROBE_S
        while not (state := self._ask(lambda: self._client.get_job_status(probe))).is_terminal():
            if time.monotonic() > deadline:
                raise JobError(f"the cluster at {self.address} did not begin a small job.", code="cluster_busy")
            time.sleep(0.3)
        said = [line for line in self.logs(probe).splitlines() if line.startswith("has ")]
        self._ask(lambda: self._client.delete_job(probe))
        return said[-1].split()[1] if str(state) == "SUCCEEDED" and said else None

    def _get(self, path: str) -> Any:
        def get() -> Any:
            # Ray's own client has no public way to the dashboard's other pages; it knows about tokens.
            answer = self._client._do_request("GET", path, timeout=30)
            answer.raise_for_status()
            return answer.json()

        return self._ask(get)

    def _ask(self, action: Callable[[], T]) -> T:
        from ray.exceptions import AuthenticationError
        from requests.exceptions import RequestException

        try:
            return action()
        except AtlasError:
            raise
        except (AuthenticationError, RuntimeError, ConnectionError, RequestException) as error:
            raise _refused(self.address, error) from error


def metadata_of(*, run_url: str, endpoint_url: str | None, spec: str, version: str) -> dict[str, str]:
    """Give what a job's metadata says."""
    return {_MARK: version, _URL: run_url, _ENDPOINT: endpoint_url or "", _SPEC: spec}


def _ray_job(details: Any) -> RayJob:
    told = details.metadata
    return RayJob(
        job_id=details.submission_id or "",
        state=RayState(str(details.status)),
        message=details.message or "",
        run_url=told.get(_URL, ""),
        endpoint_url=told.get(_ENDPOINT) or None,
        spec=told.get(_SPEC, ""),
        version=told[_MARK],
        submitted_at=(details.start_time or 0) / 1000,
        ended_at=details.end_time / 1000 if details.end_time else None,
    )


@contextmanager
def _only(address: str) -> Iterator[None]:
    """Keep Ray from taking an address out of the environment instead of the one that was given."""
    before = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ["RAY_API_SERVER_ADDRESS"]
        else:
            os.environ["RAY_API_SERVER_ADDRESS"] = before


def _connect(address: str) -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if _has_token():
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobSubmissionClient
    from requests.exceptions import RequestException

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _only(address):
            return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError, RequestException) as error:
        raise _refused(address, error) from error


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _refused(address: str, error: Exception) -> AtlasError:
    from ray.exceptions import AuthenticationError

    told = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, AuthenticationError):
        return InputError(
            f"the cluster at {address} does not know this token.",
            code="cluster_denied",
            field=_FIELD,
            hint="Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token.",
        )
    if isinstance(error, RuntimeError) and "status code 5" in str(error):
        return TransientError(f"the cluster at {address} failed: {json.dumps(told[0])}", code="cluster_failed")
    return InputError(
        f"no Ray cluster answers at {address}: {told[0]}",
        code="no_cluster",
        field=_FIELD,
        hint="Check host and port: the dashboard's, as http://head:8265. Is there a tunnel to it?",
    )


def _answers_anybody(address: str) -> bool:
    import requests

    try:
        return requests.get(f"{address}/api/jobs/", timeout=30).status_code == 200
    except requests.RequestException:
        return False
