"""What becomes of a rollout that a judge was asked about: a score, or the reason why there is none. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..personas import Kind

WhyUnscored = Literal["refusal", "unreadable", "content_filter", "judge_refused", "request_refused", "not_given"]
"""Why a rollout that was judged has no score.

``refusal``: the judge says that the response refuses to answer, as the rubric of traits provides for. ``unreadable``:
no score could be read from any of its replies. ``content_filter``: a filter of the server kept it from replying.
``judge_refused``: the judge itself refused. ``request_refused``: the server does not take this request, for its length
for instance. ``not_given``: an imported file lists the rollout without a score.
"""

SCALES: dict[Kind, tuple[int, int]] = {"role": (0, 3), "trait": (0, 100), "default": (0, 3)}
"""Lowest and highest score of each kind. The default is not judged; imported scores of it are on the roles' scale."""

JUDGED_KINDS: tuple[Kind, ...] = ("role", "trait")
"""The kinds whose responses are judged: every rollout of the default counts, whatever it says."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one rollout.

    Attributes:
        row: Row of the rollout in the activation arrays.
        score: Its score; None where there is none.
        reason: Why there is none; None where there is one.
        detail: The reason in a few words; empty where there is nothing to add.
        reply: Text of the judge's last reply; None where there is none.
        asks: How often the judge was asked; 0 for an imported score.
    """

    row: int
    score: float | None
    reason: WhyUnscored | None = None
    detail: str = ""
    reply: str | None = None
    asks: int = 0


def is_on_scale(kind: Kind, score: float) -> bool:
    """Whether a score is in the range of its kind, both ends included; False for NaN, and for kinds that have none.

    Example:
        >>> is_on_scale("role", 3), is_on_scale("role", 3.5), is_on_scale("trait", 100)
        (True, False, True)
    """
    lowest, highest = SCALES.get(kind, (1, 0))
    return lowest <= score <= highest
