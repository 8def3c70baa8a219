"""A Ray cluster on VMs, for ``ray up``: machines of AWS, or machines one has, each running our image.

Ray's ports are open among the machines alone; the dashboard and the job port listen on the head's loopback, and a
person reaches them through ssh. The token is a file that ``ray up`` carries from the user's machine to every other.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...jobs.errors import InputError
from .pods import CACHE_FOLDER, ENVIRONMENT, USER_ID, Manifest
from .request import ClusterRequest
from .sizes import OBJECT_STORE_BYTES, head_size, worker_size

TOKEN_FILE = "~/.ray/auth_token"
SPEC_PATH = "~/job.yaml"
_HEAD_VM = "m7i.2xlarge"
_IDLE_MINUTES = 10


@dataclass(frozen=True)
class Machines:
    """Where the machines are from.

    Attributes:
        region: Of AWS.
        hosts: Addresses of machines that are there, the head first; empty rents them from AWS.
        ssh_user: Who may log in to them.
    """

    region: str = "us-east-1"
    hosts: tuple[str, ...] = ()
    ssh_user: str = "ubuntu"


def ray_vm(request: ClusterRequest, machines: Machines, spec_file: str) -> Manifest:
    """Render a cluster-launcher configuration; see :func:`how_to_use` for what to do with it.

    Args:
        request: The cluster.
        machines: Where it stands.
        spec_file: The job's file on this machine; it is carried to the head.

    Raises:
        InputError: Credentials by Kubernetes secret, no role or no kind of machine on AWS, or too few hosts.
    """
    if request.secret is not None:
        raise InputError(
            "names a Kubernetes secret; VMs have none.",
            code="no_secret_here",
            field="--secret",
            hint="Give the machines a role that may write to the store (--service-account: the instance profile).",
        )
    config: Manifest = {
        "cluster_name": request.name,
        "max_workers": 0,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": _IDLE_MINUTES,
        "docker": _docker(request),
        "provider": {},
        "auth": {"ssh_user": machines.ssh_user},
        "file_mounts": {TOKEN_FILE: TOKEN_FILE, SPEC_PATH: str(Path(spec_file).resolve())},
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
    return config | (_own(request, machines) if machines.hosts else _aws(request, machines))


def how_to_use(request: ClusterRequest, overrides: Sequence[str]) -> str:
    """Give the commands that bring a rendered cluster up and start the job on it, as comments of its file.

    Args:
        request: The cluster.
        overrides: What was set over the spec's file, which is carried as it is.
    """
    file = f"{request.name}.yaml"
    settings = (word for text in (*overrides, *request.demand) for word in ("--set", text))
    job = shlex.join(["run", SPEC_PATH, "--address", "auto", *settings])
    lines = [
        "ray get-auth-token --generate        # once: the token that this file carries to every machine",
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
    """The image's user is not root: the folder for models must be its own before the container starts."""
    folder = f"/var/tmp/{request.name}"
    return [f"mkdir -p {folder} && sudo chown {USER_ID}:{USER_ID} {folder}"]


def _own(request: ClusterRequest, machines: Machines) -> Manifest:
    head, *workers = machines.hosts
    if not workers:
        raise InputError(
            "names the head alone; no replica stands on it.",
            code="too_few_hosts",
            field="--hosts",
            hint="Give the head's address and those of the machines that work, with commas between.",
        )
    return {
        "max_workers": len(workers),
        "provider": {"type": "local", "head_ip": head, "worker_ips": workers},
        "initialization_commands": _make_cache(request),
    }


def _aws(request: ClusterRequest, machines: Machines) -> Manifest:
    device = request.device
    if request.service_account is None:
        raise InputError(
            "is needed: an instance profile that may write to the bucket, start and end machines and pass itself on.",
            code="no_role",
            field="--service-account",
            hint="Name one that you have made.",
        )
    if device is None or device.vm_type is None:
        raise InputError(
            "is needed: a kind of device whose line in the table names a machine (vm_type).",
            code="no_vm_type",
            field="--gpu-type",
            hint="For example --gpu-type H100, or --hosts for machines that are there.",
        )
    per_machine = device.per_node if request.gpus_per_replica else 1
    fewest, most = (math.ceil(gpus / per_machine) for gpus in (request.gpus_min, request.gpus_max))
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
