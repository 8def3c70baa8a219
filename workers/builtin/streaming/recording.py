"""Record from a model's own forward pass what it gives its decoder layers, and call them one by one with it.

What a model does before its first layer, and what it gives every layer besides the stream (masks, rotary embeddings,
positions), is found by running it while its layers hand on the stream as it comes. A model that does anything to the
stream between two layers is refused, because that would be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ....jobs.errors import InputError
from ...models.hook_points import first_tensor, tensor_of
from ..loaded_model import LoadedModel
from .layer_stream import Forward, LayerStream


class _Done(Exception):  # noqa: N818 - not an error: ends a forward pass whose layers' arguments are all known
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
class Recorded:
    """A forward pass that waits before one of its layers.

    Attributes:
        resid: Its stream, ``(1, N, D)``: the input of the next layer.
        calls: What each layer is called with.
    """

    resid: torch.Tensor
    calls: Sequence[LayerCall]

    def step(self, number: int, layer: Any) -> None:
        """Call the next layer.

        Args:
            number: Its number.
            layer: The module.
        """
        self.resid = self.calls[number].run(layer, self.resid)


def record(loaded: LoadedModel, stream: LayerStream, run: Callable[[], object], top: int) -> Recorded:
    """Record what a forward pass of a model gives its layers.

    Args:
        loaded: The model.
        stream: Gives its layers their weights; none is loaded here.
        run: Runs the model.
        top: The last layer of interest.

    Raises:
        InputError: The model changes the stream between two layers, or calls them in another sequence.
    """
    recorder = _Recorder(type(loaded.model).__name__, top)
    with stream.replaced(range(loaded.num_layers), recorder.forward):
        try:
            run()
        except _Done:
            pass
        else:
            raise recorder.refusal(f"ends a forward pass without calling layer {top}")
    assert recorder.entry is not None
    return Recorded(recorder.entry, recorder.calls)


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
                raise _Done
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
