"""A Ray cluster through the HTTP API of its dashboard. No other module uses Ray's job submission.

The metadata of a job holds the URL of its run, its spec and the version of this package. Everybody with access to the
cluster can read it, so none of it may be a secret.
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
from ..ray_text import plain
from ..retry import Backoff, with_retries
from .submitted_job import NAMESPACE, driver_actor_name

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_FIELD = "--address"
_VERSION_KEY = "persona_atlas"
"""Metadata key with the version of this package; jobs without it are not ours."""

_URL, _ENDPOINT, _SPEC, _GROWS_FROM = "run_url", "endpoint_url", "spec", "grows_from"

_SUBMIT_BACKOFF = Backoff(tries=20, first_wait_s=1.0, longest_wait_s=1.0)
"""A cluster answers submissions with a server error for some seconds after its start."""

_SMALL_JOB_S = 120.0
"""How long a job of a second or two may take, with its wait for a free core."""

_CHATTY_LOGGERS = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")

_STOP_DRIVER = """
import time, ray
ray.init(namespace={namespace!r}, log_to_driver=False)
try:
    driver = ray.get_actor({name!r})
    ray.get(driver.stop.remote(), timeout=5)
    time.sleep(5)
    ray.kill(driver, no_restart=True)
except (ValueError, ray.exceptions.RayError) as error:
    print(error)
"""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """Versions and sizes of a cluster.

    Attributes:
        ray_version: Version of Ray, such as ``2.60.0``.
        python_version: Version of Python on the head, such as ``3.11.4``.
        num_gpus: Number of GPUs on all live nodes.
        is_open: Whether the dashboard answers requests without a token.
        cores: CPU cores of the live node with the most.
        memory_bytes: Memory of the live node with the most, in bytes; None before any node has reported it.
        gpu_bytes: Memory of the largest GPU, in bytes; None before any node has reported one.
        gpus_by_node: GPUs of each live node that has any.
    """

    ray_version: str
    python_version: str
    num_gpus: int
    is_open: bool
    cores: int = 0
    memory_bytes: int | None = None
    gpu_bytes: int | None = None
    gpus_by_node: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RayJob:
    """A job that was submitted by this package, as Ray reports it.

    Attributes:
        job_id: Id of the job, the same as Ray's submission id.
        state: Ray's status.
        message: Ray's explanation of the status; may be empty.
        run_url: Store of the job's run.
        endpoint_url: S3-compatible server of the store; None for AWS or a directory.
        spec: The resolved spec as JSON.
        version: Version of Persona Atlas that submitted it.
        submitted_at: Seconds since the epoch.
        ended_at: Seconds since the epoch; None while the job runs or waits.
        grows_from: Digest of the plan of the run that the job is to add to, as it was when the job was submitted; empty
            for a job that adds nothing.
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
    grows_from: str = ""


