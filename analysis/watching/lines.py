"""Scores for the terminal: a block of lines for each conversation and layer, with a sparkline. Prints nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from ...jobs.wording import count_of, on_one_line
from .scores import Scale, ScoredConversation, ScoredTurn, Watched

_BARS = "▁▂▃▄▅▆▇█"

_HEADS = ("turn", "role", "tokens", "projection", "change", "centred", "z-score", "percentile", "floor")
_LEFT = ("role", "floor")
_LEAST_TEXT = 12
"""Columns of the terminal without which the text of a turn is left out."""


def sparkline(values: Sequence[float], low: float, high: float) -> str:
    """Draw values as a line of bars, one character each; a space where there is none.

    Args:
        values: The values; NaN where there is none.
        low: Value of the lowest bar.
        high: Value of the highest bar.

    Example:
        >>> sparkline([0.0, 1.0, math.nan, 2.0], 0.0, 2.0)
        '▁▅ █'
    """
    room = high - low or 1.0
    steps = len(_BARS) - 1
    return "".join(
        " " if math.isnan(value) else _BARS[min(steps, max(0, math.floor((value - low) / room * steps + 0.5)))]
        for value in values
    )


def lines_of(watched: Watched, width: int = 80) -> Iterator[str]:
    """Lay out scored conversations for the terminal.

    Args:
        watched: The conversations. Bars of one layer have one scale over all of them.
        width: Columns of the terminal, into which the texts of the turns are cut.

    Yields:
        Lines, without line breaks.
    """
    for place, scale in enumerate(watched.ruler.scales):
        turns = [turn for conversation in watched.conversations for turn in conversation.turns]
        known = [value for turn in turns if not math.isnan(value := turn.scores[place].projection)]
        low, high = (min(known), max(known)) if known else (0.0, 0.0)
        shown = _Shown(place, low, high, watched.ruler.label, scale)
        for conversation in watched.conversations:
            yield from shown.conversation(conversation, width)
            yield ""


class _Shown:
    """How one layer is shown: where its values are in the turns, and their range."""

    def __init__(self, place: int, low: float, high: float, label: str | None, scale: Scale) -> None:
        self._place, self._low, self._high, self._label, self._scale = place, low, high, label, scale
        spread = high - low
        self._decimals = max(0, min(6, 2 - math.floor(math.log10(spread)))) if spread > 0 else 2

    def conversation(self, conversation: ScoredConversation, width: int) -> Iterator[str]:
        """Yield the lines of one conversation."""
        yield f"{on_one_line(conversation.name)}, layer {self._scale.layer} (higher is nearer the Assistant)"
        roles = list(dict.fromkeys(turn.role for turn in conversation.turns))
        for role in roles:
            turns = [turn for turn in conversation.turns if turn.role == role]
            yield self._summary(turns, f"{role} " if len(roles) > 1 else "")
        cells = [self._cells(turn) for turn in conversation.turns]
        kept = [
            column
            for column, head in enumerate(_HEADS)
            if any(line[column] for line in cells) and (head != "role" or len(roles) > 1)
        ]
        sizes = {column: max(len(_HEADS[column]), *(len(line[column]) for line in cells)) for column in kept}

        def joined(line: Sequence[str]) -> str:
            return "  ".join(
                f"{line[column]:{'<' if _HEADS[column] in _LEFT else '>'}{sizes[column]}}" for column in kept
            )

        yield joined(_HEADS)
        room = width - len(joined(_HEADS)) - 2
        for turn, line in zip(conversation.turns, cells, strict=True):
            yield f"{joined(line)}  {_cut(turn.text, room)}".rstrip()

    def _summary(self, turns: Sequence[ScoredTurn], who: str) -> str:
        values = [turn.scores[self._place].projection for turn in turns]
        known = [value for value in values if math.isfinite(value)]
        span = f"  {self._number(min(known))} to {self._number(max(known))}" if known else ""
        drawn = f"{who}{sparkline(values, self._low, self._high)}{span}"
        if self._scale.floor is None:
            return drawn
        below = sum(turn.scores[self._place].is_below is True for turn in turns)
        floor = f"floor {self._label}: {self._number(self._scale.floor)} (axis sign)"
        return f"{drawn}; {floor}, {below} of {count_of(len(turns), 'turn')} below"

    def _cells(self, turn: ScoredTurn) -> list[str]:
        score = turn.scores[self._place]
        return [
            str(turn.turn_index),
            turn.role,
            str(turn.num_tokens),
            self._number(score.projection),
            self._number(turn.deltas[self._place], sign="+"),
            self._number(score.centred, sign="+"),
            self._number(score.z_score, 2, "+"),
            self._number(score.percentile, 1),
            {True: "below", False: "above", None: ""}[score.is_below],
        ]

    def _number(self, value: float, decimals: int | None = None, sign: str = "") -> str:
        return "" if math.isnan(value) else f"{value:{sign}.{self._decimals if decimals is None else decimals}f}"


def _cut(text: str, room: int) -> str:
    flat = on_one_line(text)
    if room < _LEAST_TEXT:
        return ""
    return flat if len(flat) <= room else f"{flat[: room - 1]}…"
