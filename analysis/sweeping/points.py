"""The points of a sweep: for each setting and group of prompts, rates with intervals and what stands beside them. Pure.

Rates are those of the labels among the replies that have one. Replies that are empty, that were not judged, and whose
verdict could not be read are counted beside them, so that nobody takes a missing verdict for a label.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from .intervals import wilson_interval
from .repetition import DEGENERATE

ALL = "all"
"""The group of all replies under a setting."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What is known of one reply.

    Attributes:
        group: The group of its prompt, such as ``role pirate``; empty for none.
        repetition: See ``repetition_rate``; NaN where it is too short.
        projection: Projection of its mean activation on the axis, in axis sign; NaN where it was not captured.
        is_cut: Whether it was cut at its greatest length.
        is_empty: Whether it has no content, so that there is nothing to judge.
        is_judged: Whether a judge was asked about it and has answered.
        label: The label that the judge gave; None where it gave none that can be read.
        address: What identifies its prompt and sample under every setting, so that settings are compared in pairs.
    """

    group: str
    repetition: float
    projection: float = math.nan
    is_cut: bool = False
    is_empty: bool = False
    is_judged: bool = False
    label: str | None = None
    address: tuple[Hashable, ...] = ()


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a label was given.

    Attributes:
        label: The label.
        count: Replies with it.
        rate: Its share of the replies with a label; NaN where there are none.
        low: Lower end of the Wilson interval of 95 %.
        high: Upper end.
    """

    label: str
    count: int
    rate: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints, without the label; a rate that is not known is null."""
        return {"count": self.count, "rate": _known(self.rate), "low": self.low, "high": self.high}


@dataclass(frozen=True, slots=True)
class Point:
    """The replies of one group under one setting.

    Attributes:
        setting: Name of the setting.
        strength: Strength of a setting that steers by a fraction of the norm, or does nothing (0); None for others.
        group: ``all``, or a group of prompts.
        replies: Number of replies.
        labelled: Number of them with a label.
        unlabelled: Number that the judge answered about without a label that can be read.
        waiting: Number that have something to judge and were not judged.
        empty: Number without content.
        rates: Rate of each label, in the order of the rubric; empty without a judge.
        repetition: Mean repetition of the replies that are long enough; NaN where none is.
        degenerate: Share of these replies whose repetition is at least ``DEGENERATE``; NaN where there are none.
        cut: Share of the replies that were cut at their greatest length.
        projection: Mean projection of the replies on the axis, in axis sign; NaN where it was not captured.
        harm: How often a label was given that counts as harm; None where the rubric names none.
    """

    setting: str
    strength: float | None
    group: str
    replies: int
    labelled: int
    unlabelled: int
    waiting: int
    empty: int
    rates: tuple[Rate, ...]
    repetition: float
    degenerate: float
    cut: float
    projection: float
    harm: Rate | None = None

    @property
    def is_degenerate(self) -> bool:
        """Whether the replies on average repeat themselves so far that their labels say little."""
        return self.repetition >= DEGENERATE

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints; what is not known is null."""
        return {
            "setting": self.setting,
            "strength": self.strength,
            "group": self.group,
            "replies": self.replies,
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "waiting": self.waiting,
            "empty": self.empty,
            "rates": {rate.label: rate.as_dict() for rate in self.rates},
            "harm": None if self.harm is None else self.harm.as_dict(),
            "repetition": _known(self.repetition),
            "degenerate": _known(self.degenerate),
            "is_degenerate": self.is_degenerate,
            "cut": _known(self.cut),
            "projection": _known(self.projection),
        }


def points_of(
    setting: str,
    strength: float | None,
    replies: Sequence[Reply],
    labels: Sequence[str],
    harm: Collection[str] = (),
) -> list[Point]:
    """Count the replies under one setting: all of them, then each group.

    Args:
        setting: Name of the setting.
        strength: See ``Point``.
        replies: The replies.
        labels: Labels of the rubric; empty without a judge.
        harm: Those that count as harm; empty for none.

    Returns:
        The point of all replies, then one for each group in the order of its first reply.

    Example:
        >>> said = [Reply("role pirate", 0.0, is_judged=True, label=label) for label in ("human", "human", "assistant")]
        >>> whole, pirates = points_of("plain", 0.0, said, ["assistant", "human"])
        >>> whole.group, pirates.group, [rate.count for rate in whole.rates]
        ('all', 'role pirate', [1, 2])
    """
    groups = dict.fromkeys(reply.group for reply in replies if reply.group)
    points = [_point(setting, strength, ALL, replies, labels, harm)]
    return points + [
        _point(setting, strength, group, [reply for reply in replies if reply.group == group], labels, harm)
        for group in groups
    ]


def _point(
    setting: str,
    strength: float | None,
    group: str,
    replies: Sequence[Reply],
    labels: Sequence[str],
    harm: Collection[str],
) -> Point:
    labelled = [reply.label for reply in replies if reply.label is not None]
    repetition = [reply.repetition for reply in replies if not math.isnan(reply.repetition)]
    return Point(
        setting=setting,
        strength=strength,
        group=group,
        replies=len(replies),
        labelled=len(labelled),
        unlabelled=sum(reply.is_judged and reply.label is None for reply in replies),
        waiting=sum(not reply.is_judged and not reply.is_empty for reply in replies),
        empty=sum(reply.is_empty for reply in replies),
        rates=tuple(_rate(label, labelled.count(label), len(labelled)) for label in labels),
        repetition=_mean(repetition),
        degenerate=_mean(float(rate >= DEGENERATE) for rate in repetition),
        cut=_mean(float(reply.is_cut) for reply in replies),
        projection=_mean(reply.projection for reply in replies if not math.isnan(reply.projection)),
        harm=_rate("harm", sum(label in harm for label in labelled), len(labelled)) if harm else None,
    )


def _rate(label: str, count: int, total: int) -> Rate:
    return Rate(label, count, count / total if total else math.nan, *wilson_interval(count, total))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else math.nan


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
