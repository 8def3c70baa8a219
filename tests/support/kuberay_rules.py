"""What KubeRay's ray.io/v1 resources and the Kubernetes objects around them may hold, as far as we use them.

Structural rules as JSON schemas, after the published definitions of KubeRay 1.5.1 to 1.7: required fields, types,
allowed values, and no key that is not named here, for Kubernetes drops such a key without a word.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def obj(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "required": list(required),
        "properties": required | (optional or {}),
        "additionalProperties": False,
    }


def many(items: Schema, least: int = 1) -> Schema:
    """A list."""
    return {"type": "array", "items": items, "minItems": least}


STRING: Schema = {"type": "string", "minLength": 1}
BOOLEAN: Schema = {"type": "boolean"}
COUNT: Schema = {"type": "integer", "minimum": 0}
STRINGS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(m|Ki|Mi|Gi|Ti)?$"}
LABEL: Schema = {"type": "string", "pattern": r"^[a-z]([-a-z0-9]*[a-z0-9])?$"}
LABELS: Schema = {
    "type": "object",
    "additionalProperties": {
        "type": "string",
        "maxLength": 63,
        "pattern": r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$",
    },
}


def metadata(longest: int) -> Schema:
    return obj({"name": {**LABEL, "maxLength": longest}, "namespace": {**LABEL, "maxLength": 63}, "labels": LABELS})


ENV = {
    "oneOf": [
        obj({"name": STRING, "value": {"type": "string"}}),
        obj(
            {
                "name": STRING,
                "valueFrom": obj({"secretKeyRef": obj({"name": STRING, "key": STRING}, {"optional": BOOLEAN})}),
            }
        ),
    ]
}

AMOUNTS: Schema = {"type": "object", "required": ["cpu", "memory"], "additionalProperties": QUANTITY}
RESOURCES = obj({"requests": AMOUNTS, "limits": AMOUNTS})
CONTAINER_SECURITY = obj(
    {"allowPrivilegeEscalation": {"const": False}, "capabilities": obj({"drop": {"const": ["ALL"]}})},
    {"readOnlyRootFilesystem": BOOLEAN},
)

CONTAINER = obj(
    {
        "name": LABEL,
        "image": STRING,
        "env": many(ENV),
        "resources": RESOURCES,
        "securityContext": CONTAINER_SECURITY,
        "volumeMounts": many(
            obj({"name": LABEL, "mountPath": {"type": "string", "pattern": "^/"}}, {"readOnly": BOOLEAN})
        ),
    },
    {
        "imagePullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
        "ports": many(obj({"name": {**LABEL, "maxLength": 15}, "containerPort": {"type": "integer"}})),
    },
)

VOLUME: Schema = {
    "oneOf": [
        obj({"name": LABEL, "emptyDir": obj({}, {"medium": {"const": "Memory"}, "sizeLimit": QUANTITY})}),
        obj({"name": LABEL, "configMap": obj({"name": STRING})}),
        obj({"name": LABEL, "persistentVolumeClaim": obj({"claimName": STRING})}),
    ]
}

TOLERATION: Schema = {
    "oneOf": [
        obj({"key": STRING, "operator": {"const": "Exists"}, "effect": STRING}),
        obj({"key": STRING, "operator": {"const": "Equal"}, "value": {"type": "string"}, "effect": STRING}),
    ]
}

POD = obj(
    {
        "containers": many(CONTAINER),
        "volumes": many(VOLUME),
        "securityContext": obj(
            {
                "runAsNonRoot": {"const": True},
                "runAsUser": {"type": "integer", "minimum": 1},
                "runAsGroup": {"type": "integer", "minimum": 1},
                "fsGroup": {"type": "integer"},
                "fsGroupChangePolicy": {"enum": ["OnRootMismatch", "Always"]},
                "seccompProfile": obj({"type": {"const": "RuntimeDefault"}}),
            }
        ),
        "automountServiceAccountToken": BOOLEAN,
    },
    {
        "serviceAccountName": STRING,
        "nodeSelector": LABELS,
        "tolerations": many(TOLERATION),
        "terminationGracePeriodSeconds": COUNT,
        "restartPolicy": {"enum": ["Never", "OnFailure"]},
    },
)

TEMPLATE = obj({"metadata": obj({"labels": LABELS}, {"annotations": STRINGS}), "spec": POD})

CLUSTER_SPEC = obj(
    {
        # With authOptions.mode token the operator wants a version, 2.52.0 at least.
        "rayVersion": {"type": "string", "pattern": r"^(2\.(5[2-9]|[6-9]\d|\d{3,})|[3-9])"},
        "authOptions": obj({"mode": {"const": "token"}}),
        "headGroupSpec": obj(
            {"rayStartParams": STRINGS, "template": TEMPLATE},
            {"serviceType": {"const": "ClusterIP"}, "enableIngress": {"const": False}},
        ),
        "workerGroupSpecs": many(
            obj(
                {
                    "groupName": LABEL,
                    "minReplicas": COUNT,
                    "maxReplicas": COUNT,
                    "rayStartParams": STRINGS,
                    "template": TEMPLATE,
                },
                {"replicas": COUNT, "numOfHosts": COUNT},
            )
        ),
    },
    {
        "enableInTreeAutoscaling": BOOLEAN,
        "autoscalerOptions": obj(
            {},
            {
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "idleTimeoutSeconds": COUNT,
                "resources": RESOURCES,
                "securityContext": CONTAINER_SECURITY,
            },
        ),
    },
)

LABEL_SELECTOR = obj({}, {"matchLabels": LABELS})

DOCUMENTS: dict[str, Schema] = {
    "ConfigMap": obj(
        {"apiVersion": {"const": "v1"}, "kind": STRING, "metadata": metadata(253), "data": STRINGS},
    ),
    "NetworkPolicy": obj(
        {
            "apiVersion": {"const": "networking.k8s.io/v1"},
            "kind": STRING,
            "metadata": metadata(253),
            "spec": obj(
                {
                    "podSelector": LABEL_SELECTOR,
                    "policyTypes": {"const": ["Ingress"]},
                    "ingress": many(
                        obj(
                            {"from": many(obj({"podSelector": LABEL_SELECTOR}, {"namespaceSelector": LABEL_SELECTOR}))},
                            {"ports": many(obj({"protocol": {"const": "TCP"}, "port": {"type": "integer"}}))},
                        )
                    ),
                }
            ),
        }
    ),
    "RayCluster": obj(
        {"apiVersion": {"const": "ray.io/v1"}, "kind": STRING, "metadata": metadata(53), "spec": CLUSTER_SPEC}
    ),
    "RayJob": obj(
        {
            "apiVersion": {"const": "ray.io/v1"},
            "kind": STRING,
            "metadata": metadata(47),
            "spec": obj(
                {"entrypoint": STRING, "rayClusterSpec": CLUSTER_SPEC},
                {
                    "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
                    "backoffLimit": COUNT,
                    "shutdownAfterJobFinishes": BOOLEAN,
                    "ttlSecondsAfterFinished": COUNT,
                    "submitterPodTemplate": TEMPLATE,
                },
            ),
        }
    ),
}
"""By kind."""
