"""What a simulated cluster is, and what befalls it: nodes that die one by one, and spot machines that all go at once.

Pure and seeded: the same cluster has the same bad day every time.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Loss:
    """Nodes that go.

    Attributes:
        at_s: When, in seconds from the first worker's start.
        nodes: Which.
        away_s: How long it takes until each is there again and begins to load.
    """

    at_s: float
    nodes: frozenset[int]
    away_s: float


@dataclass(frozen=True)
class Cluster:
    """Nodes with replicas on them.

    Attributes:
        workers: Replicas.
        per_node: Of them on one node.
        rows: Rollouts that a replica's batch holds.
        rollout_s: Seconds that the longest response takes.
        load_s: Seconds that a replica loads, give or take a tenth.
        notice_s: Seconds until the driver hears that a node is gone.
        losses: In time's order.
    """

    workers: int
    per_node: int
    rows: int
    rollout_s: float
    load_s: float
    notice_s: float
    losses: tuple[Loss, ...] = ()

    def loading_s(self, number: int | None = None) -> list[float]:
        """Draw how long replicas load, all of them or so many that come back."""
        draw = random.Random(number or 0)
        return [self.load_s * draw.uniform(0.9, 1.1) for _ in range(number or self.workers)]


def bad_day(
    num_nodes: int, length_s: float, *, per_node_hour: float, away_s: float, bulk_at_s: Sequence[float], share: float
) -> tuple[Loss, ...]:
    """Draw the losses of a job.

    Args:
        num_nodes: There are.
        length_s: For how long losses are drawn, seconds.
        per_node_hour: Failures of single nodes, for each node and hour.
        away_s: How long a node stays away, seconds.
        bulk_at_s: When a share of all nodes goes at once.
        share: Of the nodes, that goes then.
    """
    draw = random.Random(1)
    losses = [Loss(at, frozenset(draw.sample(range(num_nodes), round(share * num_nodes))), away_s) for at in bulk_at_s]
    rate_per_s = per_node_hour * num_nodes / 3600
    at = draw.expovariate(rate_per_s)
    while at < length_s:
        losses.append(Loss(at, frozenset({draw.randrange(num_nodes)}), away_s))
        at += draw.expovariate(rate_per_s)
    return tuple(sorted(losses, key=lambda loss: loss.at_s))
