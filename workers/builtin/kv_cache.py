"""Keys and values of the rows in a batch, each from position 0 on, in one tensor a layer that grows only when told.

Rows 0, 1, ... are in use without a gap: when one leaves, the last takes its place. Knows nothing of models.
Axes: R rows, A rows in use, K key heads, T positions, S positions of a segment, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

_ROUND = 32
"""Positions are made room for in steps of this many."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values of a row's first positions, kept beside the cache: ``(K, T, D)`` per layer."""

    keys_KTD: list[torch.Tensor]
    values_KTD: list[torch.Tensor]


class KVCache:
    """Room for rows times positions, at most a budget of tokens (one row is always let in).

    Args:
        num_layers: Layers that keep something.
        budget_tokens: Rows times positions at most.
    """

    def __init__(self, num_layers: int, budget_tokens: int) -> None:
        self._budget = budget_tokens
        self._keys_RKTD: list[torch.Tensor | None] = [None] * num_layers
        self._values_RKTD: list[torch.Tensor | None] = [None] * num_layers
        self._rows = self._positions = 0

    def fits(self, rows: int, positions: int) -> bool:
        """Say whether so many rows of so many positions stay within the budget."""
        return rows <= 1 or rows * positions <= self._budget

    def reserve(self, used: int, rows: int, positions: int) -> None:
        """Make room; what the rows in use hold stays.

        Args:
            used: Rows in use now.
            rows: Rows wanted, these included.
            positions: Positions that any of them will need.
        """
        if rows <= self._rows and positions <= self._positions:
            return
        rounded = -(-positions // _ROUND) * _ROUND
        if positions > self._positions or not self.fits(rows, self._positions):
            self._positions = rounded if self.fits(rows, rounded) else positions
        # All the rows that the budget has room for would be more than a short job ever uses.
        wanted = self._rows if rows <= self._rows else 2 * self._rows
        self._rows = max(rows, min(wanted, self._budget // self._positions))
        for tensors in (self._keys_RKTD, self._values_RKTD):
            for layer, old in enumerate(tensors):
                if old is not None:
                    new = old.new_zeros(self._rows, old.shape[1], self._positions, old.shape[3])
                    shared = min(old.shape[2], self._positions)
                    new[:used, :, :shared] = old[:used, :, :shared]
                    tensors[layer] = new

    def append(
        self,
        layer: int,
        rows_A: torch.Tensor,
        positions_A: torch.Tensor,
        key_KAD: torch.Tensor,
        value_KAD: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep one position of each of these rows; give the layer's whole tensors, both ``(R, K, T, D)``."""
        keys_RKTD, values_RKTD = self._layer(layer, key_KAD, value_KAD)
        keys_RKTD[rows_A, :, positions_A] = key_KAD.transpose(0, 1)
        values_RKTD[rows_A, :, positions_A] = value_KAD.transpose(0, 1)
        return keys_RKTD, values_RKTD

    def extend(
        self, layer: int, row: int, start: int, key_KSD: torch.Tensor, value_KSD: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep consecutive positions of one row; give all that it holds up to their end, both ``(K, T, D)``."""
        keys_RKTD, values_RKTD = self._layer(layer, key_KSD, value_KSD)
        stop = start + key_KSD.shape[1]
        keys_RKTD[row, :, start:stop] = key_KSD
        values_RKTD[row, :, start:stop] = value_KSD
        return keys_RKTD[row, :, :stop], values_RKTD[row, :, :stop]

    def move(self, source: int, target: int, length: int) -> None:
        """Put a row's first positions in another's place."""
        for tensor_RKTD in self._made():
            tensor_RKTD[target, :, :length] = tensor_RKTD[source, :, :length]

    def beginning(self, row: int, length: int) -> Prefix:
        """Copy a row's first positions out."""
        keys, values = (
            [tensor_RKTD[row, :, :length].clone() for tensor_RKTD in tensors if tensor_RKTD is not None]
            for tensors in (self._keys_RKTD, self._values_RKTD)
        )
        return Prefix(keys, values)

    def put_beginning(self, rows: Sequence[int], beginning: Prefix) -> None:
        """Copy first positions into rows."""
        kept = [*beginning.keys_KTD, *beginning.values_KTD]
        for tensor_RKTD, kept_KTD in zip(self._made(), kept, strict=True):
            for row in rows:
                tensor_RKTD[row, :, : kept_KTD.shape[1]] = kept_KTD

    def _made(self) -> list[torch.Tensor]:
        return [tensor for tensor in (*self._keys_RKTD, *self._values_RKTD) if tensor is not None]

    def _layer(self, layer: int, key_KSD: torch.Tensor, value_KSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = self._keys_RKTD[layer], self._values_RKTD[layer]
        if keys is None or values is None:
            # Shapes are the model's: known when the first keys come. Zeros, for what is masked is still multiplied.
            keys, values = (
                like.new_zeros(self._rows, like.shape[0], self._positions, like.shape[2])
                for like in (key_KSD, value_KSD)
            )
            self._keys_RKTD[layer], self._values_RKTD[layer] = keys, values
        return keys, values
