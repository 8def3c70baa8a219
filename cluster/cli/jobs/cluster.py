"""``persona-atlas cluster``: render the files that create a cluster. Starts nothing and contacts no cluster."""

from __future__ import annotations

from typing import Any

import click
import yaml

from ....jobs.engines import refuse_parallel_builtin
from ....jobs.errors import InputError
from ....jobs.sizing.devices import DeviceTable, load_devices
from ....jobs.sizing.estimate import Estimate
from ....jobs.sizing.fit import fits, require_fit
from ....jobs.sizing.streaming import estimates_of
from ....jobs.specs.spec import JobSpec, load_spec
from ....jobs.vllm.replica_nodes import nodes_of_replica
from ...manifests.dockerfile import dockerfile
from ...manifests.kuberay import raycluster, rayjob
from ...manifests.launcher import Machines, how_to_use, ray_vm
from ...manifests.request import DEFAULT_IMAGE, ClusterRequest, pair
from ...run.prepare import sketch_plan
from .. import output
from ..options import json_option, set_option
from .plan import main_figures

_KINDS = ("rayjob", "raycluster", "ray-vm", "dockerfile")


@click.group()
def cluster() -> None:
    """Render the files that create a cluster: KubeRay manifests, a cluster-launcher file for VMs, a Dockerfile."""


@cluster.command()
@click.option("--kind", type=click.Choice(_KINDS), required=True, help="What to render.")
@click.option("--spec", "spec_file", type=click.Path(), default=None, help="The job; optional for dockerfile.")
@set_option
@click.option(
    "--name", default="persona-atlas", show_default=True, help="Name of the cluster and prefix of its objects."
)
@click.option("--namespace", default="default", show_default=True, help="Kubernetes namespace.")
@click.option("--image", default=DEFAULT_IMAGE, show_default=True, help="Image that you have built and pushed.")
@click.option("--gpus-min", type=click.IntRange(min=0, max=1_000_000), help="Fewest GPUs; by default --gpus-max.")
@click.option(
    "--gpus-max", type=click.IntRange(min=1, max=1_000_000), help="Most GPUs; by default those of the spec's replicas."
)
@click.option("--gpu-type", default=None, metavar="NAME", help="A device of the table, such as H100.")
@click.option("--devices", "devices_file", type=click.Path(), default=None, help="Your own table of devices.")
@click.option("--node-selector", multiple=True, metavar="KEY=VALUE", help="Label of worker nodes; repeatable.")
@click.option("--toleration", multiple=True, metavar="KEY[=VALUE]", help="Tolerated taint; repeatable.")
@click.option("--spot", is_flag=True, help="Run workers on spot machines.")
@click.option(
    "--secret", default=None, help="Kubernetes secret with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN."
)
@click.option(
    "--service-account", default=None, help="Account that may write to the store; on VMs, an instance profile."
)
@click.option("--cache-claim", default=None, help="PersistentVolumeClaim for model files, writable by all pods.")
@click.option("--region", default="us-east-1", show_default=True, help="AWS region, for ray-vm.")
@click.option("--hosts", default="", metavar="HEAD,WORKER,...", help="Existing machines instead of AWS, for ray-vm.")
@click.option("--ssh-user", default="ubuntu", show_default=True, help="User to log in as, for ray-vm.")
@json_option
def render(
    kind: str,
    spec_file: str | None,
    overrides: tuple[str, ...],
    region: str,
    hosts: str,
    ssh_user: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Print the file for the job in a spec, to be used with kubectl, ray up or docker build.

    It never holds credentials: they come from a secret, a service account or a machine's role.
    """
    spec = load_spec(spec_file, overrides) if spec_file is not None else None
    usage = ""
    if kind == "dockerfile":
        text, documents = dockerfile(spec), []
    elif spec is None or spec_file is None:
        raise InputError(
            "is missing.",
            code="usage",
            field="--spec",
            hint=f"A {kind} is rendered for one job; give its spec with --spec FILE.",
        )
    else:
        request = _request(spec, **options)
        if kind == "ray-vm":
            machines = Machines(region, tuple(filter(None, hosts.split(","))), ssh_user)
            documents = [ray_vm(request, machines, spec_file)]
            usage = how_to_use(request, overrides)
        else:
            documents = rayjob(request) if kind == "rayjob" else raycluster(request)
        text = usage + yaml.dump_all(documents, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True, width=120)
    if as_json:
        output.document({"kind": kind, "documents": documents, "text": text})
    else:
        output.text(text.rstrip())


def _request(
    spec: JobSpec,
    *,
    gpus_min: int | None,
    gpus_max: int | None,
    gpu_type: str | None,
    devices_file: str | None,
    node_selector: tuple[str, ...],
    toleration: tuple[str, ...],
    **named: Any,
) -> ClusterRequest:
    """Plan the job, refuse what a run would refuse or what fits no chosen device, and build the request."""
    say = output.progress().say
    refuse_parallel_builtin(spec.placement)
    table = load_devices(devices_file).of_kind("cpu" if spec.placement.device == "cpu" else "cuda")
    table = table if gpu_type is None else table.only(gpu_type, "--gpu-type")
    # Sizes do not depend on interventions, whose axis only the cluster may be able to read.
    planned = sketch_plan(spec.model_copy(update={"interventions": None}), output.progress()).plan
    figures = main_figures(estimates_of(planned, table), table)
    require_fit(planned, figures, table)
    if named["image"] == DEFAULT_IMAGE:
        say(f"The image {DEFAULT_IMAGE} exists only where you built it. Push it, and give its full name with --image.")
    most = gpus_max or figures.gpus_per_replica * (spec.placement.replicas or 1)
    if named["secret"] is None and named["service_account"] is None:
        say("Without --secret and --service-account the nodes' own role must be allowed to write to the store.")
    return ClusterRequest(
        spec,
        figures,
        gpus_min=most if gpus_min is None else gpus_min,
        gpus_max=most,
        device=table.devices[gpu_type] if gpu_type is not None else None,
        nodes_per_replica=1 if spec.placement.device == "cpu" else _nodes_per_replica(figures, table),
        node_selector={key: value or "" for key, value in (pair(text, "--node-selector") for text in node_selector)},
        tolerations=tuple(pair(text, "--toleration") for text in toleration),
        **named,
    )


def _nodes_per_replica(figures: Estimate, table: DeviceTable) -> int:
    """Return over how many nodes a replica is spread: as few as it needs on some device that it fits."""
    size, stages = figures.tensor_parallel, figures.pipeline_parallel
    fitting = [device for device in table.devices.values() if fits(figures, device, size)]
    return min(nodes_of_replica(size, stages, device.per_node) or 1 for device in fitting)


class _PlainDumper(yaml.SafeDumper):
    """Writes long texts as literal scalars, and repeats values instead of using anchors: people read these files."""

    def ignore_aliases(self, data: Any) -> bool:
        """Repeat equal values instead of referring to the first."""
        return True


def _literal(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_PlainDumper.add_representer(str, _literal)
