"""Pool what passes show: an accumulator for every way to combine tokens, used alike by generation and by reading.

A rollout's tokens come in *stretches*: its prompt in one pass, then a token a pass while it is generated; or all of it
in one pass where its text exists already, with a shared prefix that another text of the pass reads. An accumulator is
told of each stretch in three steps:

    want     before the pass: which tokens or sums it needs observed of a stretch of the line
    parts    after the pass: what was observed of the stretch, in the form in which it can be added
    add      to the slots that the stretches belong to

and ``start`` and ``finish`` begin and end a rollout's value. A part can be kept and added to another slot later: that
is how rollouts that share a prefix get its part of their mean without reading it.

To pool in a new way, add an accumulator to ``ACCUMULATORS``. Sums are float32, on the device that the parts lie on.
Knows no model and no hook.
Axes: L captured layers, K those of which every token is kept, B slots, S slots of one call, T tokens of one stretch,
D d_model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..jobs.poolings import Combine
from .observation import Observed, Wanted

Slots = slice | list[int]
"""Slots of one call, each at most once: a slice where they are consecutive, which costs no copy."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Shape:
    """The size of the arrays that are accumulated.

    Attributes:
        num_layers: L.
        token_positions: Places among the L layers of the K of which every token is kept.
        d_model: D.
        device: Where sums are kept.
    """

    num_layers: int
    token_positions: tuple[int, ...]
    d_model: int
    device: str


