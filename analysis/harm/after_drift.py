"""Harm after drift: the projection of each conversation's first reply beside the harm of its second. Pure numpy.

Every projection is in axis sign: higher is nearer the Assistant. So a negative correlation says that replies far from
the Assistant are followed by harm more often.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError
from ..dialogues.turns import Turns
from ..sweeping.intervals import wilson_interval
from .correlation import FEW_ROLES, SAMPLES, Correlation, correlation_over_roles, correlation_over_rollouts
from .harm_numbers import harm_numbers
from .rates import BINS, HarmRate, harm_by_bin, harm_by_role

FIRST_TURN, SECOND_TURN = 1, 3
"""Turn of the reply to the neutral question, and of that to the request."""


@dataclass(frozen=True, eq=False)
class HarmAfterDrift:
    """What the study shows.

    Attributes:
        layer: Layer of the projections.
        conversations: Number of conversations of which both replies are there.
        labelled: Number of them whose second reply has a label and whose first has a projection: all numbers are of
            these.
        unlabelled: Number, without the empty, whose second reply the judge answered about without a label that can be
            read.
        waiting: Number whose second reply has something to judge and was not judged.
        empty: Number of which a reply is empty.
        harmful: Number of the labelled that are harm.
        rate: Their share; None where nothing is labelled.
        rate_low: Lower end of the Wilson interval of 95 %.
        rate_high: Upper end.
        rollouts: Correlation over rollouts; None where there is none, and ``notes`` say why.
        roles: Correlation over the means of roles; likewise.
        by_bin: Harm in bins of the projection.
        by_role: Harm of each role, the default Assistant among them.
        by_category: Harm of each category of requests.
        notes: Sentences that belong beside the numbers.
    """

    layer: int
    conversations: int
    labelled: int
    unlabelled: int
    waiting: int
    empty: int
    harmful: int
    rate: float | None
    rate_low: float
    rate_high: float
    rollouts: Correlation | None
    roles: Correlation | None
    by_bin: tuple[HarmRate, ...]
    by_role: tuple[HarmRate, ...]
    by_category: tuple[HarmRate, ...]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints."""
        return {
            "layer": self.layer,
            "conversations": self.conversations,
            "labelled": self.labelled,
            "unlabelled": self.unlabelled,
            "waiting": self.waiting,
            "empty": self.empty,
            "harm": {"count": self.harmful, "rate": self.rate, "low": self.rate_low, "high": self.rate_high},
            "correlation": {
                "rollouts": None if self.rollouts is None else self.rollouts.as_dict(),
                "roles": None if self.roles is None else self.roles.as_dict(),
            },
            "bins": [one.as_dict() for one in self.by_bin],
            "by_role": [one.as_dict() for one in self.by_role],
            "by_category": [one.as_dict() for one in self.by_category],
            "notes": list(self.notes),
        }


def harm_after_drift(
    turns: Turns,
    labels: Mapping[int, str | None],
    counted: Collection[str],
    *,
    bins: int = BINS,
    samples: int = SAMPLES,
    seed: int = 0,
) -> HarmAfterDrift:
    """Put first replies beside second ones, and count.

    Args:
        turns: The replies of the run, with their projections at one layer.
        labels: Label of each second reply that was judged, by its row; None where none could be read.
        counted: The labels that count as harm.
        bins: Number of bins.
        samples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    first_C, second_C = _paired(turns)
    rows = turns.row[second_C].tolist()
    projection_C = turns.projection[first_C]
    harm_C = harm_numbers([labels.get(row) for row in rows], counted)
    empty_C = np.isnan(projection_C) | np.isnan(turns.projection[second_C])
    judged_C = np.array([row in labels for row in rows], dtype=np.bool_)
    kept_C = np.isfinite(harm_C) & np.isfinite(projection_C)
    x_N, y_N, roles = projection_C[kept_C], harm_C[kept_C], turns.group[second_C][kept_C].tolist()
    categories = turns.labels("category")
    by_category = () if categories is None else harm_by_role(x_N, y_N, categories[second_C][kept_C].tolist())
    harmful, labelled = int(y_N.sum()), len(y_N)
    low, high = wilson_interval(harmful, labelled)
    over_rollouts, over_roles, missing = _correlations(x_N, y_N, roles, samples, seed)
    return HarmAfterDrift(
        layer=turns.layers[0],
        conversations=len(rows),
        labelled=labelled,
        unlabelled=int((judged_C & np.isnan(harm_C) & ~empty_C).sum()),
        waiting=int((~judged_C & ~empty_C).sum()),
        empty=int(empty_C.sum()),
        harmful=harmful,
        rate=harmful / labelled if labelled else None,
        rate_low=low,
        rate_high=high,
        rollouts=over_rollouts,
        roles=over_roles,
        by_bin=harm_by_bin(x_N, y_N, bins),
        by_role=harm_by_role(x_N, y_N, roles),
        by_category=by_category,
        notes=(*turns.notes, *_unfinished(turns, len(rows)), *missing, *_cautions(over_rollouts)),
    )


def _paired(turns: Turns) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return the places of the first and of the second reply of each conversation that has both."""
    place_of = {
        (int(conversation), int(turn)): place
        for place, (conversation, turn) in enumerate(zip(turns.conversation_index, turns.turn_index, strict=True))
    }
    both = [
        (place, place_of[conversation, SECOND_TURN])
        for (conversation, turn), place in place_of.items()
        if turn == FIRST_TURN and (conversation, SECOND_TURN) in place_of
    ]
    pairs_C2 = np.array(both, dtype=np.intp).reshape(-1, 2)
    return pairs_C2[:, 0], pairs_C2[:, 1]


def _correlations(
    x_N: npt.NDArray[np.float64], y_N: npt.NDArray[np.float64], roles: list[str], samples: int, seed: int
) -> tuple[Correlation | None, Correlation | None, list[str]]:
    found: list[Correlation | None] = []
    notes: list[str] = []
    for name, correlate in (("rollouts", correlation_over_rollouts), ("roles", correlation_over_roles)):
        try:
            found.append(correlate(x_N, y_N, roles, samples, seed))
        except InputError as error:
            # The rates are there all the same, and the reason stands where the correlation would.
            found.append(None)
            notes.append(f"No correlation over {name}: {error.message}")
    return found[0], found[1], notes


def _unfinished(turns: Turns, num_pairs: int) -> list[str]:
    left = turns.num_conversations - num_pairs
    return [f"Conversations without a second reply, which are not counted: {left}."] if left else []


def _cautions(over_rollouts: Correlation | None) -> list[str]:
    if over_rollouts is None:
        return []
    notes: list[str] = []
    if over_rollouts.roles < FEW_ROLES:
        notes.append(
            f"{over_rollouts.roles} roles are few: intervals of a bootstrap over fewer than {FEW_ROLES} are too narrow."
        )
    if over_rollouts.undefined:
        notes.append(
            f"{over_rollouts.undefined:.0%} of the bootstrap samples have no correlation, since harm is the same in "
            "all of their roles; the intervals are those of the others."
        )
    return notes
