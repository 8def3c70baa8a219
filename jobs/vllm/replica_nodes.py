"""Over how many nodes a replica is spread, and how many replicas nodes have room for. Pure arithmetic.

The stages of a pipeline hand on one hidden state a token, which a network carries; the ranks of a tensor-parallel group
exchange the output of every layer. So a replica is divided between stages: each of its nodes has as many whole stages
as the others, and a tensor-parallel group never leaves its node.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def node_counts(pipeline_parallel: int) -> Iterator[int]:
    """Yield over how many nodes the stages of a replica can be spread evenly, ascending.

    Args:
        pipeline_parallel: Stages of the replica.

    Example:
        >>> list(node_counts(6))
        [1, 2, 3, 6]
    """
    return (nodes for nodes in range(1, pipeline_parallel + 1) if pipeline_parallel % nodes == 0)


def nodes_of_replica(tensor_parallel: int, pipeline_parallel: int, per_node: int) -> int | None:
    """Return the fewest nodes that hold a replica; None if a node does not even hold one stage.

    Args:
        tensor_parallel: Devices of a stage.
        pipeline_parallel: Stages of the replica.
        per_node: Devices of a node.

    Example:
        >>> nodes_of_replica(8, 2, per_node=8), nodes_of_replica(16, 1, per_node=8)
        (2, None)
    """
    ranks = tensor_parallel * pipeline_parallel
    return next((nodes for nodes in node_counts(pipeline_parallel) if ranks // nodes <= per_node), None)


def replicas_on(parts: Sequence[int], nodes: int) -> int:
    """Return how many replicas there is room for, if the parts of each are on nodes of their own.

    Args:
        parts: Of how many replicas each node has room for a part.
        nodes: Nodes of one replica.

    Example:
        >>> replicas_on((2, 1, 1), nodes=2), replicas_on((4, 0), nodes=2), replicas_on((2, 1), nodes=1)
        (2, 0, 3)
    """
    replicas = sum(parts) // nodes
    # So many replicas take no more than one part each of a node; the rest of a larger node stays empty.
    while replicas and sum(min(room, replicas) for room in parts) < nodes * replicas:
        replicas -= 1
    return replicas


def spread(
    devices: Sequence[int], *, tensor_parallel: int, pipeline_parallel: int, replicas: int | None = None
) -> tuple[int, int]:
    """Choose over how many nodes each replica is spread: as few as give room for all that are asked for.

    Args:
        devices: Devices of each node.
        tensor_parallel: Devices of a stage.
        pipeline_parallel: Stages of a replica.
        replicas: Replicas that are asked for; None: one at least.

    Returns:
        Nodes of a replica, and the replicas that there is room for: fewer than asked for, or none, if no way has room.

    Example:
        >>> spread((8, 8, 8), tensor_parallel=8, pipeline_parallel=2)
        (2, 1)
    """
    ranks = tensor_parallel * pipeline_parallel
    best = 1, 0
    for nodes in node_counts(pipeline_parallel):
        room = replicas_on([of_node // (ranks // nodes) for of_node in devices], nodes)
        if room > best[1]:
            best = nodes, room
        if best[1] >= (replicas or 1):
            break
    return best
