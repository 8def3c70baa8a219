"""From a spec to a job on a cluster: validate, look at the store, look at the cluster, ship, hand in."""

from __future__ import annotations

import platform
import re
import secrets
import shlex
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ... import __version__
from ...jobs.errors import InputError
from ...jobs.plan import Plan
from ...jobs.sizing.estimate import Estimate, estimate
from ...jobs.spec import PACKAGE_SCHEME, JobSpec
from ...storage.locations.location import open_location
from ...storage.run.lease import refuse_if_driven
from ...storage.run.run_store import check_same_run, read_run_record
from ..run.job import plan_job, refuse_tensor_parallel
from ..run.progress import Progress
from .ray_cluster import Cluster, ClusterInfo, metadata_of
from .shipping import is_shipped_catalog, stage_code, stage_job
from .submitted_job import SubmittedJob

Code = Literal["ship", "installed"]

_OLDEST_RAY = (2, 50)
"""As ``pyproject.toml`` has it."""

_COMMAND = ["python", "-m", "persona_atlas.cluster.cli", "drive"]


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """How a job finds its code and its driver's place.

    Attributes:
        code: ``ship`` sends this package along; ``installed`` uses the cluster's own.
        image: A container image for the job's processes, which has the package; None: the nodes as they are.
        driver_resource: Name of a Ray resource that the driver's node must have; empty: the head.
        may_scale_up: Whether the cluster's autoscaler will bring the GPUs that are not there yet.
    """

    code: Code = "ship"
    image: str | None = None
    driver_resource: str = ""
    may_scale_up: bool = False


def submit_job(spec: JobSpec, cluster: Cluster, options: SubmitOptions, progress: Progress) -> str:
    """Submit a job.

    Args:
        spec: What to run.
        cluster: Where.
        options: With which code.
        progress: Told what could not be checked from here.

    Returns:
        The job's id.

    Raises:
        InputError: The spec is wrong, the store belongs to another run or has a driver, or the cluster cannot run it.
    """
    refuse_tensor_parallel(spec)
    refuse_conversations(spec)
    spec = resolved(spec)
    plan = _look_at_the_store(spec, progress)
    facts = cluster.facts()
    refuse_cluster(facts, spec, options)
    if not options.may_scale_up:
        refuse_what_fits_no_node(facts, spec, estimate(plan) if plan else None)
    if facts.is_open:
        progress.say(
            f"Warning: {cluster.address} takes jobs from whoever reaches it; docs/cluster.md says what to close."
        )
    _refuse_second_job(cluster, spec)
    if options.code == "installed" and options.image is None:
        _refuse_other_installation(cluster)
    job = SubmittedJob(
        job_id=_new_id(spec),
        spec=spec,
        version=__version__,
        python=_python(platform.python_version()),
        ships_catalog=is_shipped_catalog(spec.personas.catalog),
        driver_resource=options.driver_resource,
    )
    _send(job, cluster, options)
    return job.job_id


def resolved(spec: JobSpec) -> JobSpec:
    """Make a spec say the same from any directory and any machine: absolute paths, the endpoint of this environment."""
    location = open_location(spec.store.url, spec.store.endpoint_url)
    store = spec.store.model_copy(update={"url": location.url, "endpoint_url": location.endpoint_url})
    model, personas = spec.model, spec.personas
    if not model.source.startswith(PACKAGE_SCHEME) and Path(model.source).expanduser().is_dir():
        model = model.model_copy(update={"source": str(Path(model.source).expanduser().absolute())})
    if is_shipped_catalog(personas.catalog):
        personas = personas.model_copy(update={"catalog": str(Path(personas.catalog).absolute())})
    return spec.model_copy(update={"store": store, "model": model, "personas": personas})


def refuse_cluster(facts: ClusterInfo, spec: JobSpec, options: SubmitOptions) -> None:
    """Refuse a cluster that cannot run a spec.

    Raises:
        InputError: Names what differs or lacks.
    """
    if tuple(map(int, re.findall(r"\d+", facts.ray_version)[:2])) < _OLDEST_RAY:
        raise InputError(
            f"this needs Ray {'.'.join(map(str, _OLDEST_RAY))} or later, and the cluster has {facts.ray_version}.",
            code="other_ray",
            field="--address",
            hint="Bring the cluster up to date; the version here is the one that is tested.",
        )
    here, there = _python(platform.python_version()), _python(facts.python_version)
    if here != there and options.image is None:
        raise InputError(
            f"this is Python {here}, and the cluster has {facts.python_version}.",
            code="other_python",
            field="--address",
            hint=f"Submit from Python {there}, or name an --image with {here} and this package.",
        )
    if (
        spec.placement.device == "cuda"
        and not facts.num_gpus
        and not (options.may_scale_up and spec.placement.replicas)
    ):
        raise InputError(
            "asks for cuda, but no GPU is on the cluster.",
            code="no_gpu",
            field="placement.device",
            hint="Use device: auto or cpu, or, where an autoscaler brings GPUs, set placement.replicas and --scale-up.",
        )


