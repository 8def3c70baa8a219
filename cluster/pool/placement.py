"""Decide the number of replicas and their threads from the spec and the available resources. Pure; knows no Ray."""

from __future__ import annotations

from dataclasses import dataclass

from ...jobs.errors import InputError
from ...jobs.specs.spec_parts import PlacementSpec
from ...jobs.vllm.replica_nodes import nodes_of_replica, spread
from ...jobs.wording import count_of


@dataclass(frozen=True, slots=True)
class Resources:
    """Resources of a machine or a cluster.

    Attributes:
        num_cpus: Cores of all nodes together.
        num_gpus: GPUs of all nodes together.
        cpus_per_node: Cores of the smallest node that could run a replica, because a replica's threads must be on one
            node; None when unknown.
        num_nodes: Number of nodes that could run a replica.
        gpus_by_node: GPUs of each of these nodes; empty: all are on one node.
        cpus_by_node: Cores of each of these nodes; empty: unknown.
    """

    num_cpus: int
    num_gpus: int
    cpus_per_node: int | None = None
    num_nodes: int = 1
    gpus_by_node: tuple[int, ...] = ()
    cpus_by_node: tuple[int, ...] = ()

    @property
    def most_gpus(self) -> int:
        """GPUs of the node that has most of them."""
        return max(self.gpus_by_node, default=self.num_gpus)


