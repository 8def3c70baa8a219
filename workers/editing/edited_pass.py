"""One forward pass with edits: which tokens are edited and how, and how far each was moved.

Indices are made once per pass, not per layer. Where all edited tokens have the same edits, each edit is one product
with one vector; otherwise a table has the directions and numbers of every set of edits in the pass, and each token
takes its own from it.
Axes: N tokens of the pass, T of them edited, G sets of edits in the pass, E edited layers, D d_model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from ...jobs.interventions import Terms
from ..models.hook_points import tensor_of
from .edits import Number, edited


class PreparedEdit(NamedTuple):
    """One edit with its direction on the device.

    Attributes:
        unit_D: Its direction, float32, of length one; zeros for a vector of zeros.
        terms: What it does along the direction.
    """

    unit_D: torch.Tensor
    terms: Terms


@dataclass(frozen=True, eq=False, slots=True, weakref_slot=True)
class PreparedEdits:
    """The edits that some tokens get, on the device. Compared and hashed by identity.

    Attributes:
        by_layer: The edits of each edited decoder layer, in the order in which they are applied.
    """

    by_layer: Mapping[int, tuple[PreparedEdit, ...]]


class EditedStretch(NamedTuple):
    """A range of a pass and its edits.

    Attributes:
        edits: What its tokens get.
        start: Index of the first token in the pass.
        stop: End, exclusive.
    """

    edits: PreparedEdits
    start: int
    stop: int


class EditTable(NamedTuple):
    """One edit at one layer for each set of edits of a pass; a set that has none has zeros and no floor.

    Attributes:
        units_GD: Directions.
        terms_3G: a, b and floor; see ``Terms``.
    """

    units_GD: torch.Tensor
    terms_3G: torch.Tensor


def tables_of(sets: Sequence[PreparedEdits], device: str) -> dict[int, list[EditTable]]:
    """Make the tables of a pass whose tokens have different edits.

    Args:
        sets: G sets of edits.
        device: Where the model is.

    Returns:
        For each layer that a set edits, one table for the first edit of every set, one for the second, and so on.
    """
    tables: dict[int, list[EditTable]] = {}
    for layer in sorted({layer for one in sets for layer in one.by_layer}):
        columns = [one.by_layer.get(layer, ()) for one in sets]
        some = next(edit for column in columns for edit in column)
        nothing = PreparedEdit(torch.zeros_like(some.unit_D), Terms())
        for nth in range(max(map(len, columns))):
            row = [column[nth] if nth < len(column) else nothing for column in columns]
            terms_3G = torch.tensor([edit.terms for edit in row], dtype=torch.float32, device=device).T.contiguous()
            tables.setdefault(layer, []).append(EditTable(torch.stack([edit.unit_D for edit in row]), terms_3G))
    return tables


class EditedPass:
    """The edits of one pass, and afterwards how far they moved each token.

    Args:
        stretches: Ranges of the pass, ascending and not overlapping; tokens between them are left as they are.
        tables: Tables of the sets of edits in ``sets``; read only where there are several.
        sets: The different sets of edits of the stretches.
        device: Where the model is.

    Attributes:
        layers: The edited decoder layers, ascending.
    """

    def __init__(
        self,
        stretches: Sequence[EditedStretch],
        sets: Sequence[PreparedEdits],
        tables: Mapping[int, Sequence[EditTable]],
        device: str,
    ) -> None:
        self.layers = sorted({layer for one in sets for layer in one.by_layer})
        self._sets = sets
        self._tables = tables
        self._lengths_T: dict[int, torch.Tensor] = {}
        # A slice where it can be: nothing is then uploaded, gathered or scattered.
        self._where: slice | torch.Tensor = slice(0, 0)
        self._set_T: torch.Tensor | None = None
        if not stretches:
            return
        is_range = all(one.stop == other.start for one, other in pairwise(stretches))
        self._where = slice(stretches[0].start, stretches[-1].stop)
        if not is_range or len(sets) > 1:
            where_T, set_T = _indices(stretches, sets).to(device)
            self._where = self._where if is_range else where_T
            self._set_T = set_T if len(sets) > 1 else None

    def edit(self, layer: int, output: Any) -> Any:
        """Edit what a decoder layer returned.

        Args:
            layer: 0-based decoder layer, one of ``layers``.
            output: Its output: the stream of N tokens, or a tuple that begins with it.

        Returns:
            The edited output, in the same shape and dtype; computed in float32.
        """
        resid = tensor_of(output)
        resid_ND = resid.reshape(-1, resid.shape[-1])
        rows_TD = resid_ND[self._where]
        before_TD = edited_TD = rows_TD.float()
        rounds = self._rounds(layer)
        for unit, terms in rounds:
            edited_TD, change_T = edited(edited_TD, unit, *terms)
            self._lengths_T[layer] = change_T.detach().abs()
        if len(rounds) > 1:
            self._lengths_T[layer] = torch.linalg.vector_norm((edited_TD - before_TD).detach(), dim=-1)
        rows_TD = edited_TD.to(resid.dtype)
        if len(rows_TD) < len(resid_ND):
            # A copy: the output of some layers is a tensor that other modules still use.
            whole_ND = resid_ND.clone()
            whole_ND[self._where] = rows_TD
            rows_TD = whole_ND
        new = rows_TD.view(resid.shape)
        return (new, *output[1:]) if isinstance(output, tuple | list) else new

    def changes_EN(self, num_tokens: int) -> torch.Tensor:  # noqa: N802 - carries its axes
        """Return how far each token was moved at each edited layer.

        Args:
            num_tokens: N; a pass may have had padding behind them.

        Returns:
            The length of the change in units of the residual stream: float32 ``(E, N)``, on the device; 0 where a
            token was left as it is.
        """
        lengths_ET = torch.stack([self._lengths_T[layer] for layer in self.layers])
        if isinstance(self._where, slice) and self._where.start == 0 and lengths_ET.shape[1] >= num_tokens:
            return lengths_ET[:, :num_tokens]
        changes_EN = lengths_ET.new_zeros(len(self.layers), num_tokens)
        changes_EN[:, self._where] = lengths_ET
        return changes_EN

    def _rounds(self, layer: int) -> list[tuple[torch.Tensor, Sequence[Number]]]:
        """Return the edits of a layer in order, each with its direction, or one for each token, and its terms."""
        if self._set_T is None:
            return list(self._sets[0].by_layer[layer])
        return [(table.units_GD[self._set_T], table.terms_3G[:, self._set_T].unbind()) for table in self._tables[layer]]


def _indices(stretches: Sequence[EditedStretch], sets: Sequence[PreparedEdits]) -> torch.Tensor:
    """Return the index in the pass of each edited token, and which set of edits it has: ``(2, T)``."""
    number = {one: index for index, one in enumerate(sets)}
    rows = torch.tensor([(stretch.start, number[stretch.edits]) for stretch in stretches]).T
    lengths = torch.tensor([stretch.stop - stretch.start for stretch in stretches])
    firsts_T, set_T = rows.repeat_interleave(lengths, dim=1)
    within_T = torch.arange(len(firsts_T)) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
    return torch.stack([firsts_T + within_T, set_T])
