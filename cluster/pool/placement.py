"""How many replicas, and how many threads each: from the spec and from what the machines have. Pure; knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from ...jobs.errors import InputError
from ...jobs.spec import PlacementSpec


@dataclass(frozen=True, slots=True)
class Resources:
    """What there is to place replicas on.

    Attributes:
        num_cpus: Cores of all nodes together.
        num_gpus: GPUs of all nodes together.
        cpus_per_node: Cores of the smallest node that could hold a replica, because a replica's threads share one
            node; None when it is not known.
        num_nodes: Nodes that could hold a replica.
    """

    num_cpus: int
    num_gpus: int
    cpus_per_node: int | None = None
    num_nodes: int = 1


@dataclass(frozen=True, slots=True)
class Placement:
    """How replicas are laid out.

    Attributes:
        replicas: Number of replicas; each is one worker process.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of each, reserved as that many CPUs of its node.
        num_gpus: GPUs of each, 0 or 1.
    """

    replicas: int
    device: str
    threads: int
    num_gpus: int

    def places_on(self, num_cpus: float, num_gpus: float) -> int:
        """Count the replicas that one node has room for.

        Args:
            num_cpus: CPUs of the node, whoever uses them now.
            num_gpus: GPUs of the node, likewise.

        Example:
            >>> Placement(1, "cuda", 4, 1).places_on(16, 2)
            2
        """
        by_cpu = int(num_cpus // self.threads)
        return min(by_cpu, int(num_gpus // self.num_gpus)) if self.num_gpus else by_cpu


def place(asked: PlacementSpec, resources: Resources, *, may_grow: bool = False) -> Placement:
    """Lay replicas out on what there is, so that their threads do not compete for cores.

    Args:
        asked: What the spec asks for.
        resources: What there is now.
        may_grow: Whether more nodes may join; replicas that have no place yet then wait for them.

    Returns:
        The layout, every default filled in.

    Raises:
        InputError: The spec asks for GPUs, cores or replicas that are not there and that no node may bring.
    """
    if asked.device == "cuda" and not resources.num_gpus and not (may_grow and asked.replicas):
        raise InputError(
            "asks for cuda, but no GPU is there.",
            code="no_gpu",
            field="placement.device",
            hint="Use device: auto or cpu, or an --address with GPUs.",
        )
    device = "cuda" if asked.device == "cuda" or (asked.device == "auto" and resources.num_gpus) else "cpu"
    num_gpus = 1 if device == "cuda" else 0
    replicas = asked.replicas or (resources.num_gpus if device == "cuda" else max(1, resources.num_nodes))
    if may_grow:
        at_once = max(1, -(-replicas // max(1, resources.num_nodes)))
        return Placement(replicas, device, asked.threads or max(1, (resources.cpus_per_node or 1) // at_once), num_gpus)
    limit, unit = (resources.num_gpus, "GPU") if device == "cuda" else (resources.num_cpus, "CPU core")
    if replicas > limit:
        raise InputError(
            f"asks for {replicas} replicas, but there is room for {limit}: each takes at least one {unit}.",
            code="too_many_replicas",
            field="placement.replicas",
            hint=f"Ask for at most {limit}.",
        )
    cores = min(resources.num_cpus // replicas, resources.cpus_per_node or resources.num_cpus)
    threads = asked.threads or max(1, cores)
    if threads * replicas > resources.num_cpus:
        raise InputError(
            f"{replicas} replicas of {threads} threads need {threads * replicas} cores; "
            f"there are {resources.num_cpus}.",
            code="too_many_threads",
            field="placement.threads" if asked.threads else "placement.replicas",
            hint=f"Ask for at most {resources.num_cpus // replicas if asked.threads else resources.num_cpus}.",
        )
    return Placement(replicas, device, threads, num_gpus)
