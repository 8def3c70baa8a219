"""Classes of rollouts by their scores, so that sums are kept per class and sets of vectors are unions of classes.

A role's rollout is in the class of its score: 0 refuses, 1 answers as itself, 2 an AI with traits of the role, 3 plays
the role. A trait's is in one of four, by two questions: does its pair show the trait (``pair``), and was it scored 70
or more (``70``)? What no judge has scored is ``unscored``, and the default Assistant, which is never judged, is
``any``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from ..jobs.errors import InputError

DEFAULT = "any"
"""The class of every rollout of the default Assistant: it is never filtered."""
UNSCORED = "unscored"
"""The class of a rollout of a role or trait that has no score."""
ROLE_SCORES = ("0", "1", "2", "3")
"""The classes of a role's scored rollouts."""
FULLY = frozenset({"3"})
"""Rollouts of a role that play it fully."""
SOMEWHAT = frozenset({"2"})
"""Rollouts of a role that play it somewhat."""
TRAIT_SCORES = ("pair", "pair70", "single", "single70")
"""The classes of a trait's scored rollouts."""
PASSING_PAIRS = frozenset({"pair", "pair70"})
"""Rollouts of a trait, of either polarity, whose pair shows the trait."""
SEVENTY = frozenset({"pair70", "single70"})
"""Rollouts of a trait that are scored 70 or more."""
ALL = frozenset({DEFAULT, UNSCORED, *ROLE_SCORES, *TRAIT_SCORES})
"""Every class: rollouts whatever their scores."""
HALVES = ("even", "odd")
"""The halves into which questions are divided for the split-half reliability, by index: even, odd, even, and so on."""

PAIR_DIFFERENCE = 50.0
"""A pair shows the trait if its scores differ by more than this, in the direction of the trait."""
SHOWS_TRAIT = 70.0
"""The least score that counts as showing the trait."""

_HIGHEST = {"role": 3.0, "trait": 100.0}


def at_least(min_score: float) -> frozenset[str]:
    """Return the classes of a role's rollouts that are scored ``min_score`` or more, after rounding.

    Args:
        min_score: Least score that counts.

    Example:
        >>> sorted(at_least(2))
        ['2', '3']
    """
    return frozenset(score for score in ROLE_SCORES if int(score) >= min_score)


def score_classes(lines: pa.Table) -> list[str]:
    """Return the class of each rollout of one persona.

    A role's score is rounded to the nearest of 0 to 3, a half to the even number. A trait's rollout is paired with that
    of the other polarity with the same prompt, question and sample; the pair passes if both are scored and the score of
    ``pos`` exceeds that of ``neg`` by more than 50. Rollouts without one of these numbers make no pair. Lines of
    rollouts without a vector should be left out before, or a pair would count of which only one has a vector.

    Args:
        lines: Lines of the index of one persona, for a trait of both polarities, with the columns ``kind``,
            ``polarity``, ``prompt_index``, ``question_index``, ``sample_index`` and ``score`` (null or NaN: not
            scored).

    Returns:
        A class for each line, in the order of the lines: ``any`` for the default; ``unscored``, ``0``, ``1``, ``2`` or
        ``3`` for a role; ``unscored``, ``pair``, ``pair70``, ``single`` or ``single70`` for a trait.

    Raises:
        InputError: A score is below 0, or above 3 for a role or 100 for a trait.

    Example:
        >>> lines = pa.table({
        ...     "kind": ["trait"] * 4, "polarity": ["pos", "neg", "pos", "neg"], "prompt_index": [0, 0, 0, 0],
        ...     "question_index": [0, 0, 1, 1], "sample_index": [0, 0, 0, 0], "score": [90.0, 10.0, 80.0, None],
        ... })
        >>> score_classes(lines)
        ['pair70', 'pair', 'single70', 'unscored']
    """
    kinds = lines["kind"].to_pylist()
    scores = lines["score"].to_numpy(zero_copy_only=False).astype(np.float64)
    _refuse_out_of_range(kinds, scores)
    passes = _passing(lines, scores)
    return [_class_of(kind, float(score), bool(pair)) for kind, score, pair in zip(kinds, scores, passes, strict=True)]


def _class_of(kind: str, score: float, passes: bool) -> str:
    if kind not in _HIGHEST:
        return DEFAULT
    if math.isnan(score):
        return UNSCORED
    if kind == "role":
        return ROLE_SCORES[round(score)]
    return ("pair" if passes else "single") + ("70" if score >= SHOWS_TRAIT else "")


def _passing(lines: pa.Table, scores: np.ndarray) -> np.ndarray:
    """Whether each line belongs to a pair that shows its trait."""
    names = ("kind", "prompt_index", "question_index", "sample_index", "polarity")
    addresses = list(zip(*(lines[name].to_pylist() for name in names), strict=True))
    score_of = dict(zip(addresses, scores.tolist(), strict=True))
    times = Counter(addresses)

    def passes(pair: tuple[object, ...]) -> bool:
        pos, neg = (*pair, "pos"), (*pair, "neg")
        # Without a whole address, or with two rollouts at one, nobody knows what belongs together.
        if None in pair or times[pos] != 1 or times[neg] != 1:
            return False
        # A comparison with NaN is false: a pair of which one is not scored does not pass.
        return score_of[pos] - score_of[neg] > PAIR_DIFFERENCE

    return np.array([address[0] == "trait" and passes(address[:4]) for address in addresses], dtype=bool)


def _refuse_out_of_range(kinds: Iterable[str], scores: np.ndarray) -> None:
    for kind, score in zip(kinds, scores.tolist(), strict=True):
        highest = _HIGHEST.get(kind)
        if highest is not None and (score < 0 or score > highest):
            raise InputError(
                f"a {kind} is scored from 0 to {highest:g}, but a rollout has {score:g}.",
                code="bad_score",
                field="judge",
                hint="Choose another judge, or import its scores again.",
            )
