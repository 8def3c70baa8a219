"""Walk many passes through a model together: all of them through one decoder layer, then through the next.

What a model does before its first layer, and what it gives every layer besides the stream (masks, rotary embeddings,
positions), is recorded from its own forward pass, in which the layers hand on the stream as it comes. Then the layers
are called with what was recorded. A model that does anything to the stream between two layers is refused, because that
would be left out.

Axes: N tokens of a pass, D d_model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ....jobs.errors import InputError
from ...editing.edited_pass import EditedPass
from ...editing.interventions import Interventions
from ...models.hook_points import first_tensor, tensor_of
from ..loaded_model import LoadedModel
from ..passes.capture import Capture, Observing
from ..passes.packed import PackedPass
from ..reading_pass import RanPass, ReadingPass
from .layer_stream import Forward, LayerStream

_MOST_MASK_BYTES = 16 * 2**20
"""Bytes of the masks of a pass up to which they are kept from one layer to the next. Many passes are held at a time."""


class _Recorded(Exception):  # noqa: N818 - not an error: ends a forward pass whose layers' arguments are all known
    pass


@dataclass(frozen=True, slots=True)
class LayerCall:
    """What a model calls a decoder layer with, besides the stream.

    Attributes:
        args: Positional arguments after the stream.
        named: Arguments by name.
        stream_name: Name under which the stream is passed; None where it is the first positional argument.
    """

    args: tuple[Any, ...]
    named: Mapping[str, Any]
    stream_name: str | None

    def run(self, layer: Any, resid: torch.Tensor) -> torch.Tensor:
        """Call a layer.

        Args:
            layer: The module.
            resid: Its input.

        Returns:
            Its output, as the hooks on it have left it.
        """
        if self.stream_name is None:
            return tensor_of(layer(resid, *self.args, **self.named))
        return tensor_of(layer(*self.args, **self.named, **{self.stream_name: resid}))


@dataclass(eq=False, slots=True)
class Walked:
    """A pass on its way through the layers.

    Attributes:
        resid: Its stream, ``(1, N, D)``: the input of the next layer.
        calls: What each layer is called with.
        context: Makes the context in which layers are called.
        observing: What is observed of it; None for nothing.
        edits: What is edited; None for nothing.
        layout: Its layout; None for a text alone.
    """

    resid: torch.Tensor
    calls: Sequence[LayerCall]
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
    """

    def __init__(
        self, loaded: LoadedModel, stream: LayerStream, capture: Capture, interventions: Interventions
    ) -> None:
        self._loaded = loaded
        self._stream = stream
        self._capture = capture
        self._interventions = interventions

    def walk(self, passes: Iterable[ReadingPass]) -> Iterator[RanPass]:
        """Walk passes through the layers up to the highest one that is captured or edited.

        Args:
            passes: The passes.

        Yields:
            Each pass with what was observed, in the same order, once all have arrived.
        """
        planned = [(one, self._interventions.planned(one.edits)) for one in passes]
        top = max([*self._capture.layers, *(layer for _, edits in planned for layer in edits.layers)])
        begun = [self._begun(one, edits, top) if one.token_ids else None for one, edits in planned]
        self.through(range(top + 1), [walked for walked in begun if walked is not None])
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
            if number in self._capture.layers:
                position = self._capture.layers.index(number)
                for walked in passes:
                    if walked.observing is not None:
                        walked.observing.move_to_host(position)

    def record(self, run: Callable[[], object], top: int) -> tuple[torch.Tensor, list[LayerCall]]:
        """Record what a forward pass of the model gives its layers.

        Args:
            run: Runs the model.
            top: The last layer of interest.

        Returns:
            The input of the first layer, and the arguments of all layers up to ``top``.

        Raises:
            InputError: The model changes the stream between two layers, or calls them in another sequence.
        """
        recorder = _Recorder(type(self._loaded.model).__name__, top)
        with self._stream.replaced(range(self._loaded.num_layers), recorder.forward):
            try:
                run()
            except _Recorded:
                pass
            else:
                raise recorder.refusal(f"ends a forward pass without calling layer {top}")
        assert recorder.entry is not None
        return recorder.entry, recorder.calls

    def _begun(self, one: ReadingPass, edits: EditedPass, top: int) -> Walked:
        """Bring a pass before the first layer."""
        observing = self._capture.begin(one.stretches.wanted, num_tokens=len(one.token_ids), device=self._loaded.device)
        if one.is_alone:
            resid, calls = self.record(partial(self._loaded.run_alone, one.token_ids), top)
            return Walked(resid, calls, observing=observing, edits=edits)
        layout = PackedPass(self._loaded.device, one.segments)
        resid, calls = self.record(partial(layout.run, self._loaded.model, one.token_ids, None), top)
        return Walked(resid, calls, layout.running, observing, edits, layout)

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
            walked.resid = walked.calls[number].run(self._loaded.decoder_layers[number], walked.resid)
        if walked.layout is not None and walked.layout.mask_bytes > _MOST_MASK_BYTES:
            walked.layout.drop_masks()


class _Recorder:
    """Takes the place of all decoder layers in one forward pass."""

    def __init__(self, name: str, top: int) -> None:
        self._name = name
        self._top = top
        self._returned: torch.Tensor | None = None
        self.entry: torch.Tensor | None = None
        self.calls: list[LayerCall] = []

    def forward(self, number: int, wrap: Forward) -> Forward:
        def record(*args: Any, **named: Any) -> Any:
            resid = first_tensor(args, named)
            if number != len(self.calls):
                raise self.refusal(f"calls layer {number} after layer {len(self.calls) - 1}")
            if self._returned is not None and resid is not self._returned:
                raise self.refusal(f"changes the stream between layers {number - 1} and {number}")
            if args and args[0] is resid:
                self.calls.append(LayerCall(args[1:], named, None))
            else:
                name = next((key for key, value in named.items() if value is resid), None)
                if name is None:
                    raise self.refusal(f"calls layer {number} in a way that is not known here")
                self.calls.append(LayerCall(args, {key: named[key] for key in named if key != name}, name))
            if self.entry is None:
                self.entry = resid
            if number == self._top:
                raise _Recorded
            self._returned = resid
            return wrap(resid)

        return record

    def refusal(self, what: str) -> InputError:
        return not_walked(self._name, what)


def not_walked(name: str, what: str) -> InputError:
    """Make the error about a model that cannot be read layer by layer.

    Args:
        name: The model's class.
        what: What it does.
    """
    return InputError(
        f"is streamed, but a {name} {what}, so its layers cannot be run one after another.",
        code="not_streamed",
        field="placement.weights",
        hint="Set placement.weights to resident, which needs the memory for all weights.",
    )
