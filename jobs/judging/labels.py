"""Read a judge's reply that is to name one of several labels. What may mean another label is not read."""

from __future__ import annotations

import re
from collections.abc import Sequence

from .replies import Reading, without_thoughts

_AROUND = " \t\r\n*_`\"'\u201c\u201d\u2018\u2019()[]{}<>#.!,:;"
_NAMED = re.compile(
    r"\A\W*(?:the\s+)?(?:label|answer|class|category|grade|verdict)(?:\s+is)?\W*[:=\s]\W*", re.IGNORECASE
)
_EXPLAINED = re.compile(r"\s*(?:[-:\u2013\u2014.;(]|\n)")


def read_label(labels: Sequence[str], text: str, *, is_cut: bool = False) -> Reading:
    """Read the label in a judge's reply.

    The reply is the label, with or without a word such as "label" before it; or it begins with the label, and an
    explanation follows in which no other label is named. Upper and lower case are the same.

    Args:
        labels: The labels of the rubric.
        text: The reply.
        is_cut: Whether the reply was cut at its greatest length, so that its last word may be incomplete.

    Returns:
        The reading, whose score is the place of the label in ``labels``; or a problem.

    Example:
        >>> classes = ("assistant", "human", "nonhuman")
        >>> read_label(classes, "Label: **Human**.").score, read_label(classes, "human or nonhuman").problem
        (1.0, 'it names several labels: human, nonhuman')
    """
    said = _NAMED.sub("", without_thoughts(text)).strip(_AROUND)
    if not said:
        return Reading(problem="it is empty")
    named = [place for place, label in enumerate(labels) if _named(label, said)]
    if len(named) > 1:
        return Reading(problem=f"it names several labels: {', '.join(labels[place] for place in named[:4])}")
    if not named:
        return Reading(problem="it names none of the labels")
    label = labels[named[0]]
    if said[: len(label)].casefold() != label.casefold():
        return Reading(problem=f"it does not say that {label} is its label")
    rest = said[len(label) :]
    if not rest and is_cut and text.rstrip().casefold().endswith(label.casefold()):
        return Reading(problem=f"it was cut at {label}, which may go on")
    if rest and not _EXPLAINED.match(rest):
        return Reading(problem=f"it does not say that {label} is its label")
    return Reading(score=float(named[0]))


def _named(label: str, said: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(label)}(?!\w)", said, re.IGNORECASE) is not None