@dataclass(frozen=True, slots=True)
class Placement:
    """The number of replicas and the resources of each.

    Attributes:
        replicas: Number of replicas; each is one worker process.
        device: ``cpu`` or ``cuda``.
        threads: CPUs of a node that each replica reserves there, and its CPU threads unless its node decides them.
        num_gpus: GPUs of a node that each replica reserves there.
        one_per_node: Whether each node gets one replica, however many it has room for.
        node_decides: Whether the threads of a replica depend on the node where it is placed, which may join later.
        num_nodes: Nodes of each replica, each with as many of its stages. More than one: what is said here of a replica
            and its node holds for its part on each of them.
    """

    replicas: int
    device: str
    threads: int
    num_gpus: int
    one_per_node: bool = False
    node_decides: bool = False
    num_nodes: int = 1

    def places_on(self, num_cpus: float, num_gpus: float) -> int:
        """Return the number of replicas that one node has resources for.

        Args:
            num_cpus: All CPUs of the node, those in use by others included.
            num_gpus: All GPUs of the node, those in use by others included.

        Example:
            >>> Placement(1, "cuda", 4, 1).places_on(16, 2)
            2
        """
        by_cpu = int(num_cpus // self.threads)
        if self.num_gpus:
            return min(by_cpu, int(num_gpus // self.num_gpus))
        return min(by_cpu, 1) if self.one_per_node else by_cpu

    def threads_on(self, num_cpus: float, num_gpus: float) -> int:
        """Return the CPU threads of a replica on one node.

        Args:
            num_cpus: All CPUs of the node.
            num_gpus: All GPUs of the node.

        Example:
            >>> Placement(2, "cuda", 1, 1, node_decides=True).threads_on(16, 2)
            8
        """
        if not self.node_decides:
            return self.threads
        by_gpus = num_gpus // self.num_gpus if self.num_gpus else 0
        sharing = by_gpus if self.num_gpus else min(self.replicas, self.places_on(num_cpus, num_gpus))
        return max(self.threads, int(num_cpus // max(1, sharing)))


def place(asked: PlacementSpec, resources: Resources, *, may_grow: bool = False) -> Placement:
    """Place replicas on the available resources, so that their threads do not compete for cores.

    Args:
        asked: ``placement`` of the spec.
        resources: The resources that are available now.
        may_grow: Whether more nodes may join; replicas without resources then wait for them.

    Returns:
        The placement, with every default resolved.

    Raises:
        InputError: The spec needs GPUs, cores or replicas that are not available and cannot be added.
    """
    if asked.device == "cuda" and not resources.num_gpus and not (may_grow and asked.replicas):
        raise InputError(
            "asks for cuda, but there is no GPU.",
            code="no_gpu",
            field="placement.device",
            hint="Use device: auto or cpu, or an --address with GPUs.",
        )
    device = "cuda" if asked.device == "cuda" or (asked.device == "auto" and resources.num_gpus) else "cpu"
    ranks = asked.gpus_per_replica
    if device == "cuda":
        nodes, places = _on_gpus(asked, resources, may_grow=may_grow)
    else:
        nodes, places = _on_cpus(asked, resources)
    num_gpus = ranks // nodes if device == "cuda" else 0
    # Without GPUs each node has one replica, or each group of nodes.
    replicas = asked.replicas or (places if num_gpus else max(1, resources.num_nodes // nodes))
    one_per_node = device == "cpu" and not asked.replicas
    # On a CPU each rank is a process that computes, and needs a core.
    least_threads = 1 if num_gpus else ranks // nodes
    if asked.threads and asked.threads < least_threads * nodes:
        raise InputError(
            f"is {asked.threads}, and each of the {ranks} processes of a replica takes a core.",
            code="too_few_threads",
            field="placement.threads",
            hint=f"Ask for at least {least_threads * nodes}, or leave it out.",
        )
    own_threads = asked.threads and max(1, asked.threads // nodes)
    if may_grow:
        at_once = max(1, -(-replicas * nodes // max(1, resources.num_nodes)))
        reserved = own_threads or max(least_threads, (resources.cpus_per_node or 1) // at_once)
        return Placement(max(1, replicas), device, reserved, num_gpus, one_per_node, not asked.threads, nodes)
    if replicas > places:
        raise _no_room(replicas, places, device, ranks)
    parts = replicas * nodes
    cores = min(resources.num_cpus // parts, resources.cpus_per_node or resources.num_cpus)
    threads = own_threads or max(least_threads, cores)
    if threads * parts > resources.num_cpus:
        raise InputError(
            f"{count_of(replicas, 'replica')} of {count_of(threads * nodes, 'thread')} would take "
            f"{count_of(threads * parts, 'core')}; "
            f"there are {resources.num_cpus}.",
            code="too_many_threads",
            field="placement.threads" if asked.threads else "placement.replicas",
            hint=f"Ask for at most {resources.num_cpus // replicas if asked.threads else resources.num_cpus}.",
        )
    return Placement(replicas, device, threads, num_gpus, one_per_node, num_nodes=nodes)


def _on_gpus(asked: PlacementSpec, resources: Resources, *, may_grow: bool) -> tuple[int, int]:
    """Return over how many nodes each replica is spread, and how many replicas there is room for.

    Nodes that an autoscaler may add can be larger, but a cluster that has GPUs shows of which size its nodes are.

    Raises:
        InputError: No node has GPUs enough, and there are no nodes to spread the stages over.
    """
    tensor, stages = asked.tensor_parallel, asked.pipeline_parallel
    by_node = resources.gpus_by_node or (resources.num_gpus,)
    nodes, places = spread(by_node, tensor_parallel=tensor, pipeline_parallel=stages, replicas=asked.replicas)
    if places:
        return nodes, places
    waits_for = nodes_of_replica(tensor, stages, resources.most_gpus) if may_grow else None
    if waits_for is not None or (may_grow and not resources.most_gpus):
        return waits_for or 1, 0
    raise _over_nodes(asked, resources)


def _on_cpus(asked: PlacementSpec, resources: Resources) -> tuple[int, int]:
    """Return the same on cores, of which each rank takes one; a replica is spread where no node has enough of them."""
    ranks, tensor, stages = asked.gpus_per_replica, asked.tensor_parallel, asked.pipeline_parallel
    if stages > 1 and ranks > max(resources.cpus_by_node, default=ranks):
        nodes, places = spread(
            resources.cpus_by_node, tensor_parallel=tensor, pipeline_parallel=stages, replicas=asked.replicas
        )
        if places:
            return nodes, places
    return 1, resources.num_cpus // ranks


def _over_nodes(asked: PlacementSpec, resources: Resources) -> InputError:
    """Make the error of a replica that takes more GPUs than a node has, and cannot be spread over those there are."""
    ranks, most = asked.gpus_per_replica, resources.most_gpus
    over = nodes_of_replica(asked.tensor_parallel, asked.pipeline_parallel, most)
    if over is None:
        # Its ranks exchange the output of every layer, for which no network between nodes is fast enough.
        return InputError(
            f"a stage of a replica takes {asked.tensor_parallel} GPUs, and all of them must be on one node, because "
            f"they exchange the output of every layer; the largest node has {most}.",
            code="replica_over_nodes",
            field="placement.tensor_parallel",
            hint=f"Ask for at most {most}, and for more placement.pipeline_parallel, whose stages may be on several "
            f"nodes; or use nodes with {asked.tensor_parallel} GPUs.",
        )
    part = ranks // over
    return InputError(
        f"a replica takes {ranks} GPUs, on {over} nodes with {part} each; "
        f"{count_of(sum(gpus >= part for gpus in resources.gpus_by_node or (most,)), 'node')} of the cluster "
        f"has so many, and the largest has {most}.",
        code="replica_over_nodes",
        field="placement.pipeline_parallel",
        hint=f"Ask for at most {most} GPUs a replica, or add nodes with {part} GPUs.",
    )


def _no_room(replicas: int, places: int, device: str, ranks: int) -> InputError:
    unit = "GPU" if device == "cuda" else "CPU core"
    if places:
        return InputError(
            f"asks for {replicas} replicas, but there is room for {places}: each takes at least "
            f"{count_of(ranks, unit) if ranks > 1 else f'one {unit}'}.",
            code="too_many_replicas",
            field="placement.replicas",
            hint=f"Ask for at most {places}.",
        )
    return InputError(
        f"a replica takes {count_of(ranks, unit)}, and there are fewer.",
        code="too_many_ranks",
        field="placement.tensor_parallel",
        hint="Ask for fewer, or give an --address with more.",
    )
