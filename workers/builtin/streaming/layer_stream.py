"""Bring the weights of decoder layers to the device in turn: while one layer is computed, the next one is loaded.

There is room for two layers, and a thread that loads. On a GPU the thread copies the tensors of a layer to pinned
memory and from there, on a stream of its own, to the device, so that copies and kernels overlap; on a CPU it copies
them from the files. A layer gets its weights when it is called, whoever calls it: a plain forward pass of the model, or
a walk over many passes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from ...models.hook_points import first_tensor
from .host_copies import HostCopies
from .skeleton import Skeleton

_ALIGNMENT = 256
"""Bytes at whose multiples the tensors of a layer begin."""

Forward = Callable[..., Any]


@dataclass(eq=False)
class _Slot:
    """Room for one layer.

    Attributes:
        flat: Its bytes on the device.
        layer: The layer that it holds; None for none.
        used: On a GPU, recorded behind the last kernel that reads it.
    """

    flat: torch.Tensor
    layer: int | None = None
    used: Any = None


@dataclass(slots=True)
class Loads:
    """What loading took so far.

    Attributes:
        layers: Layers that were loaded.
        bytes: Bytes of their parameters.
        seconds: Seconds that the loading thread was busy.
        waited_s: Seconds in which a layer that was called was not there yet.
    """

    layers: int = 0
    bytes: int = 0
    seconds: float = 0.0
    waited_s: float = 0.0


@dataclass(eq=False)
class _Forms:
    """What the decoder layers of each kind return, besides the stream."""

    extras: dict[object, int | None] = field(default_factory=dict)

    def learn(self, kind: object, output: Any) -> None:
        self.extras[kind] = len(output) - 1 if isinstance(output, tuple | list) else None

    def wrap(self, kind: object, resid: torch.Tensor) -> Any:
        extras = self.extras[kind]
        return resid if extras is None else (resid, *[None] * extras)


class LayerStream:
    """Gives each decoder layer of a skeleton its weights when it is called.

    Args:
        skeleton: The model.
        device: ``cpu`` or ``cuda``.
        num_used: Number of layers, from the first, that are called in turn.

    Attributes:
        loads: What loading took so far.
        num_used: Number of layers that are called in turn.
        first_of_kind: The first layer of every kind: by class, type of attention and shapes of its parameters.
        slot_bytes: Bytes of the room for one layer, whichever it is; there are two.
    """

    def __init__(self, skeleton: Skeleton, device: str, num_used: int) -> None:
        self._skeleton = skeleton
        self._device = device
        self.num_used = num_used
        self.loads = Loads()
        self._kinds = [_kind(skeleton, layer) for layer in range(len(skeleton.layers))]
        self.first_of_kind = sorted({self._kinds.index(kind) for kind in self._kinds})
        self._forms = _Forms()
        self._layouts: dict[int, dict[str, int]] = {}
        # Not only of those called in turn: trials run the first of each kind, and edits may be above captured layers.
        self.slot_bytes = max(self._layout_bytes(layer) for layer in range(len(skeleton.layers)))
        self._slots = [_Slot(torch.empty(self.slot_bytes, dtype=torch.uint8, device=device)) for _ in range(2)]
        self._copies = HostCopies(device, self.slot_bytes)
        self._loader = ThreadPoolExecutor(1, "layer-weights")
        self._current: _Slot = self._slots[0]
        self._ahead: Future[None] | None = None
        self._skipped: frozenset[int] = frozenset()
        for number, layer in enumerate(skeleton.layers):
            # First of all hooks: others may read the layer's weights.
            layer.register_forward_pre_hook(partial(self._give, number), prepend=True)
            layer.register_forward_hook(partial(self._learn, number))

    @contextmanager
    def replaced(self, layers: Collection[int], forward: Callable[[int, Forward], Forward]) -> Iterator[None]:
        """Replace what layers do within the context; they get no weights.

        Args:
            layers: The layers.
            forward: Makes the new ``forward`` of a layer from its number and a function that wraps a stream in what
                such a layer returns.
        """
        before = self._skipped
        self._skipped = before | frozenset(layers)
        for number in layers:
            wrap = partial(self._forms.wrap, self._kinds[number])
            self._skeleton.layers[number].forward = forward(number, wrap)
        try:
            yield
        finally:
            self._skipped = before
            for number in layers:
                del self._skeleton.layers[number].forward

    @contextmanager
    def only(self, layers: Collection[int]) -> Iterator[None]:
        """Let all other layers hand on the stream as it comes within the context.

        Args:
            layers: The layers that run. Of each kind, the first one that is called must be among them, unless it was
                called before.
        """
        others = [number for number in range(len(self._skeleton.layers)) if number not in layers]
        with self.replaced(others, lambda _, wrap: lambda *args, **named: wrap(first_tensor(args, named))):
            yield

    def time_load(self, number: int) -> float:
        """Load a layer into the slot that is free, and return the seconds that it took.

        Args:
            number: 0-based decoder layer.
        """
        slot = self._free_slot()
        began = time.perf_counter()
        self._loader.submit(self._load, slot, number).result()
        return time.perf_counter() - began

    @property
    def all_bytes(self) -> int:
        """Bytes of all layers that are called in turn."""
        return sum(self._skeleton.layer_bytes(number) for number in range(self.num_used))

    def close(self) -> None:
        """End the threads, and let go of all weights of layers; the model cannot be run after that."""
        self._loader.shutdown(wait=True, cancel_futures=True)
        self._copies.close()
        self._take_weights(self._current)
        self._current, self._ahead = _Slot(torch.empty(0, dtype=torch.uint8)), None
        self._slots.clear()

    def _learn(self, number: int, _module: nn.Module, _args: Any, output: Any) -> None:
        if number not in self._skipped:
            self._forms.learn(self._kinds[number], output)

    def _give(self, number: int, _module: nn.Module, _args: Any) -> None:
        """Give a layer that is called its weights, and begin to load the one after it."""
        if number in self._skipped or self._current.layer == number:
            return
        began = time.perf_counter()
        before, slot = self._current, self._free_slot()
        if slot.layer != number:
            self._loader.submit(self._load, slot, number).result()
        self.loads.waited_s += time.perf_counter() - began
        self._take_weights(before)
        for name, offset in self._layout(number).items():
            place = self._skeleton.places[name]
            place.put(nn.Parameter(_view(slot.flat, offset, place.empty), requires_grad=False))
        self._copies.wait_on_device()
        self._current, before.used = slot, self._copies.mark()
        following = self._following(number)
        if following not in (number, before.layer):
            self._ahead = self._loader.submit(self._load, before, following)

    def _take_weights(self, slot: _Slot) -> None:
        """Take its weights from the layer whose they are in a slot."""
        if slot.layer is not None:
            for name in self._layout(slot.layer):
                self._skeleton.places[name].put(self._skeleton.places[name].empty)

    def _free_slot(self) -> _Slot:
        """Return the slot whose layer is not called now, once nothing is being loaded into it."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            ahead.result()
        return next(one for one in self._slots if one is not self._current)

    def _following(self, number: int) -> int:
        """Return the layer that is called after one: in turn, and the first after the last."""
        turn = [*range(number + 1, self.num_used), *range(number)]
        return next((one for one in turn if one not in self._skipped), number)

    def _load(self, slot: _Slot, number: int) -> None:
        """Load a layer into a slot, in the loading thread."""
        began = time.perf_counter()
        slot.layer = None
        skeleton, layout = self._skeleton, self._layout(number)
        recipes = skeleton.recipes[number]
        tensors = [name for recipe in recipes for name in recipe.tensors]
        skeleton.source.will_need(tensors)
        with self._copies.into(slot.flat, slot.used) as copy:
            for recipe in recipes:
                values = [skeleton.source.tensor(name) for name in recipe.tensors]
                for name, value in recipe.make(values, skeleton.model):
                    if name in layout:
                        copy(layout[name], skeleton.places[name].empty, value)
        skeleton.source.let_go(tensors)
        slot.layer = number
        self.loads.layers += 1
        self.loads.bytes += skeleton.layer_bytes(number)
        self.loads.seconds += time.perf_counter() - began

    def _layout(self, layer: int) -> dict[str, int]:
        """Return where each parameter of a layer begins in a slot."""
        if layer not in self._layouts:
            layout: dict[str, int] = {}
            at = 0
            for recipe in self._skeleton.recipes[layer]:
                for name in recipe.targets:
                    if name in self._skeleton.places:
                        layout[name] = at
                        at += -(-self._skeleton.places[name].empty.nbytes // _ALIGNMENT) * _ALIGNMENT
            self._layouts[layer] = layout
        return self._layouts[layer]

    def _layout_bytes(self, layer: int) -> int:
        return max(
            (at + self._skeleton.places[name].empty.nbytes for name, at in self._layout(layer).items()), default=0
        )


def _view(flat: torch.Tensor, offset: int, like: torch.Tensor) -> torch.Tensor:
    return flat[offset : offset + like.nbytes].view(like.dtype).view(like.shape)


def _kind(skeleton: Skeleton, layer: int) -> object:
    module = skeleton.layers[layer]
    types = getattr(skeleton.model.config.get_text_config(), "layer_types", None) or ()
    shapes = tuple((name, one.shape, one.dtype) for name, one in module.named_parameters())
    return (type(module), types[layer] if layer < len(types) else None, shapes)
