"""What edits did to each rollout: per decoder layer the number of changed tokens and the sum of their corrections.

In generation the sums stay on the device, a column for each slot of the batch, and are copied to the host when a
rollout ends. In reading a rollout is a list of ranges of one pass.
Axes: 2 number of changed tokens and sum of the lengths of their changes, L decoder layers of the model, S slots, E
edited layers of a pass, N tokens of a pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch

from ...jobs.interventions import Intervention
from ...jobs.poolings import TokenRange
from ...jobs.work.rollouts import EditRecord
from .edited_pass import EditedPass


class EditTotals:
    """The sums of the rollouts in a batch, by slot. Until the first edit it holds nothing and costs nothing.

    Args:
        num_layers: Decoder layers of the model.
        device: Where the model is.
    """

    def __init__(self, num_layers: int, device: str) -> None:
        self._num_layers = num_layers
        self._device = device
        self._sums_2LS: torch.Tensor | None = None

    def start(self, slots: slice) -> None:
        """Reset slots for new rollouts.

        Args:
            slots: Consecutive slots.
        """
        if self._sums_2LS is not None:
            self._grow(slots.stop)[:, :, slots] = 0

    def add(self, edits: EditedPass, slots: Sequence[int]) -> None:
        """Add what a pass did.

        Args:
            edits: The edits of the pass, which has run.
            slots: The slot of each of its N tokens.
        """
        if not edits.layers:
            return
        sums_2LS = self._grow(max(slots) + 1)
        moved_2EN = _moved(edits.changes_EN(len(slots)))
        slot_N = torch.tensor(slots, device=self._device)
        sums_2ES = moved_2EN.new_zeros(2, len(edits.layers), sums_2LS.shape[2]).index_add_(2, slot_N, moved_2EN)
        sums_2LS[:, torch.tensor(edits.layers, device=self._device)] += sums_2ES

    def of_range(self, edits: EditedPass, num_tokens: int, span: TokenRange) -> torch.Tensor | None:
        """Return what a pass did to a range of its tokens, to be given to ``add_prefix``.

        Args:
            edits: The edits of the pass, which has run.
            num_tokens: N.
            span: The range, end exclusive.

        Returns:
            The sums ``(2, L)``; None where nothing was edited.
        """
        if not edits.layers:
            return None
        moved_2EN = _moved(edits.changes_EN(num_tokens))
        sums_2L = moved_2EN.new_zeros(2, self._num_layers)
        sums_2L[:, edits.layers] = moved_2EN[:, :, slice(*span)].sum(dim=2)
        return sums_2L

    def add_prefix(self, slot: int, sums_2L: torch.Tensor | None) -> None:
        """Add what was done to a prefix that the rollout of a slot shares.

        Args:
            slot: The slot.
            sums_2L: What ``of_range`` returned.
        """
        if sums_2L is not None:
            self._grow(slot + 1)[:, :, slot] += sums_2L

    def move(self, source: int, target: int) -> None:
        """Move one slot's sums to another slot."""
        if self._sums_2LS is not None:
            self._sums_2LS[:, :, target] = self._sums_2LS[:, :, source]

    def finish(
        self, slot: int, intervention: Intervention | None, num_prompt: int, num_content: int
    ) -> tuple[EditRecord, ...] | None:
        """Return the record of the rollout in a slot.

        Args:
            slot: The slot.
            intervention: Its intervention; None for none.
            num_prompt: Tokens of its prompt.
            num_content: Content tokens of its response.
        """
        if intervention is None or not intervention.edits:
            return None
        changed_L, lengths_L = self._grow(slot + 1)[:, :, slot].tolist()
        of_layer = dict(enumerate(zip(changed_L, lengths_L, strict=True)))
        return _records(intervention, num_prompt, num_content, of_layer)

    def _grow(self, num_slots: int) -> torch.Tensor:
        old = self._sums_2LS
        if old is None or old.shape[2] < num_slots:
            self._sums_2LS = torch.zeros(2, self._num_layers, 2 * num_slots, device=self._device)
            if old is not None:
                self._sums_2LS[:, :, : old.shape[2]] = old
        assert self._sums_2LS is not None
        return self._sums_2LS


def record_of(
    intervention: Intervention,
    changes: tuple[Sequence[int], torch.Tensor],
    ranges: Iterable[TokenRange],
    response: TokenRange,
) -> tuple[EditRecord, ...]:
    """Make the record of a rollout that was read in one pass.

    Args:
        intervention: Its intervention, with an edit at least.
        changes: The edited layers of the pass, and how far each token was moved there, ``(E, N)``, on the CPU.
        ranges: Where the conversation up to the end of the response is in the pass.
        response: Token range of the response in the conversation.
    """
    layers, changes_EN = changes
    nothing_2E = torch.zeros(2, len(layers))
    changed_E, lengths_E = sum((_moved(changes_EN[:, start:stop]).sum(dim=2) for start, stop in ranges), nothing_2E)
    of_layer = dict(zip(layers, zip(changed_E.tolist(), lengths_E.tolist(), strict=True), strict=True))
    return _records(intervention, response[0], response[1] - response[0], of_layer)


def _moved(changes_EN: torch.Tensor) -> torch.Tensor:
    return torch.stack([(changes_EN > 0).float(), changes_EN])


def _records(
    intervention: Intervention, num_prompt: int, num_content: int, of_layer: Mapping[int, tuple[float, float]]
) -> tuple[EditRecord, ...]:
    """Make the record from the number of changed tokens and the sum of the lengths of their changes, by layer."""
    on_prompt = {edit.layer for edit in intervention.of_prompt().edits}
    records: list[EditRecord] = []
    for layer in sorted({edit.layer for edit in intervention.edits}):
        # A layer is absent where no token of the pass was edited there, such as with an empty response.
        changed, length = of_layer.get(layer, (0.0, 0.0))
        num_tokens = num_content + (num_prompt if layer in on_prompt else 0)
        records.append(EditRecord(layer, num_tokens, int(changed), length / changed if changed else 0.0))
    return tuple(records)
