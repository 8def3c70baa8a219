"""Pool observed activations: one accumulator class per way to combine tokens, shared by generation and reading.

The activations of a rollout do not arrive at once. In generation its prompt is computed in one pass and then one token
per pass; in reading all of it is computed in one pass, but a shared prefix lies in another text's part of that pass. A
*stretch* is a range of consecutive tokens of one pass that belongs to one rollout. Every stretch is handled in three
steps:

    want     before the pass: register the tokens or sums of the stretch that the pass must observe
    parts    after the pass: extract the contribution of each stretch from the observed values
    add      add these contributions to the slots that the stretches belong to

``start`` resets slots for new rollouts, and ``finish`` returns the pooled value. A contribution can be kept and added
to another slot later: rollouts with a shared prefix receive its contribution without computing the prefix again.

To combine tokens in a new way, add an accumulator to ``ACCUMULATORS``. Sums are float32, on the device of the observed
values. Does not depend on models or hooks.
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
    """The shape of the arrays that are accumulated, and where they are kept.

    Attributes:
        num_layers: L, the number of captured layers.
        token_positions: Indices, among the L layers, of the K layers of which every token is kept.
        d_model: D, the width of the residual stream.
        device: ``cpu`` or ``cuda``: where sums are kept.
    """

    num_layers: int
    token_positions: tuple[int, ...]
    d_model: int
    device: str


class Accumulator(ABC):
    """Accumulates the values of one activation array (a hook point and a pooling), one value per slot.

    Args:
        shape: Shape of the array's values.
    """

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    @abstractmethod
    def want(self, wanted: Wanted, start: int, stop: int) -> Any:
        """Register what a pass must observe of a stretch, and return the entry under which ``parts`` finds it.

        Args:
            wanted: What the pass will observe; this call adds to it.
            start: Index of the stretch's first token in the packed sequence.
            stop: End of the stretch, exclusive; greater than ``start``.
        """

    @abstractmethod
    def parts(self, observed: Observed, entries: Sequence[Any]) -> Any:
        """Extract the contributions of some stretches from a pass's observed values.

        Args:
            observed: Observed values at the hook point of this array.
            entries: The entry that ``want`` returned for each stretch.
        """

    @abstractmethod
    def parts_of_tokens(self, tokens_LSD: torch.Tensor) -> Any:
        """Return the contributions of stretches of one token each, as decoding has them.

        Args:
            tokens_LSD: float32 ``(L, S, D)``, one token per slot.
        """

    @abstractmethod
    def start(self, slots: slice) -> None:
        """Reset slots for new rollouts; their previous values are discarded."""

    @abstractmethod
    def add(self, slots: Slots, parts: Any) -> None:
        """Add one contribution to each of these slots; those of a slot must be added in the order of their tokens."""

    @abstractmethod
    def move(self, source: int, target: int) -> None:
        """Move one slot's value to another slot."""

    @abstractmethod
    def finish(self, slot: int, num_tokens: int) -> Float32:
        """Return a slot's pooled value.

        Args:
            slot: The slot.
            num_tokens: Number of tokens of the span.

        Returns:
            A new array: ``(L, D)`` or, where every token is kept, ``(K, T, D)``. For an empty span, a vector is NaN
            throughout and T is 0.
        """


class _VectorAccumulator(Accumulator):
    """One vector per slot; contributions are ``(L, S, D)``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._state_LBD = torch.zeros(shape.num_layers, 0, shape.d_model, device=shape.device)

    def parts_of_tokens(self, tokens_LSD: torch.Tensor) -> torch.Tensor:
        """Return the tokens unchanged: a single token is its own sum and its own last token."""
        return tokens_LSD

    def start(self, slots: slice) -> None:
        """Reset slots to zero; see ``Accumulator.start``."""
        old = self._state_LBD
        if slots.stop > old.shape[1]:
            # Grow by half: a batch that fills one slot at a time must not copy the state for each of them.
            self._state_LBD = old.new_zeros(old.shape[0], slots.stop + slots.stop // 2, old.shape[2])
            self._state_LBD[:, : old.shape[1]] = old
        self._state_LBD[:, slots] = 0

    def move(self, source: int, target: int) -> None:
        """Copy one slot's vector to another slot."""
        self._state_LBD[:, target] = self._state_LBD[:, source]

    def finish(self, slot: int, num_tokens: int) -> Float32:
        """Return ``(L, D)``; see ``Accumulator.finish``."""
        if num_tokens == 0:
            return np.full((self._shape.num_layers, self._shape.d_model), np.nan, dtype=np.float32)
        return self._value(slot, num_tokens).contiguous().cpu().numpy().copy()

    @abstractmethod
    def _value(self, slot: int, num_tokens: int) -> torch.Tensor:
        """Return ``(L, D)``; the span has at least one token."""