class Accumulator(ABC):
    """Values of one array (a hook point and a pooling), one for each slot.

    Args:
        shape: Its size.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    @abstractmethod
    def want(self, wanted: Wanted, start: int, stop: int) -> Any:
        """Ask a pass for what is needed of a stretch; give the entry under which ``parts`` finds it.

        Args:
            wanted: Of the pass.
            start: First place of the stretch in the line.
            stop: One after the last; after ``start``.
        """

    @abstractmethod
    def parts(self, observed: Observed, entries: Sequence[Any]) -> Any:
        """Take the parts of some stretches out of what a pass showed.

        Args:
            observed: At the hook point of this array.
            entries: What ``want`` gave for each.
        """

    @abstractmethod
    def parts_of_tokens(self, tokens_LSD: torch.Tensor) -> Any:
        """Make parts of stretches of one token each.

        Args:
            tokens_LSD: float32 ``(L, S, D)``, a token for each slot.
        """

    @abstractmethod
    def start(self, slots: slice) -> None:
        """Begin new values; what these slots held before is forgotten."""

    @abstractmethod
    def add(self, slots: Slots, parts: Any) -> None:
        """Add a stretch to each of these slots; the stretches of a slot are added in the order of their tokens."""

    @abstractmethod
    def move(self, source: int, target: int) -> None:
        """Put one slot's value in another's place."""

    @abstractmethod
    def finish(self, slot: int, num_tokens: int) -> Float32:
        """Return a slot's value.

        Args:
            slot: Which.
            num_tokens: Tokens of the span.

        Returns:
            An array of its own, ``(L, D)`` or, where every token is kept, ``(K, T, D)``. Without tokens a vector is
            all NaN, and T is 0.
        """


class _VectorAccumulator(Accumulator):
    """A vector a slot; parts are ``(L, S, D)``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._state_LBD = torch.zeros(shape.num_layers, 0, shape.d_model, device=shape.device)

    def parts_of_tokens(self, tokens_LSD: torch.Tensor) -> torch.Tensor:
        """Return the tokens as they are: each is its own sum and its own last."""
        return tokens_LSD

    def start(self, slots: slice) -> None:
        """Begin new values of zero; see ``Accumulator.start``."""
        old = self._state_LBD
        if slots.stop > old.shape[1]:
            # Half as much again, so that a batch that fills slot by slot is not copied for every one of them.
            self._state_LBD = old.new_zeros(old.shape[0], slots.stop + slots.stop // 2, old.shape[2])
            self._state_LBD[:, : old.shape[1]] = old
        self._state_LBD[:, slots] = 0

    def move(self, source: int, target: int) -> None:
        """Copy one slot's vector into another's place."""
        self._state_LBD[:, target] = self._state_LBD[:, source]

    def finish(self, slot: int, num_tokens: int) -> Float32:
        """Return ``(L, D)``; see ``Accumulator.finish``."""
        if num_tokens == 0:
            return np.full((self._shape.num_layers, self._shape.d_model), np.nan, dtype=np.float32)
        return self._value(slot, num_tokens).contiguous().cpu().numpy().copy()

    @abstractmethod
    def _value(self, slot: int, num_tokens: int) -> torch.Tensor:
        """Return ``(L, D)``, of a span that has tokens."""


class MeanAccumulator(_VectorAccumulator):
    """The mean over all tokens of the span."""

    def want(self, wanted: Wanted, start: int, stop: int) -> int:
        """Want the sum over the stretch."""
        return wanted.span(start, stop)

    def parts(self, observed: Observed, entries: Sequence[int]) -> torch.Tensor:
        """Take the sums, ``(L, S, D)``."""
        return observed.sums_LPD[:, list(entries)]

    def add(self, slots: Slots, parts: torch.Tensor) -> None:
        """Add sums to the slots."""
        self._state_LBD[:, slots] += parts

    def _value(self, slot: int, num_tokens: int) -> torch.Tensor:
        return self._state_LBD[:, slot] / num_tokens


class LastAccumulator(_VectorAccumulator):
    """The last token of the span: each stretch takes the place of the one before."""

    def want(self, wanted: Wanted, start: int, stop: int) -> int:
        """Want the last token of the stretch."""
        return wanted.token(stop - 1)

    def parts(self, observed: Observed, entries: Sequence[int]) -> torch.Tensor:
        """Take the last tokens, ``(L, S, D)``."""
        return observed.tokens_LED[:, list(entries)]

    def add(self, slots: Slots, parts: torch.Tensor) -> None:
        """Put last tokens in the place of earlier stretches'."""
        self._state_LBD[:, slots] = parts

    def _value(self, slot: int, num_tokens: int) -> torch.Tensor:
        return self._state_LBD[:, slot]


class TokenAccumulator(Accumulator):
    """Every token of the span at K layers, in the machine's memory; a part is a list of ``(K, T, D)``, one a slot."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._positions = list(shape.token_positions)
        self._kept: dict[int, list[Float32]] = {}

    def want(self, wanted: Wanted, start: int, stop: int) -> tuple[int, int]:
        """Want each token of the stretch, at the K layers."""
        return wanted.every_token(start, stop)

    def parts(self, observed: Observed, entries: Sequence[tuple[int, int]]) -> list[Float32]:
        """Take the tokens of each stretch."""
        return [observed.every_KWD[:, first:stop].numpy() for first, stop in entries]

    def parts_of_tokens(self, tokens_LSD: torch.Tensor) -> list[Float32]:
        """Take the K layers of each token to the CPU."""
        tokens_SKD = tokens_LSD[self._positions].transpose(0, 1).cpu().numpy()
        return [token_KD[:, None] for token_KD in tokens_SKD]

    def start(self, slots: slice) -> None:
        """Begin with no tokens."""
        self._kept |= {slot: [] for slot in range(slots.start, slots.stop)}

    def add(self, slots: Slots, parts: Sequence[Float32]) -> None:
        """Put tokens behind those that the slots have."""
        each = range(slots.start, slots.stop) if isinstance(slots, slice) else slots
        for slot, part_KTD in zip(each, parts, strict=True):
            # A copy, so that no rollout keeps the tokens of the whole pass alive.
            self._kept[slot].append(part_KTD.copy())

    def move(self, source: int, target: int) -> None:
        """Put one slot's tokens in another's place."""
        self._kept[target] = self._kept.pop(source)

    def finish(self, slot: int, num_tokens: int) -> Float32:
        """Return ``(K, T, D)``; the slot keeps nothing."""
        kept = self._kept.pop(slot)
        if not kept:
            return np.empty((len(self._positions), 0, self._shape.d_model), dtype=np.float32)
        return np.concatenate(kept, axis=1)


ACCUMULATORS: Mapping[Combine, type[Accumulator]] = {
    "mean": MeanAccumulator,
    "last": LastAccumulator,
    "every": TokenAccumulator,
}
"""What combines tokens, for each way that the table of poolings knows."""
