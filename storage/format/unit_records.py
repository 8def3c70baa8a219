"""Parts of a commit record that only some runs have: how a server answered, and what interventions did."""

from __future__ import annotations

from ...jobs.work.rollouts import ServedTokens
from .sealed import Record


class ServedUnit(Record):
    """How a server answered the requests of a unit.

    Attributes:
        tokens: For each rollout, how its token ids compare with those that the server sampled; see ``ServedTokens``.
        fields_left_out: Fields of the requests that the server did not take, so that its own defaults apply.
    """

    tokens: tuple[ServedTokens, ...]
    fields_left_out: tuple[str, ...] = ()


class EditedUnit(Record):
    """What the run's interventions did to the rollouts of a unit, over tokens and edited layers.

    Attributes:
        shares: For each rollout, the share that was changed.
        corrections: For each rollout, the mean length of the change where something was changed, in units of the
            residual stream; 0 where nothing was.
    """

    shares: tuple[float, ...]
    corrections: tuple[float, ...]
