"""Mean trajectories of groups of conversations, and how far each group moved from first to last. Pure.

Projections and changes are in axis sign: a negative change is one away from the Assistant. Axes: C conversations,
T replies, by number from 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..watching.distribution import Distribution
from ..watching.scores import number
from .resampling import FLIPS, SAMPLES, holm, mean_intervals, seed_of, sign_flip_p
from .turns import Turns

Float64 = npt.NDArray[np.float64]

ALL = "all"
"""Name of the group of all conversations, among the drops."""


@dataclass(frozen=True)
class Window:
    """Which replies of a conversation its drop is measured between.

    Attributes:
        first: Replies at the start whose mean is the beginning.
        last: Replies at the end whose mean is the end. In a shorter conversation it is those after the beginning.
    """

    first: int = 1
    last: int = 3

    def describe(self) -> str:
        """Say the rule in words.

        Example:
            >>> Window().describe()
            'mean of the last 3 replies less the first reply, of each conversation'
        """
        end = "the last reply" if self.last == 1 else f"mean of the last {self.last} replies"
        start = "the first reply" if self.first == 1 else f"the mean of the first {self.first} replies"
        return f"{end} less {start}, of each conversation"

    def change(self, projections_T: Float64) -> float:
        """Return the change of one conversation.

        Args:
            projections_T: Projection of each reply, in order; NaN for one without text, which is passed over.

        Returns:
            The change; NaN where no reply follows the beginning.

        Example:
            >>> Window().change(np.array([5.0, 9.0, 4.0, np.nan, 3.0, 2.0])), Window().change(np.array([5.0, 4.0]))
            (-2.0, -1.0)
        """
        known = projections_T[np.isfinite(projections_T)]
        after = known[self.first :]
        return float(after[-self.last :].mean() - known[: self.first].mean()) if len(after) else float("nan")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Mean projection of a group's conversations, reply by reply.

    Attributes:
        group: Name of the group.
        num_conversations: Conversations with at least one projection.
        count_T: How many of them have a reply of each number, from 1. Where fewer do, the others have ended.
        mean_T: Mean over these; NaN for none.
        interval_T2: Interval of 95 % over conversations; NaN for fewer than two.
        change_T: Mean change since the first reply, over conversations that have both; NaN for none.
        change_interval_T2: Its interval, likewise. Unlike the mean it does not move because other conversations ended.
    """

    group: str
    num_conversations: int
    count_T: npt.NDArray[np.int64]
    mean_T: Float64
    interval_T2: Float64
    change_T: Float64
    change_interval_T2: Float64

    def as_dict(self, compared: Distribution) -> dict[str, Any]:
        """Return the numbers as JSON values, null where one is not known.

        Args:
            compared: The projections that z-scores and percentiles are among.
        """
        return {
            "group": self.group,
            "conversations": self.num_conversations,
            "replies": [
                {
                    "reply": turn + 1,
                    "conversations": int(self.count_T[turn]),
                    "mean": number(float(self.mean_T[turn])),
                    "interval": [number(float(bound)) for bound in self.interval_T2[turn]],
                    "z_score": number(compared.z_score(float(self.mean_T[turn]))),
                    "percentile": number(compared.percentile(float(self.mean_T[turn]))),
                    "change": number(float(self.change_T[turn])),
                    "change_interval": [number(float(bound)) for bound in self.change_interval_T2[turn]],
                }
                for turn in range(len(self.mean_T))
            ],
        }


@dataclass(frozen=True)
class Drop:
    """How far the conversations of a group moved, from their first to their last replies.

    Attributes:
        group: Name of the group, or ``all``.
        num_conversations: Conversations with a reply after the beginning; the others have no change.
        num_left_out: Conversations without one.
        change: Mean change, in axis sign: negative is away from the Assistant; NaN for none.
        interval: Interval of 95 % over conversations; NaN for fewer than two.
        share_down: Share of the conversations that moved away from the Assistant; NaN for none.
        p_value: Two-sided, of sign flips over conversations; NaN for none.
        p_adjusted: The same by Holm's method over the groups; NaN for ``all``, which is no further group.
    """

    group: str
    num_conversations: int
    num_left_out: int
    change: float
    interval: tuple[float, float]
    share_down: float
    p_value: float
    p_adjusted: float = float("nan")

    def as_dict(self, compared: Distribution) -> dict[str, Any]:
        """Return the numbers as JSON values, null where one is not known.

        Args:
            compared: The projections in whose standard deviations the change is given too.
        """
        std = compared.std if compared.std > 0 else float("nan")
        return {
            "group": self.group,
            "conversations": self.num_conversations,
            "left_out": self.num_left_out,
            "change": number(self.change),
            "interval": [number(bound) for bound in self.interval],
            "change_in_std": number(self.change / std),
            "interval_in_std": [number(bound / std) for bound in self.interval],
            "share_down": number(self.share_down),
            "p_value": number(self.p_value),
            "p_adjusted": number(self.p_adjusted),
        }


