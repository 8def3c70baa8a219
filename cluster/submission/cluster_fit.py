"""What a cluster must have to run a job: Ray, Python, and nodes on which a replica fits. Starts and sends nothing."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from importlib.metadata import version
from typing import Literal

from ...jobs.errors import InputError
from ...jobs.sizing.estimate import Estimate
from ...jobs.specs.spec import JobSpec
from ...jobs.vllm.replica_nodes import nodes_of_replica, spread
from ...jobs.wording import count_of
from .ray_cluster import ClusterInfo

Code = Literal["ship", "installed"]

_OLDEST_RAY = (2, 50)
"""The lower bound in ``pyproject.toml``."""


@dataclass(frozen=True, slots=True)
class SubmitOptions:
    """Where a job's code comes from and where its driver runs.

    Attributes:
        code: ``ship`` uploads this package with the job; ``installed`` uses the package that the nodes have.
        image: Container image for the job's processes, which has the package; None: they run on the nodes as they are.
        driver_resource: Name of a Ray resource that the driver's node must have; empty: the head.
        may_scale_up: Whether an autoscaler will add nodes that the cluster does not have yet.
    """

    code: Code = "ship"
    image: str | None = None
    driver_resource: str = ""
    may_scale_up: bool = False


def refuse_cluster(info: ClusterInfo, spec: JobSpec, options: SubmitOptions) -> None:
    """Refuse a cluster that cannot run a spec.

    Args:
        info: The cluster.
        spec: The job.
        options: Where its code comes from; an image brings its own Python.

    Raises:
        InputError: Ray is too old, Python differs, or there is no GPU for a spec that needs one; names both sides.
    """
    if tuple(map(int, re.findall(r"\d+", info.ray_version)[:2])) < _OLDEST_RAY:
        raise InputError(
            f"Ray must be {'.'.join(map(str, _OLDEST_RAY))} or later, but the cluster has {info.ray_version}.",
            code="other_ray",
            field="--address",
            hint=f"Update Ray on the cluster; {version('ray')}, the version installed here, works.",
        )
    here, there = minor_version(platform.python_version()), minor_version(info.python_version)
    if here != there and options.image is None:
        raise InputError(
            f"the minor version of Python must be the same, but this machine has {here} and the cluster "
            f"{info.python_version}.",
            code="other_python",
            field="--address",
            hint=f"Submit from Python {there}, or give an --image that has Python {here} and this package.",
        )
    if spec.placement.device == "cuda" and not info.num_gpus and not (options.may_scale_up and spec.placement.replicas):
        raise InputError(
            "is cuda, but the cluster has no GPU.",
            code="no_gpu",
            field="placement.device",
            hint="Use auto or cpu; or, if an autoscaler adds GPUs, set placement.replicas and give --scale-up.",
        )


def refuse_what_fits_no_node(info: ClusterInfo, spec: JobSpec, figures: Estimate | None) -> None:
    """Refuse a job of which no node of the cluster could hold a replica.

    Workers check the memory of their own machine again before they load the model.

    Args:
        info: The cluster.
        spec: The job.
        figures: Estimate of its plan; None when it could not be planned on this machine.

    Raises:
        InputError: Names what one replica needs and what the largest node has.
    """
    threads = spec.placement.threads or 1
    if threads > info.cores:
        raise InputError(
            f"is {threads} cores on one node, but the largest node has {info.cores}.",
            code="does_not_fit",
            field="placement.threads",
            hint="Lower it, or start a node with more --num-cpus; give --scale-up if an autoscaler adds such nodes.",
        )
    uses_gpu = spec.placement.device == "cuda" or (spec.placement.device == "auto" and info.num_gpus > 0)
    if uses_gpu:
        _refuse_too_few_gpus(info, spec)
    available_bytes = info.gpu_bytes if uses_gpu else info.memory_bytes
    if figures is None or available_bytes is None:
        return
    needed_bytes = figures.device_bytes if uses_gpu else figures.machine_bytes
    if needed_bytes > available_bytes:
        what = "GPU" if uses_gpu else "node"
        raise InputError(
            f"one replica of {spec.model.source!r} needs {needed_bytes / 1e9:.1f} GB"
            f"{' on each GPU' if uses_gpu and figures.gpus_per_replica > 1 else ''}, but the largest {what} of the "
            f"cluster has {available_bytes / 1e9:.1f} GB.",
            code="does_not_fit",
            field="model.source",
            hint="Try a narrower model.dtype, a smaller placement.batch_tokens or fewer capture.layers; `persona-atlas "
            "plan` shows what fits which device.",
        )


def _refuse_too_few_gpus(info: ClusterInfo, spec: JobSpec) -> None:
    """Refuse replicas of several GPUs for which the cluster's nodes have no place: a stage of a replica is on one node.

    Raises:
        InputError: Not one replica, or fewer than the spec asks for, have a place.
    """
    placement = spec.placement
    size, asked = placement.gpus_per_replica, placement.replicas or 1
    _, places = spread(
        info.gpus_by_node,
        tensor_parallel=placement.tensor_parallel,
        pipeline_parallel=placement.pipeline_parallel,
        replicas=asked,
    )
    # Nodes that have not reported their GPUs are not held against the job; replicas of one GPU wait for one.
    if not info.gpus_by_node or size == 1 or places >= asked:
        return
    has = ", ".join(map(str, sorted(info.gpus_by_node, reverse=True)))
    most = max(info.gpus_by_node)
    over = nodes_of_replica(placement.tensor_parallel, placement.pipeline_parallel, most) or 1
    wider = "pipeline_parallel" if placement.pipeline_parallel > 1 else "tensor_parallel"
    where = "one node" if over == 1 else f"each of {over} nodes"
    takes = f"{count_of(size // over, 'GPU')} of {where}"
    raise InputError(
        f"a replica takes {takes}, so the cluster's nodes ({has} GPUs) hold "
        f"{count_of(places, 'replica')}, and the job asks for {asked}.",
        code="does_not_fit",
        field="placement.replicas" if places else f"placement.{wider}",
        hint=f"Ask for at most {places}; give --scale-up if an autoscaler adds nodes."
        if places
        else f"Ask for at most {most}; give --scale-up if an autoscaler adds larger nodes.",
    )


def minor_version(version: str) -> str:
    """Return the part of a version of Python that has to be the same on both sides, as ``3.11``."""
    return ".".join(version.split(".")[:2])
