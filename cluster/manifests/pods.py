"""Pod templates of a Ray cluster on Kubernetes: unprivileged, without credentials, with token authentication."""

from __future__ import annotations

from typing import Any

from .request import ClusterRequest
from .sizes import Size, head_size, worker_size

Manifest = dict[str, Any]

SPEC_FOLDER = "/etc/persona-atlas"
SPEC_FILE = "job.yaml"
CACHE_FOLDER = "/cache"
USER_ID = 1000

_REQUIRED_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
_OPTIONAL_KEYS = ("AWS_SESSION_TOKEN", "AWS_DEFAULT_REGION", "HF_TOKEN")

ENVIRONMENT = {
    # With this and without a token Ray refuses to start. So under an operator that is too old to create tokens the
    # cluster fails, instead of running open to everybody.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray starts its workers at nice 15 unless told otherwise.
    "RAY_worker_niceness": "0",
    "HF_HOME": f"{CACHE_FOLDER}/huggingface",
    "PERSONA_ATLAS_CACHE": f"{CACHE_FOLDER}/persona-atlas",
}

_SPOT_TAINTS = (("cloud.google.com/gke-spot", "true"), ("kubernetes.azure.com/scalesetpriority", "spot"))
_GPU_TAINT = ("nvidia.com/gpu", None)
_GPU_LABEL = "nvidia.com/gpu.product"

POD_SECURITY: Manifest = {
    "runAsNonRoot": True,
    "runAsUser": USER_ID,
    "runAsGroup": USER_ID,
    "fsGroup": USER_ID,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}

CONTAINER_SECURITY: Manifest = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
}


def labels(request: ClusterRequest) -> dict[str, str]:
    """Return the labels of every object of a cluster; its network policy selects pods by them."""
    return {"app.kubernetes.io/part-of": "persona-atlas", "app.kubernetes.io/instance": request.name}


def head_template(request: ClusterRequest) -> Manifest:
    """Build the template of the head's pod, marked so that autoscalers do not evict it."""
    container = _container(request, "ray-head", head_size(request))
    # KubeRay's service exposes exactly the ports that are named here; Ray's client port must not be among them.
    container["ports"] = [{"name": "gcs-server", "containerPort": 6379}, {"name": "dashboard", "containerPort": 8265}]
    container["volumeMounts"].append({"name": "spec", "mountPath": SPEC_FOLDER, "readOnly": True})
    pod = _pod(request, container, head_size(request))
    pod["volumes"].append({"name": "spec", "configMap": {"name": spec_name(request)}})
    # Only the autoscaler, a container beside the head, needs access to the Kubernetes API.
    pod["automountServiceAccountToken"] = request.scales
    keep = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    return {"metadata": {"labels": labels(request), "annotations": keep}, "spec": pod}


def worker_template(request: ClusterRequest) -> Manifest:
    """Build the template of a worker's pod: one replica with all its GPUs. It may be evicted at any time."""
    size = worker_size(request)
    pod = _pod(request, _container(request, "ray-worker", size), size)
    pod["automountServiceAccountToken"] = False
    pod["terminationGracePeriodSeconds"] = 30
    selector = dict(request.node_selector)
    if request.device is not None and request.device.node_label and size.gpus:
        selector.setdefault(_GPU_LABEL, request.device.node_label)
    if selector:
        pod["nodeSelector"] = selector
    taints = (*((_GPU_TAINT,) if size.gpus else ()), *(_SPOT_TAINTS if request.spot else ()), *request.tolerations)
    if taints:
        pod["tolerations"] = [_toleration(key, value) for key, value in taints]
    return {"metadata": {"labels": labels(request)}, "spec": pod}


def submitter_template(request: ClusterRequest) -> Manifest:
    """Build the template of the pod that submits the job; its labels let it through the network policy."""
    container: Manifest = {
        "name": "ray-job-submitter",
        "image": request.image,
        "env": [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "HOME", "value": "/tmp"}],
        "resources": {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "1Gi"}},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],
    }
    pod = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [{"name": "scratch", "emptyDir": {}}],
    }
    return {"metadata": {"labels": labels(request)}, "spec": pod}


def spec_name(request: ClusterRequest) -> str:
    """Return the name of the ConfigMap that holds the job's spec."""
    return f"{request.name}-spec"


def _pod(request: ClusterRequest, container: Manifest, size: Size) -> Manifest:
    if request.cache_claim is None:
        cache: Manifest = {"name": "cache", "emptyDir": {"sizeLimit": f"{size.disk_gib}Gi"}}
    else:
        cache = {"name": "cache", "persistentVolumeClaim": {"claimName": request.cache_claim}}
    pod: Manifest = {
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{size.shm_gib}Gi"}},
            {"name": "scratch", "emptyDir": {}},
            cache,
        ],
    }
    if request.service_account is not None:
        pod["serviceAccountName"] = request.service_account
    return pod


def _container(request: ClusterRequest, name: str, size: Size) -> Manifest:
    amounts = {"cpu": str(size.cpus), "memory": f"{size.memory_gib}Gi"}
    if size.gpus:
        amounts["nvidia.com/gpu"] = str(size.gpus)
    return {
        "name": name,
        "image": request.image,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment(request),
        "resources": {"requests": dict(amounts), "limits": dict(amounts)},
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},
            {"name": "scratch", "mountPath": "/tmp"},
            {"name": "cache", "mountPath": CACHE_FOLDER},
        ],
    }


def _environment(request: ClusterRequest) -> list[Manifest]:
    env: list[Manifest] = [{"name": key, "value": value} for key, value in (ENVIRONMENT | {"HOME": "/tmp"}).items()]
    if request.secret is not None:
        env += [_from_secret(request.secret, key, optional=False) for key in _REQUIRED_KEYS]
        env += [_from_secret(request.secret, key, optional=True) for key in _OPTIONAL_KEYS]
    return env


def _from_secret(secret: str, key: str, *, optional: bool) -> Manifest:
    reference: Manifest = {"name": secret, "key": key}
    if optional:
        reference["optional"] = True
    return {"name": key, "valueFrom": {"secretKeyRef": reference}}


def _toleration(key: str, value: str | None) -> Manifest:
    if value is None:
        return {"key": key, "operator": "Exists", "effect": "NoSchedule"}
    return {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
