"""A Ray cluster on Kubernetes, through the KubeRay operator (1.5.1 or later, for its token authentication)."""

from __future__ import annotations

import shlex
from typing import Any

import yaml

from .pods import (
    SPEC_FILE,
    SPEC_FOLDER,
    Manifest,
    head_template,
    labels,
    spec_name,
    submitter_template,
    worker_template,
)
from .request import ClusterRequest
from .sizes import OBJECT_STORE_BYTES

API_VERSION = "ray.io/v1"

_DASHBOARD_PORT = 8265
_IDLE_S = 600
_TTL_S = 600
"""How long the cluster of a finished job stays, so that its logs can be read."""

_RETRIES = 2
"""New clusters for a job whose head was lost; each continues from the committed units."""


def raycluster(request: ClusterRequest) -> list[Manifest]:
    """Render a RayCluster, which stays until it is deleted, with the job's spec on its head."""
    cluster = {"apiVersion": API_VERSION, "kind": "RayCluster", "metadata": _metadata(request, request.name)}
    return [_config_map(request), _network_policy(request), cluster | {"spec": _cluster_spec(request)}]


def rayjob(request: ClusterRequest) -> list[Manifest]:
    """Render a RayJob: a cluster for this one job, deleted after the job has ended."""
    spec = {
        "entrypoint": entrypoint(request),
        "submissionMode": "K8sJobMode",
        "backoffLimit": _RETRIES,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _TTL_S,
        "submitterPodTemplate": submitter_template(request),
        "rayClusterSpec": _cluster_spec(request),
    }
    job = {"apiVersion": API_VERSION, "kind": "RayJob", "metadata": _metadata(request, request.name), "spec": spec}
    return [_config_map(request), _network_policy(request), job]


def entrypoint(request: ClusterRequest) -> str:
    """Return the shell command that runs the job on the head."""
    command = ["persona-atlas", "run", f"{SPEC_FOLDER}/{SPEC_FILE}", "--address", "auto"]
    return shlex.join([*command, *(word for text in request.demand for word in ("--set", text))])


def _cluster_spec(request: ClusterRequest) -> Manifest:
    spec: Manifest = {
        "rayVersion": request.ray_version,
        "authOptions": {"mode": "token"},
        "enableInTreeAutoscaling": request.scales,
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            "enableIngress": False,
            "rayStartParams": {"num-cpus": "0", "object-store-memory": str(OBJECT_STORE_BYTES)},
            "template": head_template(request),
        },
        "workerGroupSpecs": [
            {
                "groupName": f"gpu-x{request.gpus_per_node}" if request.gpus_per_node else "cpu",
                # Each pod is a node of its own, whatever replica it is a part of: the job forms the groups.
                "replicas": request.nodes_min,
                "minReplicas": request.nodes_min,
                "maxReplicas": request.nodes_max,
                "numOfHosts": 1,
                "rayStartParams": {"object-store-memory": str(OBJECT_STORE_BYTES)},
                "template": worker_template(request),
            }
        ],
    }
    if request.scales:
        spec["autoscalerOptions"] = {
            "upscalingMode": "Default",
            "idleTimeoutSeconds": _IDLE_S,
            "resources": {"requests": _AUTOSCALER, "limits": _AUTOSCALER},
            "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        }
    return spec


_AUTOSCALER = {"cpu": "500m", "memory": "1Gi"}


def _config_map(request: ClusterRequest) -> Manifest:
    given: dict[str, Any] = request.spec.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(given, sort_keys=False, allow_unicode=True)
    metadata = _metadata(request, spec_name(request))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {SPEC_FILE: text}}


def _network_policy(request: ClusterRequest) -> Manifest:
    """Admit traffic from the cluster's own pods, and from the operator to the job port; nothing else."""
    ours = {"podSelector": {"matchLabels": labels(request)}}
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/component": "kuberay-operator"}},
    }
    spec = {
        "podSelector": {"matchLabels": labels(request)},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [ours]},
            {"from": [operator], "ports": [{"protocol": "TCP", "port": _DASHBOARD_PORT}]},
        ],
    }
    metadata = _metadata(request, f"{request.name}-inside-only")
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": metadata, "spec": spec}


def _metadata(request: ClusterRequest, name: str) -> Manifest:
    return {"name": name, "namespace": request.namespace, "labels": labels(request)}
