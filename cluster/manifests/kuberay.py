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
_KEPT_S = 600
"""How long a finished job's cluster stays, so that its logs can be read."""

_RETRIES = 2
"""Clusters that follow a job whose driver was lost; each goes on where the last one stopped."""


def raycluster(request: ClusterRequest) -> list[Manifest]:
    """Render a RayCluster that stays until it is deleted, with the job's spec on its head."""
    cluster = {"apiVersion": API_VERSION, "kind": "RayCluster", "metadata": _metadata(request, request.name)}
    return [_config_map(request), _network_policy(request), cluster | {"spec": _cluster_spec(request)}]


def rayjob(request: ClusterRequest) -> list[Manifest]:
    """Render a RayJob: a cluster for this one job, which ends with it."""
    spec = {
        "entrypoint": entrypoint(request),
        "submissionMode": "K8sJobMode",
        "backoffLimit": _RETRIES,
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _KEPT_S,
        "submitterPodTemplate": submitter_template(request),
        "rayClusterSpec": _cluster_spec(request),
    }
    job = {"apiVersion": API_VERSION, "kind": "RayJob", "metadata": _metadata(request, request.name), "spec": spec}
    return [_config_map(request), _network_policy(request), job]


def entrypoint(request: ClusterRequest) -> str:
    """Give the command that works the job, on the head."""
    words = ["persona-atlas", "run", f"{SPEC_FOLDER}/{SPEC_FILE}", "--address", "auto"]
    return shlex.join([*words, *(word for text in request.demand for word in ("--set", text))])


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
                "groupName": f"gpu-x{request.gpus_per_replica}" if request.gpus_per_replica else "cpu",
                "replicas": request.replicas_min,
                "minReplicas": request.replicas_min,
                "maxReplicas": request.replicas_max,
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
    stated: dict[str, Any] = request.spec.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(stated, sort_keys=False, allow_unicode=True)
    metadata = _metadata(request, spec_name(request))
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {SPEC_FILE: text}}


def _network_policy(request: ClusterRequest) -> Manifest:
    """Only the cluster's own pods reach it, and the operator its job port; nothing else in Kubernetes does."""
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
