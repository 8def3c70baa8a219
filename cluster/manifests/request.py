"""What is asked of a cluster: a job, the image, how many GPUs of which kind, where credentials come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import PurePosixPath

from ... import __version__
from ...jobs.catalog import BUILTIN
from ...jobs.errors import InputError
from ...jobs.sizing.devices import Device
from ...jobs.sizing.estimate import Estimate
from ...jobs.spec import PACKAGE_SCHEME, JobSpec

DEFAULT_IMAGE = f"persona-atlas:{__version__}"
"""What ``docker build`` is told to call the image of our Dockerfile; a cluster wants it in a registry it can reach."""

_MAX_NAME = 47
"""KubeRay appends to a RayJob's name, and refuses a longer one."""

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@dataclass(frozen=True)
class ClusterRequest:
    """A cluster for one job, checked.

    Attributes:
        spec: The job.
        figures: Its estimate; it fits the devices that were meant.
        name: Of the cluster and all its objects.
        namespace: Of Kubernetes.
        image: Holds this package; see the Dockerfile.
        gpus_min: GPUs at least (CPU replicas where the job wants no GPU).
        gpus_max: GPUs at most; more than ``gpus_min`` switches Ray's autoscaler on.
        device: The line of the table that the GPUs are; None leaves the kind open.
        node_selector: Labels that a worker's node must have.
        tolerations: Taints that a worker tolerates: a key, or a key and a value.
        spot: Workers may stand on machines that can be taken away.
        secret: Kubernetes secret with ``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY`` and, if it likes, ``HF_TOKEN``.
        service_account: Of Kubernetes, or the instance profile of VMs, that may write to the store.
        cache_claim: A volume claim that all pods can write, for model files; None gives each pod its own scratch.
        ray_version: What the image holds.
    """

    spec: JobSpec
    figures: Estimate
    name: str = "persona-atlas"
    namespace: str = "default"
    image: str = DEFAULT_IMAGE
    gpus_min: int = 1
    gpus_max: int = 1
    device: Device | None = None
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
                f"is {self.name!r}; it must be at most {_MAX_NAME} of a-z, 0-9 and -, and begin with a letter.",
                code="bad_name",
                field="--name",
                hint="For example --name llama-70b.",
            )
        self._check_numbers()
        self._check_paths()

    def _check_numbers(self) -> None:
        size = self.figures.tensor_parallel
        for option, gpus in (("--gpus-max", self.gpus_max), ("--gpus-min", self.gpus_min)):
            if gpus % size:
                raise InputError(
                    f"is {gpus}, but replicas take {size} GPUs each.",
                    code="not_whole_replicas",
                    field=option,
                    hint=f"Give a multiple of {size}, such as {max(1, gpus // size) * size}.",
                )
        if not 0 <= self.gpus_min <= self.gpus_max or not self.gpus_max:
            raise InputError(
                f"is {self.gpus_min}, and --gpus-max is {self.gpus_max}.",
                code="bad_bounds",
                field="--gpus-min",
                hint="The least cannot be above the most, and the most cannot be 0.",
            )

    def _check_paths(self) -> None:
        """What lies on this machine is not there: the store must be an object store, folders must be in the image."""
        if not self.spec.store.url.startswith("s3://"):
            raise InputError(
                f"is the directory {self.spec.store.url!r}, and the machines of a cluster share no disk.",
                code="store_not_shared",
                field="store.url",
                hint="Give a bucket: --set store.url=s3://bucket/prefix.",
            )
        source = self.spec.model.source
        looks_local = source.startswith((".", "~")) and not source.startswith(PACKAGE_SCHEME)
        catalog = self.spec.personas.catalog
        for name, path, is_local in (
            ("model.source", source, looks_local),
            ("personas.catalog", catalog, catalog != BUILTIN and not PurePosixPath(catalog).is_absolute()),
        ):
            if is_local:
                raise InputError(
                    f"is {path!r} on this machine, and a cluster does not have it.",
                    code="not_in_the_image",
                    field=name,
                    hint="Put it into the image, and give its absolute path there.",
                )

    @property
    def gpus_per_replica(self) -> int:
        """GPUs of one replica; 0 where the job wants none."""
        return 0 if self.spec.placement.device == "cpu" else self.figures.tensor_parallel

    @property
    def replicas_min(self) -> int:
        """Replicas at least."""
        return self.gpus_min // self.figures.tensor_parallel

    @property
    def replicas_max(self) -> int:
        """Replicas at most."""
        return self.gpus_max // self.figures.tensor_parallel

    @property
    def scales(self) -> bool:
        """Whether Ray's autoscaler has anything to decide."""
        return self.gpus_min != self.gpus_max

    @property
    def demand(self) -> tuple[str, ...]:
        """What the job's command sets, so that the autoscaler hears of replicas that have no machine yet.

        Left to itself a job asks for as many as there are, of the kind that is there, and none would be brought.
        """
        asked = self.spec.placement
        if not self.scales:
            return ()
        replicas = () if asked.replicas else (f"placement.replicas={self.replicas_max}",)
        on_gpu = asked.device == "auto" and self.gpus_per_replica
        return (*replicas, "placement.device=cuda") if on_gpu else replicas


def pair(text: str, option: str) -> tuple[str, str | None]:
    """Read ``KEY`` or ``KEY=VALUE``.

    Raises:
        InputError: There is no key.
    """
    key, equals, value = text.partition("=")
    if not key:
        raise InputError(f"{text!r} has no key.", code="usage", field=option, hint="Give KEY=VALUE.")
    return key, value if equals else None
