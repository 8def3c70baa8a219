"""How the drift of conversations is printed, by each command that measures it."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ....analysis.dialogues.drift import DriftResults
from ....analysis.dialogues.moves import Move
from ....analysis.dialogues.trajectories import Drop, Trajectory
from ....analysis.watching.distribution import Distribution
from .. import output

_SHOWN = (1, 2, 3, 5, 8, 10, 15, 20, 30, 50)
"""Replies that a table of trajectories shows, besides the last."""
_TEXT = 160
"""Characters of a text that a table shows."""


def print_drift(results: DriftResults, picture: Path | None = None) -> None:
    """Print what a study of drift found, as tables on stdout.

    Args:
        results: The results of ``study_drift``.
        picture: The file that a picture was written to; None for none.
    """
    compared = results.scale.distribution
    against = f", z among {len(compared.sorted_N)} {compared.of} of {results.axis}" if len(compared.sorted_N) else ""
    digits = _digits(results)
    output.table(
        f"Mean projection at layer {results.scale.layer}, higher is nearer the Assistant{against}",
        ["group", "reply", "n", "mean", "95 %", "z", "since first"],
        [line for one in results.trajectories for line in _trajectory(one, compared, digits)],
    )
    output.table(
        f"Drop: {results.window.describe()}; negative is away from the Assistant",
        ["group", "n", "drop", "95 %", "in std", "away", "p", "p, Holm"],
        [_drop(drop, compared, digits) for drop in results.drops],
    )
    for title, moves in (("away from", results.away), ("toward", results.toward)):
        if moves:
            output.table(
                f"Replies that moved farthest {title} the Assistant since the reply before",
                ["change", "where", "the user said", "the reply"],
                [_move(move, digits) for move in moves],
            )
    output.text("n: conversations. away: the share of them that moved away from the Assistant.")
    for note in results.notes:
        output.text(note)
    if picture is not None:
        output.text(f"Picture: {picture}")


def _digits(results: DriftResults) -> int:
    """Return how many digits after the point tell the replies apart: projections may be thousands, or hundredths."""
    means = np.concatenate([one.mean_T for one in results.trajectories])
    widths = [high - low for one in results.trajectories for low, high in one.interval_T2]
    return digits_for([float(np.nanmax(means) - np.nanmin(means)), results.scale.distribution.std, *widths])


def _trajectory(one: Trajectory, compared: Distribution, digits: int) -> list[list[str]]:
    last = len(one.mean_T)
    return [
        [
            one.group,
            str(reply),
            str(int(one.count_T[reply - 1])),
            value(float(one.mean_T[reply - 1]), digits),
            interval(one.interval_T2[reply - 1].tolist(), digits),
            value(compared.z_score(float(one.mean_T[reply - 1])), 2, signed=True),
            value(float(one.change_T[reply - 1]), digits, signed=True) if reply > 1 else "-",
        ]
        for reply in sorted({*(number for number in _SHOWN if number < last), last})
    ]


def _drop(drop: Drop, compared: Distribution, digits: int) -> list[str]:
    return [
        drop.group,
        str(drop.num_conversations),
        value(drop.change, digits, signed=True),
        interval(drop.interval, digits, signed=True),
        value(drop.change / compared.std if compared.std > 0 else math.nan, 2, signed=True),
        "-" if math.isnan(drop.share_down) else f"{drop.share_down:.0%}",
        probability(drop.p_value),
        probability(drop.p_adjusted),
    ]


def _move(move: Move, digits: int) -> list[str]:
    where = f"{move.group}, conversation {move.conversation_index}, turn {move.turn_index}"
    return [value(move.change, digits, signed=True), where, shortened(move.user), shortened(move.reply)]


def shortened(text: str) -> str:
    """Return the beginning of a text on one line."""
    return textwrap.shorten(text, _TEXT, placeholder=" ...") or "(empty)"


def digits_for(sizes: Sequence[float]) -> int:
    """Return how many digits after the point show three digits of the largest of some differences.

    Args:
        sizes: The differences; those that are not known or 0 are passed over.

    Example:
        >>> digits_for([0.031, float("nan")]), digits_for([412.0]), digits_for([])
        (4, 0, 3)
    """
    known = [size for size in sizes if math.isfinite(size) and size > 0]
    return min(8, max(0, 2 - math.floor(math.log10(max(known))))) if known else 3


def value(number: float, digits: int, *, signed: bool = False) -> str:
    """Format a number; a dash where it is not known.

    Example:
        >>> value(12.3456, 2), value(-0.5, 1, signed=True), value(float("nan"), 2)
        ('12.35', '-0.5', '-')
    """
    return "-" if math.isnan(number) else f"{number:{'+' if signed else ''}.{digits}f}"


def interval(bounds: Sequence[float], digits: int, *, signed: bool = False) -> str:
    """Format an interval; a dash where it is not known.

    Example:
        >>> interval((-0.25, 1.0), 2, signed=True), interval((float("nan"), float("nan")), 2)
        ('-0.25 to +1.00', '-')
    """
    return "-" if any(map(math.isnan, bounds)) else " to ".join(value(bound, digits, signed=signed) for bound in bounds)


def probability(p: float) -> str:
    """Format a p value; a dash where it is not known.

    Example:
        >>> probability(0.03125), probability(0.0001), probability(float("nan"))
        ('0.031', '0.0001', '-')
    """
    return "-" if math.isnan(p) else f"{p:.2g}"