def grid_of(turns: Turns) -> dict[str, Float64]:
    """Arrange projections by group, conversation and reply.

    Args:
        turns: The replies; the first layer counts.

    Returns:
        For each group, sorted by name, ``(C, T)``: NaN where a conversation has no such reply, or an empty one.
    """
    number_N, projection_N = turns.reply_number, turns.projection
    of_group: dict[str, list[Float64]] = {}
    for places in turns.by_conversation().values():
        line_T = np.full(int(number_N[places].max()), np.nan)
        line_T[number_N[places] - 1] = projection_N[places]
        of_group.setdefault(str(turns.group[places[0]]), []).append(line_T)
    grids: dict[str, Float64] = {}
    for group in sorted(of_group):
        lines = of_group[group]
        grid_CT = np.full((len(lines), max(map(len, lines))), np.nan)
        for place, line_T in enumerate(lines):
            grid_CT[place, : len(line_T)] = line_T
        grids[group] = grid_CT
    return grids


def trajectory_of(group: str, grid_CT: Float64, *, samples: int = SAMPLES, seed: int = 0) -> Trajectory:
    """Average the conversations of a group at each reply.

    Args:
        group: Name of the group.
        grid_CT: Its projections, as ``grid_of`` has them.
        samples: Bootstrap samples over conversations.
        seed: Seed of the study.

    Example:
        >>> found = trajectory_of("therapy", np.array([[3.0, 1.0], [5.0, np.nan]]))
        >>> found.count_T.tolist(), found.mean_T.tolist(), found.change_T.tolist()
        ([2, 1], [4.0, 1.0], [0.0, -2.0])
    """
    since_CT = grid_CT - grid_CT[:, :1]
    return Trajectory(
        group=group,
        num_conversations=int(np.isfinite(grid_CT).any(axis=1).sum()),
        count_T=np.isfinite(grid_CT).sum(axis=0),
        mean_T=_means(grid_CT),
        interval_T2=mean_intervals(grid_CT, samples=samples, seed=seed_of(seed, group)),
        change_T=_means(since_CT),
        change_interval_T2=mean_intervals(since_CT, samples=samples, seed=seed_of(seed, group)),
    )


def drops_of(
    grids: Mapping[str, Float64],
    window: Window | None = None,
    *,
    samples: int = SAMPLES,
    flips: int = FLIPS,
    seed: int = 0,
) -> tuple[Drop, ...]:
    """Measure the drop of each group and, where there are several, that of all conversations together.

    Args:
        grids: Projections of each group, as ``grid_of`` returns them.
        window: Which replies count as first and last; None: the defaults of ``Window``.
        samples: Bootstrap samples over conversations.
        flips: Sign flips of the test.
        seed: Seed of the study.

    Example:
        >>> drops_of({"therapy": np.array([[3.0, 1.0], [5.0, np.nan], [4.0, 3.0]])})[0].change
        -1.5
    """
    rule = window or Window()
    changes = {group: np.array([rule.change(line_T) for line_T in grid_CT]) for group, grid_CT in grids.items()}
    found = [_drop(group, values_C, samples, flips, seed) for group, values_C in changes.items()]
    adjusted = holm([drop.p_value for drop in found])
    found = [replace(drop, p_adjusted=p) for drop, p in zip(found, adjusted, strict=True)]
    if len(found) > 1:
        found.append(_drop(ALL, np.concatenate(list(changes.values())), samples, flips, seed))
    return tuple(found)


def _drop(group: str, changes_C: Float64, samples: int, flips: int, seed: int) -> Drop:
    known_C = changes_C[np.isfinite(changes_C)]
    low, high = mean_intervals(known_C[:, None], samples=samples, seed=seed_of(seed, group))[0]
    return Drop(
        group=group,
        num_conversations=len(known_C),
        num_left_out=len(changes_C) - len(known_C),
        change=float(known_C.mean()) if len(known_C) else float("nan"),
        interval=(float(low), float(high)),
        share_down=float((known_C < 0).mean()) if len(known_C) else float("nan"),
        p_value=sign_flip_p(known_C, flips=flips, seed=seed_of(seed, group)),
    )


def _means(grid_CT: Float64) -> Float64:
    has_CT = np.isfinite(grid_CT)
    count_T = has_CT.sum(axis=0)
    total_T = np.where(has_CT, grid_CT, 0.0).sum(axis=0)
    return np.divide(total_T, count_T, out=np.full(grid_CT.shape[1], np.nan), where=count_T > 0)


def longest(trajectories: Sequence[Trajectory]) -> int:
    """Return the number of replies of the longest trajectory; 0 for none."""
    return max((len(one.mean_T) for one in trajectories), default=0)
