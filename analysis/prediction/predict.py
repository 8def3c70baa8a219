"""Predict where replies lie on an axis from the messages before them, and cluster these messages.

Embeddings come from outside, as numbers. Every projection is in axis sign: higher is nearer the Assistant. Axes: N
replies, E width of the embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...jobs.errors import InputError
from ..axis_source import AxisSource
from ..dialogues.moves import changes_of
from ..dialogues.resampling import SAMPLES
from ..dialogues.turns import Turns
from ..watching.scores import Scale, ruler_of
from .clusters import Cluster, clusters_of
from .holding_out import FEWEST, schemes_of
from .regression import Regression, regress

Float64 = npt.NDArray[np.float64]

_MOST_CLUSTERS = 8
_MESSAGES_PER_CLUSTER = 15


@dataclass(frozen=True)
class PredictionSettings:
    """How well messages predict replies is measured so.

    Attributes:
        folds: Folds of what is held out, at least three.
        permutations: Permutations of the test; 0 for none.
        clusters: Clusters of messages; None: eight, or fewer where there would be under 15 messages in each.
        typical: Messages to show of each cluster.
        samples: Bootstrap samples of the intervals.
        seed: Seed of folds, permutations, clusters and samples.
    """

    folds: int = 5
    permutations: int = 499
    clusters: int | None = None
    typical: int = 3
    samples: int = SAMPLES
    seed: int = 0


@dataclass(frozen=True, eq=False)
class PredictionResults:
    """What a study of prediction shows.

    Attributes:
        store: The run with the conversations.
        model: Source of its model.
        axis: Where the axis is from.
        embedder: Source of the model whose embeddings of the messages predict.
        scale: The axis at the layer, and what projections are compared with.
        projection: The prediction of where the next reply lies.
        change: The prediction of how far it lies from the reply before; None where too few replies have one before.
        clusters: Clusters of the messages that have a reply before and after, by mean change; empty likewise.
        notes: Sentences that belong beside the numbers.
    """

    store: str
    model: str
    axis: str
    embedder: str
    scale: Scale
    projection: Regression
    change: Regression | None
    clusters: tuple[Cluster, ...]
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Build the object that ``--json`` prints; numbers are in axis sign, null where one is not known."""
        return {
            "store": self.store,
            "model": self.model,
            "axis": self.axis,
            "embedder": self.embedder,
            "scale": self.scale.as_dict(),
            "projection": self.projection.as_dict(),
            "change": None if self.change is None else self.change.as_dict(),
            "clusters": [cluster.as_dict() for cluster in self.clusters],
            "notes": list(self.notes),
        }


def predict_of(
    turns: Turns,
    embeddings_NE: npt.NDArray[np.floating],
    axis: AxisSource,
    settings: PredictionSettings,
    *,
    store: str,
    model: str,
    embedder: str,
    notes: tuple[str, ...] = (),
) -> PredictionResults:
    """Measure how well the message before a reply predicts the reply.

    Args:
        turns: The replies; the first layer counts.
        embeddings_NE: Embedding of the message before each reply.
        axis: The axis that they are projected on.
        settings: How it is measured.
        store: Where the replies are from.
        model: Source of their model.
        embedder: Source of the model of the embeddings.
        notes: Sentences about the embeddings.

    Raises:
        InputError: There are fewer than three conversations with such a reply, or an embedding is not finite.
    """
    features_NE = np.asarray(embeddings_NE, np.float64)
    if not np.isfinite(features_NE).all():
        raise InputError("an embedding is not finite.", code="not_finite", field="--embedder", hint="Take another.")
    usable = np.array([bool(text.strip()) for text in turns.user.tolist()]) & np.isfinite(turns.projection)
    own, features_NE = turns.take(usable), features_NE[usable]
    if own.num_conversations < FEWEST:
        raise InputError(
            f"has {own.num_conversations} conversations with a reply to a message of the user, and {FEWEST} are the "
            "fewest of which one can be held out.",
            code="too_few_conversations",
            file=store,
            hint="Name a store of more conversations.",
        )
    numbers = {
        "folds": settings.folds,
        "permutations": settings.permutations,
        "samples": settings.samples,
        "seed": settings.seed,
    }
    schemes, said = schemes_of(own)
    projection = regress("projection", own, features_NE, own.projection, schemes, **numbers)
    # Of all replies: a reply may itself have no message while the one after it has.
    changes_N = changes_of(turns)[usable]
    has_change = np.isfinite(changes_N)
    moved, moved_NE, changes_N = own.take(has_change), features_NE[has_change], changes_N[has_change]
    change, clusters = None, ()
    if moved.num_conversations >= FEWEST:
        change = regress("change", moved, moved_NE, changes_N, schemes_of(moved)[0], **numbers)
        clusters = clusters_of(
            moved,
            moved_NE,
            changes_N,
            count=settings.clusters or max(2, min(_MOST_CLUSTERS, len(moved) // _MESSAGES_PER_CLUSTER)),
            typical=settings.typical,
            samples=settings.samples,
            seed=settings.seed,
        )
    ruler = ruler_of(axis, [turns.layers[0]])
    all_notes = (*turns.notes, *ruler.notes, *notes, *said, *_notes(projection, change))
    return PredictionResults(
        store, model, axis.name, embedder, ruler.scales[0], projection, change, clusters, all_notes
    )


def _notes(projection: Regression, change: Regression | None) -> list[str]:
    notes = ["The in-sample figures flatter: the model predicts the replies that it was fitted to."]
    if all(np.isnan(fit.p_value) for fit in projection.fits):
        notes.append("No p value: no permutation was asked for, or no group has two conversations to permute.")
    if change is None:
        notes.append("Too few conversations have a second reply, so changes and clusters are left out.")
    return notes
