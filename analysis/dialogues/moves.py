"""What stood where a conversation moved most: the largest changes between successive replies. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..watching.distribution import Distribution
from ..watching.scores import number
from .turns import Float64, Turns


@dataclass(frozen=True)
class Move:
    """One reply that lies far from the reply before it, with the texts around it.

    Attributes:
        conversation_index: Its conversation.
        turn_index: Its place among the turns of the conversation: user 0, assistant 1 and so on.
        group: Group of the conversation.
        before: Projection of the reply before it.
        after: Its own projection.
        user: The user's message between the two.
        reply_before: Text of the reply before it.
        reply: Its text.
    """

    conversation_index: int
    turn_index: int
    group: str
    before: float
    after: float
    user: str
    reply_before: str
    reply: str

    @property
    def change(self) -> float:
        """The change, in axis sign: negative is away from the Assistant."""
        return self.after - self.before

    def as_dict(self, compared: Distribution) -> dict[str, Any]:
        """Return the move as JSON values.

        Args:
            compared: The projections in whose standard deviations the change is given too.
        """
        return {
            "conversation_index": self.conversation_index,
            "turn_index": self.turn_index,
            "group": self.group,
            "change": number(self.change),
            "change_in_std": number(self.change / compared.std) if compared.std > 0 else None,
            "before": number(self.before),
            "after": number(self.after),
            "user": self.user,
            "reply_before": self.reply_before,
            "reply": self.reply,
        }


def changes_of(turns: Turns) -> Float64:
    """Return the change of each reply since the one before it in its conversation.

    Args:
        turns: The replies; the first layer counts.

    Returns:
        ``(N,)``; NaN for a first reply, and where it or the one before has no projection.

    Example:
        >>> from persona_atlas import open_axis, open_run, reduce
        >>> from persona_atlas.analysis.dialogues.turns import read_turns
        >>> made = reduce("runs/demo", progress=False)
        >>> changes = changes_of(read_turns(open_run("runs/talks"), open_axis("runs/demo")))
        >>> np.isfinite(changes).tolist()
        [False, True]
    """
    changes_N = np.full(len(turns), np.nan)
    for places in turns.by_conversation().values():
        follows = np.diff(turns.reply_number[places]) == 1
        changes_N[places[1:][follows]] = np.diff(turns.projection[places])[follows]
    return changes_N


def largest_moves(turns: Turns, most: int) -> tuple[tuple[Move, ...], tuple[Move, ...]]:
    """Find the replies that lie farthest from the reply before them, in both directions.

    Args:
        turns: The replies; the first layer counts.
        most: How many in each direction, at most.

    Returns:
        Those away from the Assistant and those toward it, the largest first; of equal ones the earlier in the store.
    """
    changes_N = changes_of(turns)
    before_N = np.full(len(turns), -1)
    for places in turns.by_conversation().values():
        before_N[places[1:]] = places[:-1]
    down = [place for place in np.argsort(changes_N, kind="stable") if changes_N[place] < 0][:most]
    up = [place for place in np.argsort(-changes_N, kind="stable") if changes_N[place] > 0][:most]
    return tuple(_move(turns, int(place), int(before_N[place])) for place in down), tuple(
        _move(turns, int(place), int(before_N[place])) for place in up
    )


def _move(turns: Turns, place: int, before: int) -> Move:
    return Move(
        conversation_index=int(turns.conversation_index[place]),
        turn_index=int(turns.turn_index[place]),
        group=str(turns.group[place]),
        before=float(turns.projection[before]),
        after=float(turns.projection[place]),
        user=str(turns.user[place]),
        reply_before=str(turns.response[before]),
        reply=str(turns.response[place]),
    )
