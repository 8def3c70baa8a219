"""The request for a cluster: job, image, number and type of GPUs, source of credentials. Validated when it is made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import PurePosixPath

from ...jobs.catalog import BUILTIN
from ...jobs.errors import InputError
from ...jobs.sizing.devices import Device
from ...jobs.sizing.estimate import Estimate
from ...jobs.specs.spec import JobSpec
from ...jobs.specs.spec_parts import BUILTIN_TEMPLATE_SCHEME, PACKAGE_SCHEME
from ...jobs.version import __version__
from ...jobs.wording import count_of

DEFAULT_IMAGE = f"persona-atlas:{__version__}"
"""Name of the image that our Dockerfile builds; a cluster needs it in a registry that it can reach."""

_MAX_NAME = 47
"""KubeRay appends a suffix to a RayJob's name, and refuses longer names."""

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class ClusterRequest:
    """A cluster for one job.

    Attributes:
        spec: The job.
        figures: Estimate of its plan; one replica fits the requested devices.
        name: Name of the cluster, and prefix of the names of its objects.
        namespace: Kubernetes namespace.
        image: Container image with this package; see the Dockerfile.
        gpus_min: Fewest GPUs; CPU replicas for a job without GPUs.
        gpus_max: Most GPUs; more than ``gpus_min`` turns on Ray's autoscaler.
        device: Entry of the device table for the GPUs; None: GPUs of any type.
        nodes_per_replica: Nodes that a replica's stages are spread over.
        node_selector: Labels that a worker's node must have.
        tolerations: Taints that a worker tolerates, as (key, value); value None tolerates any value.
        spot: Run workers on spot machines, which the provider may take back.
        secret: Kubernetes secret with ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and optionally ``HF_TOKEN``.
        service_account: Kubernetes service account, or instance profile of VMs, that may write to the store.
        cache_claim: PersistentVolumeClaim for model files, writable by all pods; None: each pod downloads its own.
        ray_version: Version of Ray in the image.
    """

    spec: JobSpec
    figures: Estimate
    name: str = "persona-atlas"
    namespace: str = "default"
    image: str = DEFAULT_IMAGE
    gpus_min: int = 1
    gpus_max: int = 1
    device: Device | None = None
    nodes_per_replica: int = 1
    node_selector: Mapping[str, str] = field(default_factory=dict)
    tolerations: tuple[tuple[str, str | None], ...] = ()
    spot: bool = False
    secret: str | None = None
    service_account: str | None = None
    cache_claim: str | None = None
    ray_version: str = field(default_factory=lambda: version("ray"))

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > _MAX_NAME:
            raise InputError(
                f"must be at most {_MAX_NAME} characters of a-z, 0-9 and -, beginning with a letter and not ending "
                f"with -, but is {self.name!r}.",
                code="bad_name",
                field="--name",
                hint="For example --name llama-70b.",
            )
        self._check_numbers()
        self._check_paths()

    def _check_numbers(self) -> None:
        size = self.figures.gpus_per_replica
        for option, gpus in (("--gpus-max", self.gpus_max), ("--gpus-min", self.gpus_min)):
            if gpus % size:
                raise InputError(
                    f"must be a multiple of {size}, the GPUs of a replica, but is {gpus}.",
                    code="not_whole_replicas",
                    field=option,
                    hint=f"For example {max(1, gpus // size) * size}.",
                )
        if not 0 <= self.gpus_min <= self.gpus_max or not self.gpus_max:
            raise InputError(
                f"must not be above --gpus-max, which must not be 0, but they are {self.gpus_min} and {self.gpus_max}.",
                code="bad_bounds",
                field="--gpus-min",
                hint="Lower --gpus-min or raise --gpus-max.",
            )
        if self.nodes_per_replica > 1 and not self.gpus_min:
            # A job learns from the cluster's nodes over how many a replica is to be spread.
            raise InputError(
                f"must be at least {size}, because a replica is spread over {self.nodes_per_replica} nodes, but is 0.",
                code="no_nodes_to_spread_over",
                field="--gpus-min",
                hint=f"Give --gpus-min {size}, the GPUs of one replica.",
            )
        asked = self.spec.placement.replicas
        if asked is not None and self.gpus_min > asked * size:
            raise InputError(
                f"brings up {count_of(self.gpus_min, 'GPU')} at least, but the job uses {asked * size}.",
                code="idle_gpus",
                field="--gpus-max" if self.gpus_min == self.gpus_max else "--gpus-min",
                hint=f"Ask for {asked * size}, or for more replicas: --set placement.replicas={self.gpus_min // size}.",
            )

    def _check_paths(self) -> None:
        """Refuse paths of this machine: a cluster needs an object store, and folders must be in the image."""
        if not self.spec.store.url.startswith("s3://"):
            raise InputError(
                "must be in an object store, because the machines of a cluster share no disk, but is "
                f"{self.spec.store.url!r}.",
                code="store_not_shared",
                field="store.url",
                hint="For example --set store.url=s3://bucket/prefix.",
            )
        model, catalog, catalog_field = self.spec.model, self.spec.personas.catalog, "personas.catalog"
        adapter, template = model.adapter or "", model.chat_template
        texts = self.spec.texts_path
        texts_of = None if self.spec.conversations is None else self.spec.conversations.texts_of
        if self.spec.harm is not None:
            catalog, catalog_field = self.spec.harm.catalog, "harm.catalog"
        for name, path, is_local in (
            ("model.source", model.source, _looks_local(model.source)),
            ("model.adapter", adapter, _looks_local(adapter)),
            ("model.chat_template", template, template is not None and not _is_at_hand(template)),
            (catalog_field, catalog, catalog != BUILTIN and not PurePosixPath(catalog).is_absolute()),
            (
                self.spec.texts_field,
                texts,
                texts is not None and not PurePosixPath(texts).is_absolute(),
            ),
            ("conversations.texts_of", texts_of, texts_of is not None and not _is_anywhere(texts_of)),
            *(
                (f"interventions.{number}.axis", entry.axis, not _is_anywhere(entry.axis))
                for number, entry in enumerate(self.spec.interventions or ())
            ),
        ):
            if is_local:
                raise InputError(
                    f"is {path!r} on this machine, but the cluster's machines do not have it.",
                    code="not_in_the_image",
                    field=name,
                    hint="Add it to the image, and give its absolute path there.",
                )

    @property
    def gpus_per_replica(self) -> int:
        """Number of GPUs of one replica; 0 for a job on CPUs."""
        return 0 if self.spec.placement.device == "cpu" else self.figures.gpus_per_replica

    @property
    def gpus_per_node(self) -> int:
        """Number of GPUs that a replica has on each of its nodes; 0 for a job on CPUs."""
        return self.gpus_per_replica // self.nodes_per_replica

    @property
    def nodes_min(self) -> int:
        """Fewest nodes, of which each holds a replica or a part of one."""
        return self.replicas_min * self.nodes_per_replica

    @property
    def nodes_max(self) -> int:
        """Most such nodes."""
        return self.replicas_max * self.nodes_per_replica

    @property
    def replicas_min(self) -> int:
        """Fewest replicas."""
        return self.gpus_min // self.figures.gpus_per_replica

    @property
    def replicas_max(self) -> int:
        """Most replicas."""
        return self.gpus_max // self.figures.gpus_per_replica

    @property
    def scales(self) -> bool:
        """Whether Ray's autoscaler is on."""
        return self.gpus_min != self.gpus_max

    @property
    def demand(self) -> tuple[str, ...]:
        """Overrides that make the job request replicas which have no machine yet, as ``key.path=value``.

        By default a job uses the nodes and devices that exist, and the autoscaler would see no reason to add any.
        """
        placement = self.spec.placement
        if not self.scales:
            return ()
        replicas = () if placement.replicas else (f"placement.replicas={self.replicas_max}",)
        on_gpu = placement.device == "auto" and self.gpus_per_replica
        return (*replicas, "placement.device=cuda") if on_gpu else replicas


def _is_anywhere(place: str) -> bool:
    """Whether an axis or a run is in an object store or on the hub, or has an absolute path, as in the image."""
    return "://" in place or PurePosixPath(place).is_absolute()


def _is_at_hand(template: str) -> bool:
    """Whether a chat template comes with this package, or has an absolute path, which may be in the image."""
    return template.startswith(BUILTIN_TEMPLATE_SCHEME) or PurePosixPath(template).is_absolute()


def _looks_local(source: str) -> bool:
    return source.startswith((".", "~")) and not source.startswith(PACKAGE_SCHEME)


def pair(text: str, option: str) -> tuple[str, str | None]:
    """Parse ``KEY`` or ``KEY=VALUE``; the value of a bare ``KEY`` is None.

    Args:
        text: The text.
        option: Option that it was given to, for the error.

    Raises:
        InputError: The key is empty.

    Example:
        >>> pair("pool=gpu", "--node-selector"), pair("spot", "--toleration")
        (('pool', 'gpu'), ('spot', None))
    """
    key, equals, value = text.partition("=")
    if not key:
        raise InputError(f"must be KEY=VALUE, but is {text!r}.", code="usage", field=option, hint="Add a key.")
    return key, value if equals else None
