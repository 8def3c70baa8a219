"""How far a setting changes a rate, on the same prompts: paired differences with intervals. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from ..sweeping.intervals import Z_95, wilson_interval
from ..sweeping.points import ALL, Reply

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class PairedChange:
    """The change of a rate from one setting to another, over prompts whose replies have a label under both.

    Attributes:
        pairs: Number of pairs of replies.
        before: Number that are counted under the first setting.
        after: Number under the second.
        started: Number that are counted under the second only.
        ceased: Number that are counted under the first only.
        difference: Rate under the second less that under the first; None without pairs.
        low: Lower end of the interval of 95 %; None without pairs.
        high: Upper end; likewise.
    """

    pairs: int
    before: int
    after: int
    started: int
    ceased: int
    difference: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return asdict(self)


def paired_change(before: Mapping[Key, bool], after: Mapping[Key, bool]) -> PairedChange:
    """Compare the replies to the same prompts under two settings.

    Args:
        before: Whether each reply under the first setting is counted, by what identifies its prompt and sample.
        after: The same under the second setting. What only one of the two has is left out.

    Example:
        >>> change = paired_change({1: True, 2: True, 3: False, 4: True}, {1: False, 2: True, 3: False})
        >>> change.pairs, change.ceased, round(change.difference, 3)
        (3, 1, -0.333)
    """
    shared = [(before[key], after[key]) for key in before if key in after]
    both, ceased = shared.count((True, True)), shared.count((True, False))
    started, neither = shared.count((False, True)), shared.count((False, False))
    ends: tuple[float | None, float | None, float | None] = (None, None, None)
    if shared:
        ends = ((started - ceased) / len(shared), *paired_interval(both, started, ceased, neither))
    return PairedChange(len(shared), both + ceased, both + started, started, ceased, *ends)


@dataclass(frozen=True, slots=True)
class HarmChange:
    """The change of harm that a setting of a sweep makes.

    Attributes:
        setting: Name of the setting.
        group: ``all``, or a group of prompts.
        change: The change against the setting without edits.
    """

    setting: str
    group: str
    change: PairedChange

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return {"setting": self.setting, "group": self.group, **self.change.as_dict()}


def harm_changes(
    replies_of: Mapping[str, Sequence[Reply]], baseline: str, counted: Collection[str]
) -> tuple[HarmChange, ...]:
    """Compare the harm under each setting of a sweep with that under one of them, prompt by prompt.

    Args:
        replies_of: The replies under each setting, by its name. ``Reply.address`` says which belong together.
        baseline: Name of the setting that the others are compared with.
        counted: The labels that count as harm.

    Returns:
        For each other setting the change of all replies, then that of each group.

    Example:
        >>> plain = [Reply("a", 0.0, label="harmful", address=(1,)), Reply("a", 0.0, label="harmful", address=(2,))]
        >>> capped = [Reply("a", 0.0, label="refusal", address=(1,)), Reply("a", 0.0, address=(2,))]
        >>> whole, group = harm_changes({"plain": plain, "cap": capped}, "plain", ("harmful",))
        >>> whole.setting, whole.change.pairs, whole.change.difference, group.group
        ('cap', 1, -1.0, 'a')
    """
    found: list[HarmChange] = []
    for setting, replies in replies_of.items():
        if setting == baseline:
            continue
        groups = dict.fromkeys(reply.group for reply in replies if reply.group)
        for group in (ALL, *groups):
            before, after = (
                {
                    reply.address: reply.label in counted
                    for reply in of_setting
                    if reply.label is not None and group in (ALL, reply.group)
                }
                for of_setting in (replies_of[baseline], replies)
            )
            found.append(HarmChange(setting, group, paired_change(before, after)))
    return tuple(found)


def paired_interval(both: int, first: int, second: int, neither: int, z: float = Z_95) -> tuple[float, float]:
    """Return an interval of the difference of two rates that were observed in pairs.

    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial proportions based on
    paired data", Statistics in Medicine 17 (1998), 2635-2650, method 10: the Wilson intervals of both rates are
    combined, with the correlation of the pairs, which is corrected for continuity where it is positive. Unlike a
    bootstrap over pairs it has a width also where no pair changed. The pairs are taken as independent.

    Args:
        both: Pairs that are counted in both rates.
        first: Pairs that are counted in the first rate only.
        second: Pairs that are counted in the second only.
        neither: Pairs that are counted in none.
        z: Quantile of the standard normal distribution; by default that of 95 %.

    Returns:
        Lower and upper end of the first rate less the second; -1 and 1 without pairs.

    Raises:
        ValueError: A number is negative.

    Example:
        >>> low, high = paired_interval(36, 12, 2, 0)
        >>> round(low, 4), round(high, 4)
        (0.0569, 0.3404)
    """
    if min(both, first, second, neither) < 0:
        raise ValueError(f"a negative number of pairs: {both}, {first}, {second}, {neither}")
    total = both + first + second + neither
    if total == 0:
        return -1.0, 1.0
    rate_1, rate_2 = (both + first) / total, (both + second) / total
    (low_1, high_1), (low_2, high_2) = (wilson_interval(both + only, total, z) for only in (first, second))
    phi = _phi(both, first, second, neither)
    below, above = _length(rate_1 - low_1, high_2 - rate_2, phi), _length(high_1 - rate_1, rate_2 - low_2, phi)
    difference = rate_1 - rate_2
    return max(-1.0, difference - below), min(1.0, difference + above)


def _phi(both: int, first: int, second: int, neither: int) -> float:
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    if not margins:
        return 0.0
    surplus = both * neither - first * second
    if surplus > 0:
        surplus = max(surplus - (both + first + second + neither) / 2, 0.0)
    return surplus / math.sqrt(margins)


def _length(one: float, other: float, phi: float) -> float:
    # Rounding can take the sum of squares below zero where phi is 1 and the two are equal.
    return math.sqrt(max(one * one - 2 * phi * one * other + other * other, 0.0))