class Cluster:
    """A client of a cluster's dashboard.

    Args:
        address: URL of the dashboard, such as ``http://head:8265``; None: ``RAY_API_SERVER_ADDRESS`` from the
            environment, else port 8265 of this machine.

    Raises:
        InputError: Nothing answers at the address, or it refuses the token.
        TransientError: The dashboard answers with a server error.
    """

    def __init__(self, address: str | None = None) -> None:
        given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        self.address = (given if "://" in given else f"http://{given}").rstrip("/")
        if not self.address.startswith(("http://", "https://")):
            raise InputError(
                f"{self.address!r} is not the URL of a dashboard; it must begin with http:// or https://.",
                code="no_cluster",
                field=_FIELD,
                hint="Give the URL of the head's dashboard, such as http://head:8265.",
            )
        self._client = _connect(self.address)

    def info(self) -> ClusterInfo:
        """Fetch the cluster's versions and sizes.

        Raises:
            InputError: The cluster does not answer.
            TransientError: The cluster failed.
        """
        metadata = self._get("/api/v0/cluster_metadata")["data"]
        nodes = self._get("/api/v0/nodes?detail=1&limit=10000")["data"]["result"]["result"]
        totals = [node.get("resources_total") or {} for node in nodes if node.get("state") == "ALIVE"]
        return ClusterInfo(
            ray_version=str(metadata["rayVersion"]),
            python_version=str(metadata["pythonVersion"]),
            num_gpus=int(sum(total.get("GPU", 0) for total in totals)),
            is_open=_answers_without_token(self.address),
            gpus_by_node=tuple(int(total["GPU"]) for total in totals if total.get("GPU", 0) >= 1),
            cores=int(max((total.get("CPU", 0) for total in totals), default=0)),
            **self._sizes(),
        )

    def _sizes(self) -> dict[str, int | None]:
        """Fetch the largest memory and GPU memory of a node, as measured by the nodes' own agents."""
        summary = self._get("/nodes?view=summary")["data"]["summary"]
        alive = [node for node in summary if node.get("raylet", {}).get("state") == "ALIVE"]
        # A head without CPUs runs no replica, so its memory does not count.
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
        """Submit a job to Ray.

        Args:
            job_id: Id of the job; unused so far on this cluster.
            command: Shell command of the entrypoint.
            working_directory: Folder to upload; the entrypoint and the workers start in it.
            code: Folder of a package to upload and put on the Python path; None: the cluster has the package.
            image: Container image for the job's processes; None: they run on the nodes as they are.
            metadata: Metadata of the job, made by ``metadata_of``.

        Raises:
            InputError: The cluster refuses the job or does not answer.
            TransientError: The cluster keeps answering with a server error.
        """
        environment: dict[str, Any] = {"working_dir": str(working_directory)}
        if code is not None:
            environment["py_modules"] = [str(code)]
        if image is not None:
            environment["image_uri"] = image

        def submit() -> object:
            return self._client.submit_job(
                entrypoint=command, submission_id=job_id, runtime_env=environment, metadata=metadata
            )

        with_retries(lambda: self._ask(submit), backoff=_SUBMIT_BACKOFF)

    def jobs(self) -> list[RayJob]:
        """List the jobs that this package submitted, the newest first."""
        found = self._ask(self._client.list_jobs)
        ours = [_ray_job(details) for details in found if (details.metadata or {}).get(_VERSION_KEY)]
        return sorted(ours, key=lambda job: -job.submitted_at)

    def job(self, job_id: str) -> RayJob:
        """Look up a job that this package submitted.

        Raises:
            InputError: The cluster has no job with that id.
        """
        known = {job.job_id: job for job in self.jobs()}
        if job_id not in known:
            raise InputError(
                f"the cluster at {self.address} has no job {job_id!r}.",
                code="no_job",
                field="JOB",
                hint=f"{closest(job_id, known)} `persona-atlas list` shows all of them.".strip(),
            )
        return known[job_id]

    def stop(self, job_id: str) -> None:
        """Ask Ray to stop a job's entrypoint, which stops the driver; returns without waiting."""
        self._ask(lambda: self._client.stop_job(job_id))

    def stop_driver(self, job_id: str) -> None:
        """Stop a driver whose entrypoint is gone, by submitting a small job that kills it; returns without waiting."""
        program = _STOP_DRIVER.format(name=driver_actor_name(job_id), namespace=NAMESPACE)
        self._ask(lambda: self._client.submit_job(entrypoint=shlex.join(["python", "-c", program])))

    def logs(self, job_id: str) -> str:
        """Fetch the log of a job so far."""
        return plain(self._ask(lambda: self._client.get_job_logs(job_id)))

    def follow(self, job_id: str) -> Iterator[str]:
        """Yield the log of a job in pieces, from its start and as it grows, until the job ends."""
        loop = asyncio.new_event_loop()
        pieces = self._client.tail_job_logs(job_id)
        try:
            while True:
                try:
                    yield plain(self._ask(lambda: loop.run_until_complete(anext(pieces))))
                except StopAsyncIteration:
                    return
        finally:
            loop.run_until_complete(pieces.aclose())
            loop.close()

    def installed_version(self) -> str | None:
        """Find out which version of Persona Atlas is installed on the cluster, by running a small job there.

        Returns:
            The version; None when the package is not installed.

        Raises:
            JobError: The small job did not end in time.
        """
        program = "import persona_atlas; print('has', persona_atlas.__version__)"
        small_job = self._ask(lambda: self._client.submit_job(entrypoint=f'python -c "{program}"'))
        deadline = time.monotonic() + _SMALL_JOB_S
        while not (state := self._ask(lambda: self._client.get_job_status(small_job))).is_terminal():
            if time.monotonic() > deadline:
                raise JobError(
                    f"the cluster at {self.address} did not finish a small job within {_SMALL_JOB_S:.0f} s.",
                    code="cluster_busy",
                    hint="Is a core free for it? --code ship needs no such job.",
                )
            time.sleep(0.3)
        printed = [line for line in self.logs(small_job).splitlines() if line.startswith("has ")]
        self._ask(lambda: self._client.delete_job(small_job))
        return printed[-1].split()[1] if str(state) == "SUCCEEDED" and printed else None

    def _get(self, path: str) -> Any:
        def get() -> Any:
            # The client has no public method for other pages of the dashboard; its private one sends the token.
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
            raise _translated(self.address, error) from error


