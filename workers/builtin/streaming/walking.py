"""Walk many passes through a model together: all of them through one decoder layer, then through the next.

What the model gives its layers is recorded from its own forward pass (``recording``), a pass at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

from ...editing.edited_pass import EditedPass
from ...editing.interventions import Interventions
from ..loaded_model import LoadedModel
from ..passes.capture import Capture, Observing
from ..passes.packed import PackedPass
from ..reading_pass import RanPass, ReadingPass
from .layer_stream import LayerStream
from .plain_texts import PlainTexts
from .recording import Recorded, record

_MOST_MASK_BYTES = 16 * 2**20
"""Bytes of the masks of a pass up to which they are kept from one layer to the next. Many passes are held at a time."""


@dataclass(eq=False, slots=True)
class Walked:
    """A pass on its way through the layers.

    Attributes:
        recorded: Its stream, and what each layer is called with.
        context: Makes the context in which layers are called.
        observing: What is observed of it; None for nothing.
        edits: What is edited; None for nothing.
        layout: Its layout; None for a text alone.
    """

    recorded: Recorded
    context: Callable[[], AbstractContextManager[None]] = nullcontext
    observing: Observing | None = None
    edits: EditedPass | None = None
    layout: PackedPass | None = None


class Walker:
    """Walks passes through one model.

    Args:
        loaded: The model, built without the weights of its layers.
        stream: Gives the layers their weights.
        capture: Hooks at the captured layers.
        interventions: Applies interventions to the model.
        beside: Texts that are recomputed beside the passes.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        stream: LayerStream,
        capture: Capture,
        interventions: Interventions,
        beside: PlainTexts,
    ) -> None:
        self._beside = beside
        self._loaded = loaded
        self._stream = stream
        self._capture = capture
        self._interventions = interventions

    def walk(self, passes: Iterable[ReadingPass], walks_left: int = 1) -> Iterator[RanPass]:
        """Walk passes through the layers up to the highest one that is captured or edited.

        Args:
            passes: The passes.
            walks_left: Number of walks of this run that there are still, this one included.

        Yields:
            Each pass with what was observed, in the same order, once all have arrived.
        """
        planned = [(one, self._interventions.planned(one.edits)) for one in passes]
        top = max([*self._capture.layers, *(layer for _, edits in planned for layer in edits.layers)])
        begun = [self._begun(one, edits, top) if one.token_ids else None for one, edits in planned]
        walking = [walked for walked in begun if walked is not None]
        if walking:
            try:
                self._beside.begin(top, walks_left)
                self.through(range(top + 1), walking)
                self._beside.end()
            finally:
                # Where the memory was exhausted, what they hold is needed for the next try.
                self._beside.leave()
        for (one, edits), walked in zip(planned, begun, strict=True):
            observed = {} if walked is None or walked.observing is None else walked.observing.observed()
            yield RanPass(one, observed, edits)

    def through(self, layers: Iterable[int], passes: Sequence[Walked]) -> None:
        """Walk passes through layers; the stream of each is then the output of the last.

        Args:
            layers: The layers, ascending.
            passes: The passes.
        """
        for number in layers:
            for walked in passes:
                self._step(number, walked)
            self._beside.step(number)
            if number in self._capture.layers:
                position = self._capture.layers.index(number)
                for walked in passes:
                    if walked.observing is not None:
                        walked.observing.move_to_host(position)

    def _begun(self, one: ReadingPass, edits: EditedPass, top: int) -> Walked:
        """Bring a pass before the first layer."""
        observing = self._capture.begin(one.stretches.wanted, num_tokens=len(one.token_ids), device=self._loaded.device)
        if one.is_alone:
            recorded = record(self._loaded, self._stream, partial(self._loaded.run_alone, one.token_ids), top)
            return Walked(recorded, observing=observing, edits=edits)
        layout = PackedPass(self._loaded.device, one.segments)
        run = partial(layout.run, self._loaded.model, one.token_ids, None)
        return Walked(record(self._loaded, self._stream, run, top), layout.running, observing, edits, layout)

    def _step(self, number: int, walked: Walked) -> None:
        captured = self._capture.layers
        observing, edits = walked.observing, walked.edits
        with (
            walked.context(),
            nullcontext() if edits is None else self._interventions.attached(edits, number),
            observing.attached(captured.index(number))
            if observing is not None and number in captured
            else nullcontext(),
        ):
            walked.recorded.step(number, self._loaded.decoder_layers[number])
        if walked.layout is not None and walked.layout.mask_bytes > _MOST_MASK_BYTES:
            walked.layout.drop_masks()
