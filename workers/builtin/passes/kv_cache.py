"""The KV cache: keys and values of the rollouts in a batch, in one tensor per layer.

The batch has *slots*. A slot holds one rollout, starting at its position 0 and without padding before it. Slots 0, 1,
... are in use without gaps, so that a decoding pass takes a slice of each tensor instead of gathering rows: when a
rollout leaves, the last one is moved into its slot. Knows nothing of models.
Axes: B slots, A slots in use, K key heads, T positions, S positions of a segment, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_ROUND = 32
"""The number of positions is rounded up to a multiple of this, so that prompts of similar length share one resize."""


@dataclass(frozen=True, slots=True)
class PrefixKV:
    """Keys and values of a shared prefix, stored outside the cache.

    Attributes:
        layers: Keys and values of each layer, ``(K, T, D)`` both; None for a layer that has none of its own.
    """

    layers: list[tuple[torch.Tensor, torch.Tensor] | None]

    def first(self, length: int) -> PrefixKV:
        """Return the keys and values of the first tokens, as views."""
        return PrefixKV([None if one is None else (one[0][:, :length], one[1][:, :length]) for one in self.layers])


class KVCache:
    """Keys and values of slots times positions, within a budget of tokens; a single slot is always allowed.

    Every slot has as many positions as the longest rollout needs. One tensor per layer can then be multiplied as a
    whole, at the cost of memory that shorter rollouts leave unused. The budget limits slots times positions, the memory
    that is allocated, and not the number of tokens in it.

    Args:
        num_layers: Number of layers that have keys and values.
        budget_tokens: Most slots times positions.

    Attributes:
        budget_tokens: The same.
        version: Changes whenever the tensors are replaced by others.
    """

    def __init__(self, num_layers: int, budget_tokens: int) -> None:
        self.budget_tokens = budget_tokens
        self._keys_BKTD: list[torch.Tensor | None] = [None] * num_layers
        self._values_BKTD: list[torch.Tensor | None] = [None] * num_layers
        self._num_slots = self._num_positions = 0
        self.version = 0

    def fits(self, num_slots: int, num_positions: int) -> bool:
        """Return whether a number of slots with a number of positions each is within the budget."""
        return num_slots <= 1 or num_slots * num_positions <= self.budget_tokens

    def most_slots(self, num_positions: int) -> int:
        """Return the most slots of a number of positions that are within the budget."""
        return max(1, self.budget_tokens // num_positions)

    def reserve(self, used: int, num_slots: int, num_positions: int) -> None:
        """Resize the tensors if they are too small; the contents of the slots in use are kept.

        Args:
            used: Number of slots in use.
            num_slots: Number of slots needed, those in use included.
            num_positions: Number of positions that the longest rollout will need.
        """
        if num_slots <= self._num_slots and num_positions <= self._num_positions:
            return
        rounded = -(-num_positions // _ROUND) * _ROUND
        if num_positions > self._num_positions or not self.fits(num_slots, self._num_positions):
            # The number of positions may also decrease: after a long rollout, short ones need the memory for slots.
            self._num_positions = rounded if self.fits(num_slots, rounded) else num_positions
        # Double the slots when they run out, so that a batch that fills slot by slot is copied a few times only. Not
        # all slots of the budget at once, which would be more than a short job ever uses.
        wanted = self._num_slots if num_slots <= self._num_slots else 2 * self._num_slots
        self._num_slots = max(num_slots, min(wanted, self.budget_tokens // self._num_positions))
        for tensors in (self._keys_BKTD, self._values_BKTD):
            for layer, old in enumerate(tensors):
                if old is not None:
                    tensors[layer] = self._resized(old, used)
        self.version += 1

    @property
    def num_slots(self) -> int:
        """Number of slots that are allocated."""
        return self._num_slots

    @property
    def num_positions(self) -> int:
        """Number of positions of a slot."""
        return self._num_positions

    def append(
        self,
        layer: int,
        slots_A: torch.Tensor,
        positions_A: torch.Tensor,
        key_KAD: torch.Tensor,
        value_KAD: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one position of each of some slots, as a decoding step does.

        Args:
            layer: 0-based decoder layer.
            slots_A: The slots.
            positions_A: The position to write in each slot.
            key_KAD: Keys of these positions.
            value_KAD: Values of these positions.

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
        """Write consecutive positions of one slot, as the prefill of a prompt does.

        Args:
            layer: 0-based decoder layer.
            slot: The slot.
            start: The first position to write; those before it hold a shared prefix.
            key_KSD: Keys of these positions.
            value_KSD: Values of these positions.

        Returns:
            The keys and values of the slot from position 0 to the last that was written, both ``(K, T, D)``.
        """
        keys_BKTD, values_BKTD = self._layer(layer, key_KSD, value_KSD)
        stop = start + key_KSD.shape[1]
        keys_BKTD[slot, :, start:stop] = key_KSD
        values_BKTD[slot, :, start:stop] = value_KSD
        return keys_BKTD[slot, :, :stop], values_BKTD[slot, :, :stop]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first ``length`` positions of one slot to another."""
        made = self._made()
        if made and made[0].is_cuda:
            # Whole slots in a few launches, because a launch for every layer takes longer than the copies.
            copy: Any = torch._foreach_copy_  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
            copy([tensor[target] for tensor in made], [tensor[source] for tensor in made])
            return
        for tensor_BKTD in made:
            tensor_BKTD[target, :, :length] = tensor_BKTD[source, :, :length]

    def copy_prefix(self, slot: int, length: int) -> PrefixKV:
        """Return a copy of a slot's first positions, which stays valid when the slot is reused."""
        pairs = zip(self._keys_BKTD, self._values_BKTD, strict=True)
        return PrefixKV(
            [
                None
                if keys is None or values is None
                else (keys[slot, :, :length].clone(), values[slot, :, :length].clone())
                for keys, values in pairs
            ]
        )

    def put_prefix(self, slots: Sequence[int], prefix: PrefixKV) -> None:
        """Copy a prefix into the first positions of slots; it may be from a cache of the same model before this one."""
        for layer, pair in enumerate(prefix.layers):
            if pair is None:
                continue
            for tensor_BKTD, kept_KTD in zip(self._layer(layer, *pair), pair, strict=True):
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
            # Allocated on first use, because the number and size of heads may differ between layers and between keys
            # and values. Zeros and not uninitialised memory: masked positions are multiplied by a weight of 0, and 0
            # times NaN would be NaN.
            keys, values = (
                like.new_zeros(self._num_slots, like.shape[0], self._num_positions, like.shape[2])
                for like in (key_KSD, value_KSD)
            )
            self._keys_BKTD[layer], self._values_BKTD[layer] = keys, values
        return keys, values