class MeanAccumulator(_VectorAccumulator):
    """The mean over all tokens of the span."""

    def want(self, wanted: Wanted, start: int, stop: int) -> int:
        """Register the sum over the stretch."""
        return wanted.span(start, stop)

    def parts(self, observed: Observed, entries: Sequence[int]) -> torch.Tensor:
        """Return the sums, ``(L, S, D)``."""
        return observed.sums_LPD[:, list(entries)]

    def add(self, slots: Slots, parts: torch.Tensor) -> None:
        """Add sums to the slots."""
        self._state_LBD[:, slots] += parts

    def _value(self, slot: int, num_tokens: int) -> torch.Tensor:
        return self._state_LBD[:, slot] / num_tokens


class LastAccumulator(_VectorAccumulator):
    """The last token of the span: each stretch replaces the previous one."""

    def want(self, wanted: Wanted, start: int, stop: int) -> int:
        """Register the last token of the stretch."""
        return wanted.token(stop - 1)

    def parts(self, observed: Observed, entries: Sequence[int]) -> torch.Tensor:
        """Return the last tokens, ``(L, S, D)``."""
        return observed.tokens_LED[:, list(entries)]

    def add(self, slots: Slots, parts: torch.Tensor) -> None:
        """Replace the slots' vectors by these last tokens."""
        self._state_LBD[:, slots] = parts

    def _value(self, slot: int, num_tokens: int) -> torch.Tensor:
        return self._state_LBD[:, slot]


class TokenAccumulator(Accumulator):
    """Every token of the span at K layers, in main memory; contributions are a list of ``(K, T, D)``, one per slot."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self._positions = list(shape.token_positions)
        self._kept: dict[int, list[Float32]] = {}

    def want(self, wanted: Wanted, start: int, stop: int) -> tuple[int, int]:
        """Register each token of the stretch, at the K layers."""
        return wanted.every_token(start, stop)

    def parts(self, observed: Observed, entries: Sequence[tuple[int, int]]) -> list[Float32]:
        """Return the tokens of each stretch."""
        return [observed.every_KWD[:, first:stop].numpy() for first, stop in entries]

    def parts_of_tokens(self, tokens_LSD: torch.Tensor) -> list[Float32]:
        """Copy the K layers of each token to the CPU."""
        tokens_SKD = tokens_LSD[self._positions].transpose(0, 1).cpu().numpy()
        return [token_KD[:, None] for token_KD in tokens_SKD]

    def start(self, slots: slice) -> None:
        """Reset slots to no tokens."""
        self._kept |= {slot: [] for slot in range(slots.start, slots.stop)}

    def add(self, slots: Slots, parts: Sequence[Float32]) -> None:
        """Append tokens to those of the slots."""
        each = range(slots.start, slots.stop) if isinstance(slots, slice) else slots
        for slot, part_KTD in zip(each, parts, strict=True):
            # A copy: a view would keep the tokens of the whole pass in memory for as long as the rollout lives.
            self._kept[slot].append(part_KTD.copy())

    def move(self, source: int, target: int) -> None:
        """Move one slot's tokens to another slot."""
        self._kept[target] = self._kept.pop(source)

    def finish(self, slot: int, num_tokens: int) -> Float32:
        """Return ``(K, T, D)`` and free the slot's tokens."""
        kept = self._kept.pop(slot)
        if not kept:
            return np.empty((len(self._positions), 0, self._shape.d_model), dtype=np.float32)
        return np.concatenate(kept, axis=1)


ACCUMULATORS: Mapping[Combine, type[Accumulator]] = {
    "mean": MeanAccumulator,
    "last": LastAccumulator,
    "every": TokenAccumulator,
}
"""The accumulator class for each ``combine`` of the table of poolings."""