def metadata_of(
    *, run_url: str, endpoint_url: str | None, spec: str, version: str, grows_from: str = ""
) -> dict[str, str]:
    """Build the metadata that marks a job as this package's and lets it be resumed.

    Args:
        run_url: Store of the job's run.
        endpoint_url: S3-compatible server of the store; None for AWS or a directory.
        spec: The resolved spec as JSON.
        version: Version of Persona Atlas that submits.
        grows_from: Digest of the plan of the run that the job is to add to; empty for a job that adds nothing.
    """
    added = {_GROWS_FROM: grows_from} if grows_from else {}
    return {_VERSION_KEY: version, _URL: run_url, _ENDPOINT: endpoint_url or "", _SPEC: spec} | added


def _ray_job(details: Any) -> RayJob:
    metadata = details.metadata
    return RayJob(
        job_id=details.submission_id or "",
        state=RayState(str(details.status)),
        message=plain(details.message or ""),
        run_url=metadata.get(_URL, ""),
        endpoint_url=metadata.get(_ENDPOINT) or None,
        spec=metadata.get(_SPEC, ""),
        version=metadata[_VERSION_KEY],
        submitted_at=(details.start_time or 0) / 1000,
        ended_at=details.end_time / 1000 if details.end_time else None,
        grows_from=metadata.get(_GROWS_FROM, ""),
    )


@contextmanager
def _address_in_environment(address: str) -> Iterator[None]:
    """Set the address in the environment too: Ray's client prefers it there over its own argument."""
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

    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with _address_in_environment(address):
            return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, AuthenticationError, RequestException) as error:
        raise _translated(address, error) from error


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").is_file()


def _translated(address: str, error: Exception) -> AtlasError:
    from ray.exceptions import AuthenticationError

    lines = str(error).strip().splitlines() or [type(error).__name__]
    if isinstance(error, AuthenticationError):
        return InputError(
            f"the cluster at {address} refuses this token.",
            code="cluster_denied",
            field=_FIELD,
            hint="Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file with the cluster's token.",
        )
    if isinstance(error, RuntimeError) and "status code 5" in str(error):
        return TransientError(f"the cluster at {address} failed: {json.dumps(lines[0])}", code="cluster_failed")
    return InputError(
        f"no Ray cluster answers at {address}: {lines[0]}",
        code="no_cluster",
        field=_FIELD,
        hint="Check the host and port of the dashboard, such as http://head:8265. Does it need a tunnel?",
    )


def _answers_without_token(address: str) -> bool:
    import requests

    try:
        return requests.get(f"{address}/api/jobs/", timeout=30).status_code == 200
    except requests.RequestException:
        return False
