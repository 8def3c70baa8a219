"""Submit a spec to a cluster: check the spec, the store and the cluster, then upload the code and start the job."""

from __future__ import annotations

import platform
import re
import secrets
import shlex
import tempfile
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...jobs.engines import refuse_parallel_builtin
from ...jobs.errors import InputError
from ...jobs.files.hub_url import is_hub
from ...jobs.files.store_url import is_s3
from ...jobs.files.user_paths import expand_home, is_directory
from ...jobs.plan import Plan
from ...jobs.sizing.streaming import least_estimate, require_streamed
from ...jobs.specs.endpoint_keys import refuse_keys
from ...jobs.specs.spec import JobSpec
from ...jobs.specs.spec_parts import BUILTIN_TEMPLATE_SCHEME, PACKAGE_SCHEME
from ...jobs.version import __version__
from ...jobs.work.run_edits import RunEdits
from ...storage.format.stored_edits import stored_edits
from ...storage.locations.location import open_location
from ...storage.locations.s3_server import resolved_access
from ...storage.run.lease import refuse_if_driven
from ...storage.run.run_store import read_edits, read_run_record
from ...workers.chat.template import read_chat_template
from ...workers.models.model_sketch import sketch_model
from ..run.engine_choice import require_engine
from ..run.growth import fit_to_run, run_to_grow
from ..run.prepare import edits_for, plan_job
from ..run.progress import Progress
from .cluster_fit import SubmitOptions, minor_version, refuse_cluster, refuse_what_fits_no_node
from .ray_cluster import Cluster, metadata_of
from .shipping import is_shipped_catalog, stage_code, stage_job
from .submitted_job import SubmittedJob

_COMMAND = ["python", "-m", "persona_atlas.cluster.cli", "drive"]


def submit_job(
    spec: JobSpec,
    cluster: Cluster,
    options: SubmitOptions,
    progress: Progress,
    chat_template: str | None = None,
    *,
    grow: bool = False,
    edits: RunEdits | None = None,
) -> str:
    """Submit a job.

    Args:
        spec: The job.
        cluster: The cluster to run it.
        options: Where its code comes from and where its driver runs.
        progress: Prints what could not be checked on this machine.
        chat_template: Text of the chat template that the spec names; None reads its file, if it names one.
        grow: Whether the job may add to the run in its store.
        edits: What the spec's ``interventions`` were resolved to already; None resolves them.

    Returns:
        The job's id.

    Raises:
        InputError: The spec is wrong, the store belongs to another run or has a driver, or the cluster cannot run it.
    """
    refuse_parallel_builtin(spec.placement)
    refuse_conversations(spec)
    refuse_keys(spec)
    spec = resolved(spec)
    template = chat_template or read_chat_template(spec.model)
    checked = _check_store(spec, template, progress, edits, grow=grow)
    plan = checked.plan
    info = cluster.info()
    refuse_cluster(info, spec, options)
    if not options.may_scale_up:
        # Where it depends on the nodes which engine runs, and how it holds its weights, the least is what counts.
        refuse_what_fits_no_node(info, spec, least_estimate(plan) if plan else None)
    if info.is_open:
        progress.say(
            f"Warning: {cluster.address} accepts jobs from anybody who can reach it, without a token. Set "
            "RAY_AUTH_MODE=token on its nodes; see docs/cluster.md."
        )
    _refuse_second_job(cluster, spec)
    if options.code == "installed" and options.image is None:
        _refuse_other_installation(cluster)
    job = SubmittedJob(
        job_id=_new_id(spec),
        spec=spec,
        version=__version__,
        python=minor_version(platform.python_version()),
        ships_catalog=is_shipped_catalog(spec.personas.catalog),
        chat_template=template,
        driver_resource=options.driver_resource,
        grow=grow,
        **_sent(checked.edits),
    )
    _send(job, cluster, options, checked.grows_from)
    return job.job_id


def resolved(spec: JobSpec) -> JobSpec:
    """Make a spec independent of this directory and environment: absolute paths, and the server written into it."""
    location = open_location(spec.store.url, spec.store.endpoint_url, spec.store.access)
    store = {"url": location.url, "endpoint_url": location.endpoint_url, **resolved_access(spec.store).model_dump()}
    model, personas = spec.model, spec.personas
    changes: dict[str, dict[str, Any]] = {"store": store, "model": {}}
    for field, named in (("source", model.source), ("adapter", model.adapter)):
        directory = (
            Path(expand_home(named, f"model.{field}")) if named and not named.startswith(PACKAGE_SCHEME) else None
        )
        if directory is not None and is_directory(directory, f"model.{field}"):
            changes["model"][field] = str(directory.absolute())
    if model.chat_template is not None and not model.chat_template.startswith(BUILTIN_TEMPLATE_SCHEME):
        template = Path(expand_home(model.chat_template, "model.chat_template"))
        changes["model"]["chat_template"] = str(template.absolute())
    if is_shipped_catalog(personas.catalog):
        catalog = Path(expand_home(personas.catalog, "personas.catalog"))
        changes["personas"] = {"catalog": str(catalog.absolute())}
    return spec.replaced(**changes)


