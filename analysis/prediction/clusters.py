"""Clusters of the user's messages, and how the replies to each of them moved. Pure numpy.

The clusters are made of the messages alone, so what happens after them has no part in who is in which. Axes: N
messages, E features, K clusters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ..bootstrap import BOUNDS
from ..dialogues.resampling import holm, sign_flip_p
from ..dialogues.turns import Turns
from ..watching.scores import number

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

STARTS = 8
"""Random starts of k-means, of which the tightest result counts."""
_ROUNDS = 100

Effect = Literal["away", "keeps", "toward"]
"""What replies do after the messages of a cluster: move away from the Assistant, toward it, or neither that is seen."""

LEVEL = 0.05
"""Adjusted p value below which replies count as moved."""
FEWEST_CONVERSATIONS = 5
"""Conversations below which a cluster has no interval: of two it would be the two values."""


@dataclass(frozen=True)
class Cluster:
    """Messages that are alike, and the replies that followed them.

    Attributes:
        num_messages: Number of messages.
        num_conversations: Conversations that they are from.
        change: Mean change of the projection from the reply before the message to the one after; negative is away from
            the Assistant.
        interval: Interval of 95 % of the change by a bootstrap over conversations; NaN for fewer than five.
        p_value: Two-sided, by sign flips over conversations, adjusted by Holm's method over the clusters.
        projection: Mean projection of the replies after the messages.
        groups: Share of the messages by group, the largest first.
        typical: The messages nearest to the centre, each text once.
    """

    num_messages: int
    num_conversations: int
    change: float
    interval: tuple[float, float]
    p_value: float
    projection: float
    groups: tuple[tuple[str, float], ...]
    typical: tuple[str, ...]

    @property
    def effect(self) -> Effect:
        """Whether replies move away from the Assistant or toward it, at p below ``LEVEL``; else ``keeps``."""
        if not self.p_value < LEVEL:
            return "keeps"
        return "away" if self.change < 0 else "toward"

    def as_dict(self) -> dict[str, Any]:
        """Return the cluster as JSON values, null where a number is not known."""
        return {
            "messages": self.num_messages,
            "conversations": self.num_conversations,
            "change": number(self.change),
            "interval": [number(bound) for bound in self.interval],
            "p_value": number(self.p_value),
            "effect": self.effect,
            "mean_projection": number(self.projection),
            "groups": dict(self.groups),
            "typical": list(self.typical),
        }


def clusters_of(
    turns: Turns, features_NE: Float64, changes_N: Float64, *, count: int, typical: int, samples: int, seed: int
) -> tuple[Cluster, ...]:
    """Cluster the messages before replies, and average how the replies moved.

    Args:
        turns: The replies.
        features_NE: Features of the message before each reply.
        changes_N: Change of each reply since the one before; all finite.
        count: Number of clusters, at most as many as there are different messages.
        typical: Messages to show of each.
        samples: Bootstrap samples.
        seed: Seed of the clusters and of the samples.

    Returns:
        The clusters by their mean change: those after which replies moved farthest away from the Assistant first.
    """
    label_N, centre_KE = k_means(features_NE, count, seed)
    found: list[Cluster] = []
    p_values: list[float] = []
    for cluster in range(len(centre_KE)):
        places = np.flatnonzero(label_N == cluster)
        own, change_N = turns.take(places), changes_N[places]
        conversation_N = np.unique(own.conversation_index, return_inverse=True)[1]
        total_C: Float64 = np.bincount(conversation_N, change_N).astype(np.float64)
        count_C = np.bincount(conversation_N)
        distance_N = ((features_NE[places] - centre_KE[cluster]) ** 2).sum(axis=1)
        near = own.user[np.argsort(distance_N, kind="stable")].tolist()
        names, sizes = np.unique(own.group.astype(str), return_counts=True)
        by_size = np.argsort(-sizes, kind="stable")
        p_values.append(sign_flip_p(total_C, seed=seed))
        found.append(
            Cluster(
                num_messages=len(places),
                num_conversations=len(total_C),
                change=float(change_N.mean()),
                interval=_interval(total_C, count_C, samples, seed),
                p_value=float("nan"),
                projection=float(own.projection.mean()),
                groups=tuple((str(names[place]), float(sizes[place] / len(places))) for place in by_size),
                typical=tuple(list(dict.fromkeys(near))[:typical]),
            )
        )
    adjusted = [replace(cluster, p_value=p) for cluster, p in zip(found, holm(p_values), strict=True)]
    return tuple(sorted(adjusted, key=lambda cluster: cluster.change))


def _interval(total_C: Float64, count_C: Int64, samples: int, seed: int) -> tuple[float, float]:
    """Bound the mean over messages by drawing whole conversations."""
    size = len(total_C)
    if size < FEWEST_CONVERSATIONS:
        return float("nan"), float("nan")
    draws_BC = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=samples)
    low, high = np.percentile((draws_BC @ total_C) / (draws_BC @ count_C), BOUNDS)
    return float(low), float(high)


def k_means(points_NE: Float64, count: int, seed: int) -> tuple[Int64, Float64]:
    """Divide points into clusters about their means.

    Source: S. Lloyd, "Least squares quantization in PCM", IEEE Transactions on Information Theory 28 (1982), 129-137,
    started as by D. Arthur and S. Vassilvitskii, "k-means++", SODA 2007.

    Args:
        points_NE: The points.
        count: Number of clusters; of fewer different points there are as many clusters as points.
        seed: Seed of the starts; the same seed gives the same clusters.

    Returns:
        The cluster of each point, and the mean of each; no cluster is empty.

    Example:
        >>> labels, centres = k_means(np.array([[0.0], [0.1], [9.0], [9.1]]), 2, seed=0)
        >>> bool(labels[0] == labels[1] != labels[2] == labels[3]), len(centres)
        (True, 2)
    """
    count = max(1, min(count, len(np.unique(points_NE, axis=0))))
    best: tuple[float, Int64, Float64] | None = None
    for start in range(STARTS):
        rng = np.random.default_rng([seed, start])
        label_N, centre_KE = _lloyd(points_NE, _spread_start(points_NE, count, rng))
        error = float(((points_NE - centre_KE[label_N]) ** 2).sum())
        if best is None or error < best[0]:
            best = error, label_N, centre_KE
    assert best is not None
    return best[1], best[2]


def _spread_start(points_NE: Float64, count: int, rng: np.random.Generator) -> Float64:
    """Draw centres among the points, each with a chance that grows with the squared distance to those before it."""
    chosen = [int(rng.integers(len(points_NE)))]
    distance_N = ((points_NE - points_NE[chosen[0]]) ** 2).sum(axis=1)
    while len(chosen) < count:
        chosen.append(int(rng.choice(len(points_NE), p=distance_N / distance_N.sum())))
        distance_N = np.minimum(distance_N, ((points_NE - points_NE[chosen[-1]]) ** 2).sum(axis=1))
    return points_NE[chosen].copy()


def _lloyd(points_NE: Float64, centre_KE: Float64) -> tuple[Int64, Float64]:
    label_N = np.full(len(points_NE), -1)
    length_N = (points_NE**2).sum(axis=1)
    for _ in range(_ROUNDS):
        distance_NK = length_N[:, None] - 2 * points_NE @ centre_KE.T + (centre_KE**2).sum(axis=1)
        nearest_N = distance_NK.argmin(axis=1)
        for empty in np.setdiff1d(np.arange(len(centre_KE)), nearest_N):
            # The point farthest from its own centre, of a cluster that has others, starts the empty one.
            shared = np.bincount(nearest_N, minlength=len(centre_KE))[nearest_N] > 1
            nearest_N[np.where(shared, distance_NK[np.arange(len(nearest_N)), nearest_N], -np.inf).argmax()] = empty
        if np.array_equal(nearest_N, label_N):
            break
        label_N = nearest_N
        centre_KE = np.stack([points_NE[label_N == cluster].mean(axis=0) for cluster in range(len(centre_KE))])
    return label_N, centre_KE
