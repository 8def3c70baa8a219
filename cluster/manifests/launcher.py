"""A cluster-launcher file for ``ray up``: VMs of AWS, or existing machines, each running our image.

The dashboard and the job port listen on the head's loopback interface only, so users reach them through ssh. ``ray up``
copies the token file from the user's machine to every other.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...jobs.errors import InputError
from ...jobs.files.user_paths import expand_home
from .pods import CACHE_FOLDER, ENVIRONMENT, USER_ID, Manifest
from .request import ClusterRequest
from .sizes import OBJECT_STORE_BYTES, head_size, worker_size

TOKEN_FILE = "~/.ray/auth_token"
SPEC_PATH = "~/job.yaml"
_HEAD_VM = "m7i.2xlarge"
_IDLE_MINUTES = 10


@dataclass(frozen=True)
class Machines:
    """Where the machines come from.

    Attributes:
        region: AWS region.
        hosts: Addresses of existing machines, the head first; empty: machines are rented from AWS.
        ssh_user: User to log in as.
    """

    region: str = "us-east-1"
    hosts: tuple[str, ...] = ()
    ssh_user: str = "ubuntu"


def ray_vm(request: ClusterRequest, machines: Machines, spec_file: str) -> Manifest:
    """Render a cluster-launcher configuration; :func:`how_to_use` gives the commands to use it.

    Args:
        request: The cluster.
        machines: Where its machines come from.
        spec_file: The job's spec file on this machine; ``ray up`` copies it to the head.

    Raises:
        InputError: The request names a Kubernetes secret, there is no worker among the hosts, or AWS lacks an instance
            profile or VM type.
    """
    if request.secret is not None:
        raise InputError(
            f"is {request.secret!r}, but VMs cannot use a Kubernetes secret.",
            code="no_secret_here",
            field="--secret",
            hint="Use --service-account with an instance profile whose role may write to the store.",
        )
    config: Manifest = {
        "cluster_name": request.name,
        "max_workers": 0,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": _IDLE_MINUTES,
        "docker": _docker(request),
        "provider": {},
        "auth": {"ssh_user": machines.ssh_user},
        "file_mounts": {TOKEN_FILE: TOKEN_FILE, SPEC_PATH: str(Path(expand_home(spec_file, "--spec")).resolve())},
        "head_start_ray_commands": [
            "ray stop",
            "ulimit -n 65536; ray start --head --port=6379 --num-cpus=0 --dashboard-host=127.0.0.1 "
            f"--object-store-memory={OBJECT_STORE_BYTES} --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": [
            "ray stop",
            f"ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379 --object-store-memory={OBJECT_STORE_BYTES}",
        ],
    }
    return config | (_on_hosts(request, machines) if machines.hosts else _on_aws(request, machines))


def how_to_use(request: ClusterRequest, overrides: Sequence[str]) -> str:
    """Return the commands that start a rendered cluster and run the job on it, as comments for the top of its file.

    Args:
        request: The cluster.
        overrides: Assignments of ``--set``, which the copied spec file does not contain.
    """
    file = f"{request.name}.yaml"
    settings = (word for text in (*overrides, *request.demand) for word in ("--set", text))
    job = shlex.join(["run", SPEC_PATH, "--address", "auto", *settings])
    lines = [
        "ray get-auth-token --generate        # once: creates the token that ray up copies",
        f"RAY_AUTH_MODE=token ray up {file}",
        f"ray exec {file} {shlex.quote('persona-atlas ' + job.replace(shlex.quote(SPEC_PATH), SPEC_PATH))}",
        f"ray down {file}",
    ]
    return "".join(f"# {line}\n" for line in lines)


def _docker(request: ClusterRequest) -> Manifest:
    options = [f"--env {key}={value}" for key, value in ENVIRONMENT.items()]
    options += [
        f"--volume /var/tmp/{request.name}:{CACHE_FOLDER}",
        f"--shm-size={worker_size(request).shm_gib}g",
        "--security-opt no-new-privileges",
        "--ulimit nofile=65536:65536",
    ]
    return {
        "image": request.image,
        "container_name": request.name.replace("-", "_"),
        "pull_before_run": True,
        "run_options": options,
    }


def _make_cache(request: ClusterRequest) -> list[str]:
    """Return the commands that create the model folder with the image's unprivileged user as its owner.

    Docker would create a missing folder as root, and the container could not write to it.
    """
    folder = f"/var/tmp/{request.name}"
    return [f"mkdir -p {folder} && sudo chown {USER_ID}:{USER_ID} {folder}"]


def _on_hosts(request: ClusterRequest, machines: Machines) -> Manifest:
    head, *workers = machines.hosts
    if not workers:
        raise InputError(
            f"is {head!r} alone, but the head runs no replica.",
            code="too_few_hosts",
            field="--hosts",
            hint="Give the address of the head and of at least one worker, separated by commas.",
        )
    return {
        "max_workers": len(workers),
        "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
        "initialization_commands": _make_cache(request),
    }


def _on_aws(request: ClusterRequest, machines: Machines) -> Manifest:
    device = request.device
    if request.service_account is None:
        raise InputError(
            "is required on AWS: an instance profile that may write to the bucket, start and stop machines, and pass "
            "itself on.",
            code="no_role",
            field="--service-account",
            hint="Create one and give its name.",
        )
    if device is None or device.vm_type is None:
        raise InputError(
            "is required on AWS: a device whose entry in the table has a vm_type.",
            code="no_vm_type",
            field="--gpu-type",
            hint="For example --gpu-type H100; or use --hosts for existing machines.",
        )
    per_machine = device.per_node if request.gpus_per_replica else 1
    fewest, most = (math.ceil(gpus / per_machine) for gpus in (request.gpus_min, request.gpus_max))
    if request.nodes_per_replica > 1:
        # The parts of a replica are on machines of their own; those of several replicas may share them.
        parts = per_machine // request.gpus_per_node
        fewest, most = (
            max(request.nodes_per_replica, math.ceil(nodes / parts)) for nodes in (request.nodes_min, request.nodes_max)
        )
    worker = _node_config(request, device.vm_type, worker_size(request).disk_gib)
    if request.spot:
        worker["InstanceMarketOptions"] = {"MarketType": "spot"}
    resources = {"GPU": per_machine} if request.gpus_per_replica else {}
    return {
        "max_workers": most,
        "provider": {"type": "aws", "region": machines.region, "cache_stopped_nodes": False},
        "available_node_types": {
            "head": {
                "resources": {"CPU": 0},
                "min_workers": 0,
                "max_workers": 0,
                "node_config": _node_config(request, _HEAD_VM, head_size(request).disk_gib),
            },
            "worker": {"resources": resources, "min_workers": fewest, "max_workers": most, "node_config": worker},
        },
        "head_node_type": "head",
        "initialization_commands": _make_cache(request),
    }


def _node_config(request: ClusterRequest, vm_type: str, disk_gib: int) -> dict[str, Any]:
    disk = {"VolumeSize": disk_gib + 100, "VolumeType": "gp3", "Encrypted": True}
    return {
        "InstanceType": vm_type,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
        "IamInstanceProfile": {"Name": request.service_account},
    }
