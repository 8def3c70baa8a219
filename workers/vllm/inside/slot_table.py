"""The sums of all slots, on the device: a table of fixed size, to which every forward pass adds its tokens.

Allocated once, before vLLM measures how much memory is left for its KV cache. What a pass adds takes one operation a
layer, and none that waits for the device: which tokens go to which slot is known on the CPU, and whether a response has
ended is decided on the device, from the token ids of the pass.

A token that must not count goes to the *spare* row, behind the last slot. Beside every sum stand the number of its
tokens and the sum of their ids (of a last token its id), by which the reader of a slot checks that it has exactly the
tokens that vLLM reports. Does not import vLLM.
Axes: L layers of this worker, S slots and the spare row, T tokens of one pass, E of these that belong to a sum, D
d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ....jobs.poolings import Span
from ...span_sums import sum_rows
from ..capture_plan import Sum
from .tracking import Stretch
from .transfers import to_device, to_host

PRODUCT_DEVICES = frozenset({"cuda"})
"""Devices on which the tokens of long stretches are added by matrix products; elsewhere they are added one by one."""

PRODUCT_LENGTH = 8
"""Mean length of stretches from which products are used. Measured on an H200 with 80 layers of 8192: a pass of 32
prompts of 256 tokens took 12 ms with products and 54 ms without; one of 256 decoded tokens 3.9 and 1.9 ms."""


@dataclass(frozen=True, eq=False)
class SlotValues:
    """What was kept of some slots, in the order in which they were asked for.

    Attributes:
        values: float32 ``(L, slots, D)`` per sum.
        counts: Number of tokens of each slot, per sum; of a last token 1.
        id_sums: Sum of the ids of these tokens, of each slot, per sum.
    """

    values: dict[Sum, npt.NDArray[np.float32]]
    counts: dict[Sum, list[int]]
    id_sums: dict[Sum, list[int]]


class SlotTable:
    """Sums of the slots of one worker.

    Args:
        sums: What is kept of every slot.
        num_layers: L.
        slots: Number of slots.
        d_model: D.
        stop_ids: Token ids that end a response that is being generated.
        device: Where the model is.
    """

    def __init__(
        self,
        sums: Sequence[Sum],
        *,
        num_layers: int,
        slots: int,
        d_model: int,
        stop_ids: Sequence[int],
        device: Any,
    ) -> None:
        self._spare = slots
        self._device = torch.device(device)
        rows = slots + 1
        self._values = {one: torch.zeros(num_layers, rows, d_model, device=device) for one in sums}
        self._counts = {one: torch.zeros(rows, dtype=torch.long, device=device) for one in sums}
        self._id_sums = {one: torch.zeros(rows, dtype=torch.long, device=device) for one in sums}
        self._ended_S = torch.zeros(rows, dtype=torch.bool, device=device)
        self._stop_ids = torch.tensor(list(stop_ids), dtype=torch.long, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the table."""
        return sum(values.nbytes for values in self._values.values())

    def reset(self, slots: Sequence[int]) -> None:
        """Set slots to no tokens."""
        if not slots:
            return
        slots_N = to_device(np.asarray(slots), self._device)
        for values in self._values.values():
            values.index_fill_(1, slots_N, 0)
        for numbers in (*self._counts.values(), *self._id_sums.values(), self._ended_S):
            numbers.index_fill_(0, slots_N, 0)

    def add(
        self, stretches: Mapping[Span, Sequence[Stretch]], hidden: Sequence[torch.Tensor], token_ids_T: torch.Tensor
    ) -> None:
        """Add the tokens of one forward pass.

        Args:
            stretches: The stretches of the pass that belong to each span.
            hidden: For every layer of this worker the hidden states ``(T, D)``, in the model's type.
            token_ids_T: The tokens that the pass read, any integer type.
        """
        for span, of_span in stretches.items():
            for combine, of_sum in self._values:
                if of_sum == span:
                    # Of a stretch that only its last token is needed of, only that is read.
                    self._add_to((combine, span), of_span, hidden, token_ids_T, last=combine == "last")

    def _add_to(
        self,
        key: Sum,
        stretches: Sequence[Stretch],
        hidden: Sequence[torch.Tensor],
        token_ids_T: torch.Tensor,
        *,
        last: bool,
    ) -> None:
        places_E, slots_E, open_E = to_device(_places_of(stretches, last=last), self._device).unbind()
        ids_E = token_ids_T[places_E].long()
        rows_E = self._rows(slots_E, ids_E, open_E.bool()) if any(one.is_open for one in stretches) else slots_E
        if last:
            for values_SD, resid_TD in zip(self._values[key], hidden, strict=True):
                values_SD.index_copy_(0, rows_E, resid_TD[places_E].float())
        elif self._device.type in PRODUCT_DEVICES and places_E.numel() >= PRODUCT_LENGTH * len(stretches):
            self._add_products(self._values[key], stretches, hidden, places_E, rows_E)
        else:
            for values_SD, resid_TD in zip(self._values[key], hidden, strict=True):
                values_SD.index_add_(0, rows_E, resid_TD[places_E].float())
        counts, id_sums = self._counts[key], self._id_sums[key]
        if last:
            counts.index_fill_(0, rows_E, 1)
            id_sums.index_copy_(0, rows_E, ids_E)
        else:
            counts.index_add_(0, rows_E, torch.ones_like(ids_E))
            id_sums.index_add_(0, rows_E, ids_E)

    def _add_products(
        self,
        values_LSD: torch.Tensor,
        stretches: Sequence[Stretch],
        hidden: Sequence[torch.Tensor],
        places_E: torch.Tensor,
        rows_E: torch.Tensor,
    ) -> None:
        """Add the tokens of each slot by one matrix product a layer.

        Adding a long prompt token by token would have all of its tokens wait for the same row.
        """
        touched = sorted({one.slot for one in stretches})
        touched_P = to_device(np.asarray(touched, dtype=np.int64), self._device)
        # Behind the last token of a stretch may be padding, which can hold anything.
        num_tokens = max(one.stop for one in stretches)
        row_of_T = torch.full((num_tokens,), self._spare, dtype=torch.long, device=self._device)
        row_of_T.index_copy_(0, places_E, rows_E)
        inside_PT = touched_P[:, None] == row_of_T
        nothing_D1 = torch.zeros(values_LSD.shape[2], 1, dtype=hidden[0].dtype, device=self._device)
        for values_SD, resid_TD in zip(values_LSD, hidden, strict=True):
            # A number that is not finite must stay in its slot, and 0 times it is NaN: so the product leaves it out,
            # and it marks the slots of its token.
            finite_TD = torch.nan_to_num(resid_TD[:num_tokens], nan=0.0, posinf=0.0, neginf=0.0)
            is_bad_T = torch.isnan(resid_TD[:num_tokens] @ nothing_D1)[:, 0]
            is_bad_P1 = (inside_PT & is_bad_T).any(dim=1, keepdim=True)
            sums_PD = sum_rows(inside_PT, finite_TD).masked_fill_(is_bad_P1, torch.nan)
            values_SD.index_add_(0, touched_P, sums_PD)

    def _rows(self, slots_E: torch.Tensor, ids_E: torch.Tensor, open_E: torch.Tensor) -> torch.Tensor:
        """Return the rows that tokens go to: of a response that is being generated, the spare one once it has ended."""
        # vLLM schedules a pass before it has the tokens of the one before, so it may feed the token that ended a
        # response, and one more for every pass that is in flight.
        ended_E = ((ids_E[:, None] == self._stop_ids).any(dim=1) | self._ended_S[slots_E]) & open_E
        self._ended_S.index_copy_(0, slots_E, ended_E)
        return torch.where(ended_E, self._spare, slots_E)

    def take(self, slots: Sequence[int]) -> SlotValues:
        """Read slots, which waits once, for the passes that were started.

        Args:
            slots: Any slots.
        """
        slots_N = to_device(np.asarray(slots, dtype=np.int64), self._device)
        num = len(self._values)
        found = to_host(
            [values[:, slots_N] for values in self._values.values()]
            + [numbers[slots_N] for numbers in (*self._counts.values(), *self._id_sums.values())]
        )
        return SlotValues(
            {key: one.numpy() for key, one in zip(self._values, found[:num], strict=True)},
            {key: one.tolist() for key, one in zip(self._counts, found[num : 2 * num], strict=True)},
            {key: one.tolist() for key, one in zip(self._id_sums, found[2 * num :], strict=True)},
        )


def _places_of(stretches: Sequence[Stretch], *, last: bool) -> npt.NDArray[np.int64]:
    """Return, for every token, its index in the pass, its slot, and whether its response is being generated."""
    table = np.array([(one.start, one.stop, one.slot, one.is_open) for one in stretches], dtype=np.int64)
    starts, stops, slots, is_open = table.T
    if last:
        return np.stack([stops - 1, slots, is_open])
    lengths = stops - starts
    before = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum(), dtype=np.int64) + np.repeat(starts - before, lengths)
    return np.stack([places, np.repeat(slots, lengths), np.repeat(is_open, lengths)])