def refuse_what_fits_no_node(facts: ClusterInfo, spec: JobSpec, figures: Estimate | None) -> None:
    """Refuse a job of which no node of the cluster could hold a replica; a worker asks its own machine once more.

    Args:
        facts: Of the cluster.
        spec: What to run.
        figures: Of its plan; None when it could not be planned here.

    Raises:
        InputError: Names what is needed and what there is.
    """
    threads = spec.placement.threads or 1
    if threads > facts.cores:
        raise InputError(
            f"asks for {threads} cores on one node, and the largest has {facts.cores}.",
            code="does_not_fit",
            field="placement.threads",
            hint="Ask for fewer, or start nodes that work with --num-cpus; --scale-up where an autoscaler brings them.",
        )
    uses_gpu = spec.placement.device == "cuda" or (spec.placement.device == "auto" and facts.num_gpus > 0)
    there = facts.gpu_bytes if uses_gpu else facts.memory_bytes
    if figures is None or there is None:
        return
    needed_bytes = figures.replica_bytes if uses_gpu else figures.machine_bytes
    if needed_bytes > there:
        what = "GPU" if uses_gpu else "node"
        raise InputError(
            f"one replica of {spec.model.source!r} needs {needed_bytes / 1e9:.1f} GB, and the largest {what} of the "
            f"cluster has {there / 1e9:.1f} GB.",
            code="does_not_fit",
            field="model.source",
            hint="Try a narrower model.dtype, a smaller placement.batch_tokens or fewer capture.layers; `persona-atlas "
            "plan` says what would fit which device.",
        )


def refuse_conversations(spec: JobSpec) -> None:
    """Refuse a job that reads conversations: their files do not travel with a job so far.

    Raises:
        InputError: Says what to do instead.
    """
    if spec.conversations is not None:
        raise InputError(
            "conversations are not sent to a cluster so far.",
            code="not_yet",
            field="conversations",
            hint="Run it from a machine of the cluster that has them: persona-atlas extract --address auto.",
        )


def _python(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _look_at_the_store(spec: JobSpec, progress: Progress) -> Plan | None:
    """Plan the job and hold it against its store; None when the model is not here to be planned for."""
    location = open_location(spec.store.url, spec.store.endpoint_url)
    refuse_if_driven(location)
    record = read_run_record(location)
    try:
        plan, _ = plan_job(spec, progress)
    except InputError as error:
        if error.field != "model.source":
            raise
        # The cluster may have files that this machine has not; there it is planned again before anything is begun.
        progress.say(f"The model is not here, so layers are checked on the cluster: {error.message}")
        return None
    if record is not None:
        check_same_run(record, plan, location.url)
    return plan


def _refuse_second_job(cluster: Cluster, spec: JobSpec) -> None:
    for job in cluster.jobs():
        if job.ended_at is None and job.run_url == spec.store.url:
            raise InputError(
                f"job {job.job_id} has the run at {job.run_url}.",
                code="run_has_driver",
                field="store.url",
                hint=f"Wait for it, or cancel it: persona-atlas cancel {job.job_id}",
            )


def _refuse_other_installation(cluster: Cluster) -> None:
    there = cluster.installed_version()
    if there != __version__:
        raise InputError(
            f"this is Persona Atlas {__version__}, and the cluster has {there or 'none'}.",
            code="other_version",
            field="--code",
            hint="Use --code ship, which brings the code along, or install the same version on the cluster.",
        )


def _new_id(spec: JobSpec) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", spec.store.url.rsplit("/", 1)[-1].lower()).strip("-")[:40]
    return f"{name or 'run'}-{secrets.token_hex(3)}"


def _send(job: SubmittedJob, cluster: Cluster, options: SubmitOptions) -> None:
    with tempfile.TemporaryDirectory(prefix="persona-atlas-") as folder:
        working, code = Path(folder) / "job", Path(folder) / "code"
        working.mkdir()
        cluster.submit(
            job.job_id,
            shlex.join(_COMMAND),
            working_directory=stage_job(working, job),
            code=stage_code(code) if options.code == "ship" and options.image is None else None,
            image=options.image,
            metadata=metadata_of(
                run_url=job.spec.store.url,
                endpoint_url=job.spec.store.endpoint_url,
                spec=job.spec.model_dump_json(),
                version=job.version,
            ),
        )
