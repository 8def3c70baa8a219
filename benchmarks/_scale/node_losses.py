"""What a simulated cluster is, and when it loses nodes: single ones that fail, and spot nodes reclaimed all at once.

Pure and seeded: the same cluster loses the same nodes at the same times in every run.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NodeLoss:
    """Nodes that are lost together.

    Attributes:
        at_s: When, in seconds since the first worker was ready.
        nodes: Numbers of the nodes; one that is away already is not lost again.
        away_s: Seconds until a node of the same size joins in the place of each.
    """

    at_s: float
    nodes: frozenset[int]
    away_s: float


@dataclass(frozen=True)
class SimulatedCluster:
    """Nodes with replicas on them.

    Attributes:
        workers: Replicas that the cluster has room for.
        per_node: Replicas that one node has room for; the last node may have room for fewer.
        rows: Rollouts that a replica's batch holds.
        rollout_s: Seconds that the longest response takes.
        load_s: Seconds that a replica takes to load the model, give or take a tenth.
        notice_s: Seconds until the cluster declares a lost node dead.
        losses: What is lost, in the order of time.
    """

    workers: int
    per_node: int
    rows: int
    rollout_s: float
    load_s: float
    notice_s: float
    losses: tuple[NodeLoss, ...] = ()

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return -(-self.workers // self.per_node)

    def places_on(self, node: int) -> int:
        """Count the replicas that a node has room for.

        Args:
            node: Number of the node, from 0.
        """
        return min(self.per_node, self.workers - node * self.per_node)

    def loading_times(self) -> Iterator[float]:
        """Draw how long one replica after the other takes to load, in seconds; never ends."""
        draw = random.Random(0)
        while True:
            yield self.load_s * draw.uniform(0.9, 1.1)


def draw_losses(
    num_nodes: int, length_s: float, *, per_node_hour: float, away_s: float, bulk_at_s: Sequence[float], share: float
) -> tuple[NodeLoss, ...]:
    """Draw the losses of a job.

    Args:
        num_nodes: Number of nodes.
        length_s: For how long losses are drawn, seconds.
        per_node_hour: Failures of single nodes, for each node and hour.
        away_s: Seconds that a node stays away.
        bulk_at_s: When a share of all nodes is lost at once, seconds.
        share: That share, between 0 and 1.

    Returns:
        The losses in the order of time.
    """
    draw = random.Random(1)
    losses = [
        NodeLoss(at, frozenset(draw.sample(range(num_nodes), round(share * num_nodes))), away_s) for at in bulk_at_s
    ]
    rate_per_s = per_node_hour * num_nodes / 3600
    at = draw.expovariate(rate_per_s)
    while at < length_s:
        losses.append(NodeLoss(at, frozenset({draw.randrange(num_nodes)}), away_s))
        at += draw.expovariate(rate_per_s)
    return tuple(sorted(losses, key=lambda loss: loss.at_s))
