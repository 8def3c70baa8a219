"""The drift of conversations on an axis: trajectories and drops by group, and the replies that moved most.

``study_drift`` reads a store and computes all of it; ``drift_of`` does so from replies that were read. Knows nothing of
how the conversations were made.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...jobs.errors import InputError
from ...storage.query.run import Run
from ...storage.query.selection import Layers
from ..axis_source import AxisSource
from ..watching.scores import Scale, ruler_of
from .moves import Move, largest_moves
from .resampling import FEW, FLIPS, SAMPLES
from .trajectories import Drop, Trajectory, Window, drops_of, grid_of, trajectory_of
from .turns import Turns, read_turns


@dataclass(frozen=True)
class DriftSettings:
    """How drift is measured.

    Attributes:
        layer: Layer of the projections, one; None: as ``read_turns`` chooses it.
        window: Which replies a drop is measured between.
        by: Additional key of the conversations by which they are grouped; None: by the persona column.
        most: Replies that are shown in each direction among those that moved most.
        samples: Bootstrap samples over conversations.
        flips: Sign flips of the test.
        seed: Seed of both.
        transfer: Whether another model than the axis's is meant.
    """

    layer: Layers | None = None
    window: Window = field(default_factory=Window)
    by: str | None = None
    most: int = 5
    samples: int = SAMPLES
    flips: int = FLIPS
    seed: int = 0
    transfer: bool = False


@dataclass(frozen=True, eq=False)
class DriftResults:
    """What a study of drift shows.

    Attributes:
        store: The run with the conversations.
        model: Source of its model.
        axis: Where the axis is from.
        scale: The axis at the layer, and what projections are compared with.
        window: Which replies a drop is measured between.
        trajectories: A trajectory for each group, sorted by name.
        drops: The drop of each group, in the same sequence, and of all conversations where there are several groups.
        away: Replies that moved farthest away from the Assistant since the reply before, the farthest first.
        toward: Those that moved farthest toward it.
        notes: Sentences that belong beside the numbers.
    """

    store: str
    model: str
    axis: str
    scale: Scale
    window: Window
    trajectories: tuple[Trajectory, ...]
    drops: tuple[Drop, ...]
    away: tuple[Move, ...]
    toward: tuple[Move, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints; every number is in axis sign, null where it is not known."""
        compared = self.scale.distribution
        return {
            "store": self.store,
            "model": self.model,
            "axis": self.axis,
            "scale": self.scale.as_dict(),
            "drop_is": self.window.describe(),
            "trajectories": [one.as_dict(compared) for one in self.trajectories],
            "drops": [drop.as_dict(compared) for drop in self.drops],
            "moved_most": {
                "away": [move.as_dict(compared) for move in self.away],
                "toward": [move.as_dict(compared) for move in self.toward],
            },
            "notes": list(self.notes),
        }


def study_drift(run: Run, axis: AxisSource, settings: DriftSettings | None = None) -> DriftResults:
    """Measure the drift of a run's conversations, complete or not: its committed units are counted.

    Args:
        run: A run of given conversations or of generated dialogues.
        axis: The axis, usually that of another run of the same model.
        settings: How it is measured; None: the defaults.

    Returns:
        The results; ``dialogues.picture.write_picture`` draws them.

    Raises:
        InputError: The run has no conversations, is of another model, or lacks the layer; or not all conversations have
            the key by which they are to be grouped.
        StoreError: Something stored is damaged.

    Example:
        >>> from persona_atlas import open_axis, open_run, reduce
        >>> made = reduce("runs/demo", progress=False)
        >>> found = study_drift(open_run("runs/talks"), open_axis("runs/demo"))
        >>> [(one.group, one.count_T.tolist()) for one in found.trajectories], found.drops[0].num_conversations
        ([('talks', [1, 1])], 1)
    """
    chosen = settings or DriftSettings()
    turns = read_turns(run, axis, chosen.layer, transfer=chosen.transfer)
    return drift_of(turns, axis, chosen, store=run.url, model=run.model_name)


def drift_of(turns: Turns, axis: AxisSource, settings: DriftSettings, *, store: str, model: str) -> DriftResults:
    """Measure the drift of conversations whose replies were read.

    Args:
        turns: The replies; the first layer counts.
        axis: The axis that they are projected on.
        settings: How it is measured; its layer is that of ``turns`` already.
        store: Where they are from.
        model: Source of the model.

    Raises:
        InputError: There is no reply with a projection, or not all conversations have the key of ``settings.by``.
    """
    grouped = turns if settings.by is None else turns.grouped_by(settings.by)
    if not np.isfinite(grouped.projection).any():
        raise InputError(
            "has no reply with a projection yet.",
            code="no_replies",
            file=store,
            hint="Run its job first; every response of it is empty, or none is committed.",
        )
    grids = grid_of(grouped)
    ruler = ruler_of(axis, [turns.layers[0]])
    numbers = {"samples": settings.samples, "seed": settings.seed}
    trajectories = tuple(trajectory_of(group, grid_CT, **numbers) for group, grid_CT in grids.items())
    drops = drops_of(grids, settings.window, flips=settings.flips, **numbers)
    away, toward = largest_moves(grouped, settings.most)
    notes = (*turns.notes, *ruler.notes, *_notes(trajectories, drops))
    return DriftResults(
        store, model, axis.name, ruler.scales[0], settings.window, trajectories, drops, away, toward, notes
    )


def _notes(trajectories: tuple[Trajectory, ...], drops: tuple[Drop, ...]) -> list[str]:
    notes: list[str] = []
    few = [drop.group for drop in drops if drop.num_conversations < FEW]
    if few:
        notes.append(
            f"Fewer than {FEW} conversations in {', '.join(few)}: intervals are too narrow there, and the p of n "
            "conversations is at least 2 / 2^n."
        )
    if any(len(set(one.count_T.tolist())) > 1 for one in trajectories):
        notes.append(
            "Conversations differ in length: a mean at a late reply is of those that went on, which may not be like "
            "the others."
        )
    left_out = sum(drop.num_left_out for drop in drops[: len(trajectories)])
    if left_out:
        notes.append(f"Conversations without a reply after their beginning, which have no drop: {left_out}.")
    return notes