def refuse_conversations(spec: JobSpec) -> None:
    """Refuse a job that reads conversations or prompts, because their files are not uploaded with a job yet.

    Raises:
        InputError: The spec names a file of them, or the texts of a run in a directory of this machine.
    """
    texts_of = None if spec.conversations is None else spec.conversations.texts_of
    if texts_of is not None and not is_s3(texts_of) and not is_hub(texts_of):
        raise InputError(
            "is a directory, which the machines of a cluster may not share.",
            code="not_yet",
            field="conversations.texts_of",
            hint="Name a run on s3:// or hf://; or run extract --address auto on a machine of the cluster.",
        )
    if spec.has_texts_in_files:
        section = spec.texts_field.partition(".")[0]
        command = "extract" if section == "conversations" else "run SPEC"
        raise InputError(
            f"files of {section} cannot be sent to a cluster yet.",
            code="not_yet",
            field=section,
            hint=f"Run persona-atlas {command} --address auto on a machine of the cluster that has the files.",
        )


@dataclass(frozen=True)
class _Checked:
    """A job that was compared with its store.

    Attributes:
        plan: The plan; None when the model's files are not on this machine.
        grows_from: Digest of the plan of the run that the job adds to; empty if it adds nothing.
        edits: What its interventions were resolved to; None where it has none, or nothing is known of the model here.
    """

    plan: Plan | None
    grows_from: str
    edits: RunEdits | None


def _check_store(
    spec: JobSpec, template: str | None, progress: Progress, edits: RunEdits | None, *, grow: bool
) -> _Checked:
    """Plan the job and compare the plan with the store's run."""
    location = open_location(spec.store.url, spec.store.endpoint_url, spec.store.access)
    refuse_if_driven(location)
    record = run_to_grow(location, spec) if grow else read_run_record(location)
    recorded = None if record is None else read_edits(location, record)
    try:
        plan, _ = plan_job(spec, progress, record=record, chat_template=template, edits=edits, recorded=recorded)
    except InputError as error:
        # A model that is there and cannot be run is refused here; a library may be on the cluster only.
        if error.field not in ("model.source", "model.adapter") or error.code not in ("no_model", "no_package"):
            raise
        # The cluster may have the files; the driver plans again before it starts anything.
        progress.say(f"The model is not on this machine, so the plan is checked on the cluster only: {error.message}")
        grows_from = record.plan_digest if record is not None and grow else ""
        return _Checked(None, grows_from, edits or recorded or _edits_without_model(spec, progress))
    require_engine(plan)
    require_streamed(plan)
    if record is None:
        return _Checked(plan, "", plan.edits)
    plan, growth = fit_to_run(plan, record, location, grow=grow)
    if growth is None:
        return _Checked(plan, "", plan.edits)
    progress.say(str(growth))
    return _Checked(plan, growth.grown_from, plan.edits)


def _edits_without_model(spec: JobSpec, progress: Progress) -> RunEdits | None:
    """Resolve interventions by what a configuration or the table of known models says of the model."""
    if spec.interventions is None:
        return None
    try:
        facts, _ = sketch_model(spec.model, progress.say)
    except InputError:
        # It was said that the model is not here. The driver resolves them, if it finds the axis.
        return None
    return edits_for(spec, facts, progress)


def _sent(edits: RunEdits | None) -> dict[str, Any]:
    """Return the fields of a job's file that hold its edits."""
    if edits is None:
        return {}
    stored, table = stored_edits(edits)
    return {"interventions": stored, "edits": b64encode(table)}


def _refuse_second_job(cluster: Cluster, spec: JobSpec) -> None:
    for job in cluster.jobs():
        if job.ended_at is None and job.run_url == spec.store.url:
            raise InputError(
                f"job {job.job_id} is already working on the run at {job.run_url}.",
                code="run_has_driver",
                field="store.url",
                hint=f"Wait for it, or cancel it: persona-atlas cancel {job.job_id}",
            )


def _refuse_other_installation(cluster: Cluster) -> None:
    installed = cluster.installed_version()
    if installed != __version__:
        raise InputError(
            f"the version of Persona Atlas must be the same, but this machine has {__version__} and the cluster "
            f"{installed or 'none'}.",
            code="other_version",
            field="--code",
            hint="Use --code ship, which sends the package along, or install the same version on the cluster.",
        )


def _new_id(spec: JobSpec) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", spec.store.url.rsplit("/", 1)[-1].lower()).strip("-")[:40]
    return f"{name or 'run'}-{secrets.token_hex(3)}"


def _send(job: SubmittedJob, cluster: Cluster, options: SubmitOptions, grows_from: str) -> None:
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
                grows_from=grows_from,
            ),
        )
