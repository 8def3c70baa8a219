"""The study of prediction: read the replies of a store, embed the messages before them, and predict."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...analysis.axis_source import AxisSource
from ...analysis.dialogues.turns import read_turns
from ...analysis.prediction.predict import PredictionResults, PredictionSettings, predict_of
from ...jobs.wording import count_of
from ...storage.query.run import Run
from ...storage.query.selection import Layers
from ...workers.embedding.embedder_files import find_embedder
from ..run.progress import Progress


@dataclass(frozen=True)
class PredictionStudy:
    """What is predicted, and with what.

    Attributes:
        embedder: The model of the embeddings, as ``find_embedder`` takes it.
        layer: Layer of the projections; None: as ``read_turns`` chooses it.
        by: Additional key of the conversations by which they are grouped; None: by the persona column.
        transfer: Whether another model than the axis's is meant.
        settings: How it is measured.
    """

    embedder: str
    layer: Layers | None = None
    by: str | None = None
    transfer: bool = False
    settings: PredictionSettings = field(default_factory=PredictionSettings)


def study_prediction(run: Run, axis: AxisSource, study: PredictionStudy, progress: Progress) -> PredictionResults:
    """Measure how well the user's message predicts the next reply of a run's conversations.

    The embeddings are computed anew each time: they take seconds, and are not stored.

    Args:
        run: A run of given conversations or of generated dialogues.
        axis: The axis, usually that of another run of the same model.
        study: What is predicted, and with what.
        progress: Prints lines while messages are embedded.

    Raises:
        InputError: There is no such embedder; the run has no conversations, is of another model or lacks the layer; or
            it has too few conversations.
        StoreError: Something stored is damaged.
    """
    # What can be refused without a model is refused before one is loaded.
    files = find_embedder(study.embedder)
    turns = read_turns(run, axis, study.layer, transfer=study.transfer)
    turns = turns if study.by is None else turns.grouped_by(study.by)
    from ...workers.embedding.embedder import Embedder

    progress.say(f"Embedding {count_of(len(turns), 'message')} with {study.embedder}.")
    embedder = Embedder(files)
    with progress.checking("Embedding") as show:
        embedded = embedder.embed(turns.user.tolist(), show)
    notes: tuple[str, ...] = ()
    if embedded.num_cut:
        notes = (f"Messages of more than {embedded.max_tokens} tokens, cut by the embedder: {embedded.num_cut}.",)
    return predict_of(
        turns,
        embedded.values_NE,
        axis,
        study.settings,
        store=run.url,
        model=run.model_name,
        embedder=study.embedder,
        notes=notes,
    )
