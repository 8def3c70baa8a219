"""Which rollouts of a unit are recomputed as its canary. Pure: the same job chooses the same rollouts on any machine.

Each rollout draws a number from its seed and address, and those with a low number are chosen. So every row of a unit
and every place in a pass is chosen equally often, and how rollouts are divided into units does not matter. Workers
choose with this, and ``verify`` finds out with it which rollouts had to be chosen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from ..poolings import pooling_named
from ..specs.spec_parts import CanarySpec
from .addresses import RolloutAddress

MOST_ROUNDING = 1.0
"""Relative error above which no rounding is believed: the difference is longer than the vector. In a mixture of experts
a token that went to another expert was off by 0.4."""


def canary_draw(address: RolloutAddress, seed: int) -> float:
    """Draw the number of a rollout, from 0 up to 1.

    Args:
        address: Address of the rollout.
        seed: Seed of the rollout.

    Example:
        >>> address = RolloutAddress("role", "pirate", "pos", 0, 0, 0)
        >>> 0 <= canary_draw(address, 1) < 1, canary_draw(address, 1) == canary_draw(address, 1)
        (True, True)
    """
    digest = hashlib.blake2b(f"canary:{seed}:{address}".encode(), digest_size=8).digest()
    # Of 64 bits a float holds 53; all of them would round up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def can_be_compared(poolings: Sequence[str], num_content_tokens: int, finish_reason: str) -> bool:
    """Whether a rollout has any stored value: those of an empty response have none unless a prompt is pooled.

    Args:
        poolings: Names of the captured poolings.
        num_content_tokens: Number of content tokens of the response.
        finish_reason: Why the response ended; a turn that its dialogue did not reach has no value at all.
    """
    is_reached = finish_reason != "not_reached"
    return any(pooling_named(name).has_value(num_content_tokens, is_reached=is_reached) for name in poolings)


def due_rows(rule: CanarySpec, draws: Sequence[float], comparable: Sequence[bool]) -> tuple[int, ...]:
    """Choose the rows of a unit that have to be compared, whichever worker runs it.

    Args:
        rule: The rule of the job.
        draws: The number of each row, from ``canary_draw``.
        comparable: Whether each row has values that can be compared.

    Returns:
        Indices of rows, ascending.

    Example:
        >>> due_rows(CanarySpec(one_in=4), [0.3, 0.1, 0.2], [True, True, False])
        (1,)
        >>> due_rows(CanarySpec(check="every_unit"), [0.3, 0.1, 0.2], [True, True, False])
        (1,)
    """
    rows = [row for row, is_comparable in enumerate(comparable) if is_comparable]
    if rule.check == "none" or not rows:
        return ()
    chosen = tuple(row for row in rows if draws[row] * rule.one_in < 1)
    if not chosen and rule.check == "every_unit":
        return (min(rows, key=draws.__getitem__),)
    return chosen


def first_rows(draws: Sequence[float], content_tokens: Sequence[int], comparable: Sequence[bool]) -> tuple[int, ...]:
    """Choose the rows of a worker's first unit: the shortest response, and of the others the one with the lowest draw.

    Of two rows with a common prefix at most one can have computed it, so the other shows whether sharing it is right.

    Args:
        draws: The number of each row, from ``canary_draw``.
        content_tokens: Number of content tokens of each row.
        comparable: Whether each row has values that can be compared.

    Returns:
        Indices of at most two rows, ascending.

    Example:
        >>> first_rows([0.9, 0.5, 0.1], [7, 3, 9], [True, True, True])
        (1, 2)
    """
    rows = [row for row, is_comparable in enumerate(comparable) if is_comparable]
    shortest = sorted(rows, key=lambda row: (content_tokens[row], draws[row]))[:1]
    others = sorted((row for row in rows if row not in shortest), key=draws.__getitem__)[:1]
    return tuple(sorted(shortest + others))
