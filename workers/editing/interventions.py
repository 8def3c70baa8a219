"""Prepare interventions for a model, and apply them to the outputs of its decoder layers during a pass.

A packed pass runs over one sequence with the tokens of many requests, and each request may have a different
intervention. A hook on every edited decoder layer edits the tokens of each, so that the other requests of the pass are
not changed. The hooks are attached for one pass only. PyTorch runs hooks in the order in which they were attached and
passes each the output of the one before it: capture hooks that are attached after these see the edited stream, those
that are put before these the stream as it was. A pass without edits gets no hook.

The arithmetic is in ``edits``, what happens within a pass in ``edited_pass``. To add a kind of edit, add its dataclass
to ``jobs/interventions.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import nn

from ...jobs.interventions import Direction, Edit, Intervention
from .edited_pass import EditedPass, EditedStretch, EditTable, PreparedEdit, PreparedEdits, tables_of

_REMEMBERED = 64
"""Number of interventions whose vectors are cached on the device: a job that reuses them uploads each once."""

_TABLES = 4
"""Number of tables that are cached: a decoding batch has the same sets of edits until one joins or leaves."""


@dataclass(frozen=True, eq=False, slots=True)
class AppliedIntervention:
    """An intervention prepared for one model, with its vectors on the device. Compared and hashed by identity.

    Attributes:
        intervention: The intervention.
        prompt: What prompt tokens get; None where they are left as they are. Equal edits of prompts are the same
            object, so that prefix sharing can compare by identity.
        response: What response tokens get; the same object as ``prompt`` where every edit acts on all tokens.
    """

    intervention: Intervention
    prompt: PreparedEdits | None
    response: PreparedEdits | None

    def stretches(self, begin: int, first: int, last: int, response: int) -> list[EditedStretch]:
        """Return the edits of consecutive tokens of one conversation.

        Args:
            begin: Index of the first of the tokens in the pass.
            first: Its position in the conversation.
            last: Position after the last of the tokens.
            response: Position of the first token of the response.
        """
        border = first if self.prompt is self.response else min(max(first, response), last)
        halves = ((self.prompt, first, border), (self.response, border, last))
        return [
            EditedStretch(edits, begin + start - first, begin + stop - first)
            for edits, start, stop in halves
            if edits is not None and start < stop
        ]


def prompt_edits(applied: AppliedIntervention | None) -> PreparedEdits | None:
    """Return what decides whether two conversations with the same first tokens may share them; None for no edits."""
    return None if applied is None else applied.prompt


class Interventions:
    """Prepares interventions for one model and applies them during its passes.

    Args:
        decoder_layers: All decoder layers of the model, in order.
        d_model: Width of the residual stream.
        device: ``cpu`` or ``cuda``: where the model is.
    """

    def __init__(self, decoder_layers: Sequence[nn.Module], d_model: int, device: str) -> None:
        self._decoder_layers = list(decoder_layers)
        self._d_model = d_model
        self._device = device
        self._ready: OrderedDict[Intervention, AppliedIntervention] = OrderedDict()
        self._tables: OrderedDict[tuple[PreparedEdits, ...], dict[int, list[EditTable]]] = OrderedDict()
        # Weak: what no cached or running intervention uses is freed.
        self._edits: WeakValueDictionary[Intervention, PreparedEdits] = WeakValueDictionary()
        self._units: WeakValueDictionary[Direction, torch.Tensor] = WeakValueDictionary()

    def ready(self, intervention: Intervention | None) -> AppliedIntervention | None:
        """Prepare an intervention: check it and upload its vectors.

        An intervention without edits gives None: it may share prefixes with requests that have no intervention.

        Args:
            intervention: The intervention of a request; None for none.

        Raises:
            UnitError: It does not fit the model.
        """
        if intervention is None or not intervention.edits:
            return None
        known = self._ready.get(intervention)
        if known is None:
            intervention.require_applicable(len(self._decoder_layers), self._d_model)
            parts = (self._prepared(intervention.of_prompt()), self._prepared(intervention))
            known = self._ready[intervention] = AppliedIntervention(intervention, *parts)
            if len(self._ready) > _REMEMBERED:
                self._ready.popitem(last=False)
        else:
            self._ready.move_to_end(intervention)
        return known

    def planned(self, stretches: Sequence[EditedStretch]) -> EditedPass:
        """Make the edits of one pass, which ``applied`` attaches to the model.

        Args:
            stretches: Ranges of the pass, ascending and not overlapping.
        """
        # In one order whatever the order of the tokens, so that the same sets find their tables.
        sets = tuple(sorted({stretch.edits for stretch in stretches}, key=id))
        return EditedPass(stretches, sets, self._tables_of(sets) if len(sets) > 1 else {}, self._device)

    @contextmanager
    def applied(self, stretches: Sequence[EditedStretch]) -> Iterator[EditedPass]:
        """Apply edits to the pass that runs within the context.

        Args:
            stretches: Ranges of the pass, ascending and not overlapping.

        Yields:
            The edits, which know after the pass how far each token was moved.
        """
        edits = self.planned(stretches)
        with self.attached(edits):
            yield edits

    @contextmanager
    def attached(self, edits: EditedPass, layer: int | None = None) -> Iterator[None]:
        """Apply the edits of a pass to what the model runs within the context.

        Args:
            edits: The edits of the pass, as ``planned`` made them.
            layer: The only decoder layer that runs; None: all of them.
        """
        layers = [edited for edited in edits.layers if layer is None or edited == layer]
        handles = [self._decoder_layers[edited].register_forward_hook(_hook(edits, edited)) for edited in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def top(self, edits: EditedPass, captured: int) -> nn.Module | None:
        """Return the last decoder layer that a pass must run because it is edited.

        Args:
            edits: The edits of the pass.
            captured: Highest captured layer.

        Returns:
            The highest edited layer; None where it is not above the captured ones.
        """
        highest = max(edits.layers, default=captured)
        return self._decoder_layers[highest] if highest > captured else None

    def _prepared(self, intervention: Intervention) -> PreparedEdits | None:
        if not intervention.edits:
            return None
        prepared = self._edits.get(intervention)
        if prepared is None:
            by_layer: dict[int, tuple[PreparedEdit, ...]] = {}
            for edit in intervention.edits:
                by_layer[edit.layer] = (*by_layer.get(edit.layer, ()), PreparedEdit(self._unit(edit), edit.terms))
            prepared = self._edits[intervention] = PreparedEdits(by_layer)
        return prepared

    def _unit(self, edit: Edit) -> torch.Tensor:
        unit_D = self._units.get(edit.vector)
        if unit_D is None:
            # Not an inference tensor even if it is made in a pass: others may use it where gradients are computed.
            with torch.inference_mode(mode=False):
                unit_D = self._units[edit.vector] = torch.tensor(edit.vector.unit, device=self._device)
        return unit_D

    def _tables_of(self, sets: tuple[PreparedEdits, ...]) -> dict[int, list[EditTable]]:
        tables = self._tables.get(sets)
        if tables is None:
            with torch.inference_mode(mode=False):
                tables = self._tables[sets] = tables_of(sets, self._device)
            if len(self._tables) > _TABLES:
                self._tables.popitem(last=False)
        else:
            self._tables.move_to_end(sets)
        return tables


def _hook(edits: EditedPass, layer: int) -> Callable[..., Any]:
    """Make the forward hook of one decoder layer; its return value replaces the layer's output."""
    return lambda _module, _args, output: edits.edit(layer, output)
