"""Vectors of personas as unions of score classes: role vectors by score, trait vectors of every kind.

Axes: L layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from .classes import ALL, PASSING_PAIRS, SEVENTY
from .moments import Moments

Float64 = npt.NDArray[np.float64]
Groups = Mapping[tuple[str, str], Moments]
"""Moments of one persona and polarity by (class, half)."""

TRAIT_KINDS = ("pos_neg", "pos_neg_50", "pos_default", "pos_70")
"""The kinds of trait vectors."""


def union(groups: Groups, classes: Collection[str], half: str | None = None) -> Moments | None:
    """Merge the moments of some classes of a persona.

    Args:
        groups: Moments by class and half of the questions.
        classes: The classes that count.
        half: ``even`` or ``odd``; None: both.

    Returns:
        The moments; None if no rollout is in these classes, so that there is never a vector of no data.

    Example:
        >>> groups = {("3", "even"): Moments.of(np.array([[[1.0]]])), ("2", "odd"): Moments.of(np.array([[[5.0]]]))}
        >>> union(groups, {"2", "3"}).mean_LD.item(), union(groups, {"3"}, "odd")
        (3.0, None)
    """
    found: Moments | None = None
    for (name, of_half), moments in sorted(groups.items(), key=lambda item: item[0]):
        if moments.count and name in classes and half in (None, of_half):
            found = moments if found is None else found.merge(moments)
    return found


def trait_kinds(
    pos_groups: Groups, neg_groups: Groups, default_mean_LD: Float64 | None, min_count: int
) -> dict[str, tuple[Float64, int]]:
    """Compute a trait's vectors of every kind that there is data for.

    ``pos_neg``: mean of ``pos`` minus mean of ``neg``, no filter. ``pos_neg_50``: the same over the pairs of one
    prompt, question and sample whose scores differ by more than 50, each pair with equal weight. ``pos_default``: mean
    of ``pos`` minus the default vector, no filter. ``pos_70``: mean of the rollouts of ``pos`` scored 70 or more; a
    mean like a role vector and not a difference.

    Args:
        pos_groups: Moments of the trait shown, by class and half.
        neg_groups: Moments of its opposite.
        default_mean_LD: Mean over the default Assistant's rollouts; None if the run has none.
        min_count: Least number of pairs of ``pos_neg_50``, and of rollouts of ``pos_70``; the kinds without a filter
            are there from one rollout on.

    Returns:
        Vector and number of pairs (``pos_neg_50``) or rollouts of ``pos`` behind it, by kind. A kind without data is
        not a key.

    Raises:
        ValueError: The passing pairs of the two polarities differ in number, so they are not the same pairs.

    Example:
        >>> pos, neg = Moments.of(np.array([[[5.0]]])), Moments.of(np.array([[[2.0]]]))
        >>> found = trait_kinds({("pair70", "even"): pos}, {("pair", "even"): neg}, None, min_count=1)
        >>> {kind: (vector.item(), count) for kind, (vector, count) in found.items()}
        {'pos_neg': (3.0, 1), 'pos_neg_50': (3.0, 1), 'pos_70': (5.0, 1)}
    """
    found: dict[str, tuple[Float64, int]] = {}
    pos, neg = union(pos_groups, ALL), union(neg_groups, ALL)
    if pos is not None and neg is not None:
        found["pos_neg"] = pos.mean_LD - neg.mean_LD, pos.count
    paired, counter = union(pos_groups, PASSING_PAIRS), union(neg_groups, PASSING_PAIRS)
    if (paired.count if paired else 0) != (counter.count if counter else 0):
        raise ValueError("the passing pairs of a trait differ in number between its polarities")
    if paired is not None and counter is not None and paired.count >= min_count:
        found["pos_neg_50"] = paired.mean_LD - counter.mean_LD, paired.count
    if pos is not None and default_mean_LD is not None:
        found["pos_default"] = pos.mean_LD - default_mean_LD, pos.count
    scored = union(pos_groups, SEVENTY)
    if scored is not None and scored.count >= min_count:
        found["pos_70"] = scored.mean_LD, scored.count
    return found
