"""Keys and values of the rollouts in a batch, in one tensor a layer that grows only when it is told to.

The batch has *slots*, and each slot holds one rollout from its position 0 on, with no padding before it. Slots 0, 1,
... are in use without a gap, so that a decoding pass reads the front of one tensor and needs no list of slots: when a
rollout leaves, the last one is moved into its slot. Knows nothing of models.
Axes: B slots, A slots in use, K key heads, T positions, S positions of a segment, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_ROUND = 32
"""Positions are made room for in steps of this many, so that prompts of about one length make the cache grow once."""


@dataclass(frozen=True, slots=True)
class PrefixKV:
    """Keys and values of a slot's first positions, kept beside the cache: ``(K, T, D)`` per layer."""

    keys_KTD: list[torch.Tensor]
    values_KTD: list[torch.Tensor]


class KVCache:
    """Room for slots times positions, at most a budget of tokens (one slot is always let in).

    Every slot has room for as many positions as the longest needs: one tensor a layer can then be multiplied as a
    whole, at the price of room that shorter rollouts leave unused. The budget is over slots times positions, the room
    that is really taken, and not over the tokens in it.

    Args:
        num_layers: Layers that keep something.
        budget_tokens: Slots times positions at most.
    """

    def __init__(self, num_layers: int, budget_tokens: int) -> None:
        self._budget = budget_tokens
        self._keys_BKTD: list[torch.Tensor | None] = [None] * num_layers
        self._values_BKTD: list[torch.Tensor | None] = [None] * num_layers
        self._num_slots = self._num_positions = 0

    def fits(self, num_slots: int, num_positions: int) -> bool:
        """Say whether so many slots of so many positions stay within the budget."""
        return num_slots <= 1 or num_slots * num_positions <= self._budget

    def reserve(self, used: int, num_slots: int, num_positions: int) -> None:
        """Make room; what the slots in use hold stays.

        Args:
            used: Slots in use now.
            num_slots: Slots wanted, these included.
            num_positions: Positions that any of them will need.
        """
        if num_slots <= self._num_slots and num_positions <= self._num_positions:
            return
        rounded = -(-num_positions // _ROUND) * _ROUND
        if num_positions > self._num_positions or not self.fits(num_slots, self._num_positions):
            # Positions may also shrink here: after one long rollout, many short ones want the room as slots.
            self._num_positions = rounded if self.fits(num_slots, rounded) else num_positions
        # Twice the slots when they run out, so that a batch that fills slot by slot is copied a few times only; not at
        # once all that the budget has room for, which would be more than a short job ever uses.
        wanted = self._num_slots if num_slots <= self._num_slots else 2 * self._num_slots
        self._num_slots = max(num_slots, min(wanted, self._budget // self._num_positions))
        for tensors in (self._keys_BKTD, self._values_BKTD):
            for layer, old in enumerate(tensors):
                if old is not None:
                    tensors[layer] = self._resized(old, used)

    def append(
        self,
        layer: int,
        slots_A: torch.Tensor,
        positions_A: torch.Tensor,
        key_KAD: torch.Tensor,
        value_KAD: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep one position of each of these slots.

        Args:
            layer: Which layer's.
            slots_A: The slots.
            positions_A: The position of each.
            key_KAD: Their keys.
            value_KAD: Their values.

        Returns:
            The layer's whole keys and values, both ``(B, K, T, D)``.
        """
        keys_BKTD, values_BKTD = self._layer(layer, key_KAD, value_KAD)
        keys_BKTD[slots_A, :, positions_A] = key_KAD.transpose(0, 1)
        values_BKTD[slots_A, :, positions_A] = value_KAD.transpose(0, 1)
        return keys_BKTD, values_BKTD

    def extend(
        self, layer: int, slot: int, start: int, key_KSD: torch.Tensor, value_KSD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep consecutive positions of one slot.

        Args:
            layer: Which layer's.
            slot: The slot.
            start: The first position.
            key_KSD: Their keys.
            value_KSD: Their values.

        Returns:
            The keys and values of all that the slot holds up to their end, both ``(K, T, D)``.
        """
        keys_BKTD, values_BKTD = self._layer(layer, key_KSD, value_KSD)
        stop = start + key_KSD.shape[1]
        keys_BKTD[slot, :, start:stop] = key_KSD
        values_BKTD[slot, :, start:stop] = value_KSD
        return keys_BKTD[slot, :, :stop], values_BKTD[slot, :, :stop]

    def move(self, source: int, target: int, length: int) -> None:
        """Put the first positions of one slot in another slot's place."""
        for tensor_BKTD in self._made():
            tensor_BKTD[target, :, :length] = tensor_BKTD[source, :, :length]

    def copy_prefix(self, slot: int, length: int) -> PrefixKV:
        """Copy a slot's first positions out, so that they outlive the rollout that read them."""
        keys, values = (
            [tensor_BKTD[slot, :, :length].clone() for tensor_BKTD in tensors if tensor_BKTD is not None]
            for tensors in (self._keys_BKTD, self._values_BKTD)
        )
        return PrefixKV(keys, values)

    def put_prefix(self, slots: Sequence[int], prefix: PrefixKV) -> None:
        """Copy first positions into slots."""
        kept = [*prefix.keys_KTD, *prefix.values_KTD]
        for tensor_BKTD, kept_KTD in zip(self._made(), kept, strict=True):
            for slot in slots:
                tensor_BKTD[slot, :, : kept_KTD.shape[1]] = kept_KTD

    def _made(self) -> list[torch.Tensor]:
        return [tensor for tensor in (*self._keys_BKTD, *self._values_BKTD) if tensor is not None]

    def _resized(self, old_BKTD: torch.Tensor, used: int) -> torch.Tensor:
        new_BKTD = old_BKTD.new_zeros(self._num_slots, old_BKTD.shape[1], self._num_positions, old_BKTD.shape[3])
        kept = min(old_BKTD.shape[2], self._num_positions)
        new_BKTD[:used, :, :kept] = old_BKTD[:used, :, :kept]
        return new_BKTD

    def _layer(self, layer: int, key_KSD: torch.Tensor, value_KSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._keys_BKTD[layer], self._values_BKTD[layer]
        if keys is None or values is None:
            # Head counts and sizes are the model's, and may differ from layer to layer and between keys and values:
            # they are known when the first keys come. Zeros and not uninitialised memory, because positions that a
            # mask hides are multiplied all the same, by a weight of 0, and 0 times a NaN would be a NaN.
            keys, values = (
                like.new_zeros(self._num_slots, like.shape[0], self._num_positions, like.shape[2])
                for like in (key_KSD, value_KSD)
            )
            self._keys_BKTD[layer], self._values_BKTD[layer] = keys, values
        return keys, values
