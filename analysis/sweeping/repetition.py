"""How far a text repeats itself. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Sequence

NGRAM = 4
"""Tokens of the runs that are counted."""

DEGENERATE = 0.5
"""Repetition from which a reply is called degenerate: half of its runs of four tokens were there before."""


def repetition_rate(token_ids: Sequence[int], n: int = NGRAM) -> float:
    """Return the share of a text's n-grams that have occurred in it before.

    That is 1 - (different n-grams) / (n-grams), over all runs of n consecutive tokens. It is the measure seq-rep-n of
    S. Welleck et al., "Neural text generation with unlikelihood training" (ICLR 2020), and 0 where no n-gram occurs
    twice. A text that says the same over and over comes close to 1; one that is nonsense without repeating itself does
    not.

    Args:
        token_ids: Tokens of the text.
        n: Length of the runs in tokens.

    Returns:
        The share, from 0 up to, but not including, 1; NaN for a text of fewer than n tokens, which has none.

    Example:
        >>> repetition_rate([1, 2, 3, 4, 5, 6]), repetition_rate([7] * 11)
        (0.0, 0.875)
    """
    total = len(token_ids) - n + 1
    if total < 1:
        return math.nan
    return 1 - len({tuple(token_ids[start : start + n]) for start in range(total)}) / total
