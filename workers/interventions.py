"""Apply interventions to the outputs of decoder layers, each to the tokens of its own request only.

A packed pass runs over one sequence with the tokens of many requests, and each request may have a different
intervention. A hook on every edited decoder layer gathers the tokens of each intervention, edits them in float32 and
scatters them back, so that the other requests of the pass are not changed. The hooks are attached for one pass only,
and must be attached before those that capture: PyTorch runs hooks in the order in which they were attached and passes
each the output of the one before it, so capture at an edited layer sees the edited stream. A pass without edits gets no
hook.

To add a kind of edit, add its dataclass to ``jobs/interventions.py`` and an entry to ``_APPLICATIONS``.
Axes: N tokens of the pass, T tokens of one intervention, D d_model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..jobs.interventions import AddVector, Edit, Intervention
from .models.hook_points import tensor_of

Application = Callable[[torch.Tensor], torch.Tensor]
"""Maps float32 ``(T, D)``, the output of a decoder layer at some tokens, to the edited output."""

_REMEMBERED = 64
"""Number of interventions whose vectors are cached on the device: a job that reuses them uploads each once."""


def _add_vector(edit: AddVector, device: str) -> Application:
    added_D = edit.coefficient * torch.tensor(edit.vector.numbers, device=device)
    return lambda resid_TD: resid_TD + added_D


_APPLICATIONS: Mapping[type[Any], Callable[[Any, str], Application]] = {AddVector: _add_vector}
"""For each kind of edit, a function of the edit and the device that returns its application."""


@dataclass(frozen=True, eq=False, slots=True)
class AppliedIntervention:
    """An intervention prepared for one model, with its vectors on the device. Compared and hashed by identity.

    Attributes:
        by_layer: The applications of each edited layer, in order.
    """

    by_layer: Mapping[int, tuple[Application, ...]]

    def edited(self, layer: int, resid_TD: torch.Tensor) -> torch.Tensor:
        """Apply the edits of one layer to its output.

        Args:
            layer: 0-based decoder layer, a key of ``by_layer``.
            resid_TD: Output of the layer at the tokens of this intervention, any float dtype.

        Returns:
            The edited output, in the same shape and dtype; computed in float32.
        """
        edited_TD = resid_TD.float()
        for apply in self.by_layer[layer]:
            edited_TD = apply(edited_TD)
        return edited_TD.to(resid_TD.dtype)


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

    def ready(self, intervention: Intervention | None) -> AppliedIntervention | None:
        """Prepare an intervention: check it and upload its vectors.

        Equal interventions give the same object while it is cached, so that prefix sharing can compare by identity. An
        intervention without edits gives None: it may share prefixes with requests that have no intervention.

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
            known = self._ready[intervention] = AppliedIntervention(_by_layer(intervention.edits, self._device))
            if len(self._ready) > _REMEMBERED:
                self._ready.popitem(last=False)
        else:
            self._ready.move_to_end(intervention)
        return known

    @contextmanager
    def applied(self, stretches: Sequence[tuple[AppliedIntervention | None, int, int]]) -> Iterator[None]:
        """Apply interventions to the passes that run within the context.

        Args:
            stretches: ``(intervention, start, stop)`` for ranges of the packed sequence, end exclusive; ranges without
                an intervention may be left out.
        """
        places_of: dict[AppliedIntervention, list[int]] = {}
        for intervention, start, stop in stretches:
            if intervention is not None:
                places_of.setdefault(intervention, []).extend(range(start, stop))
        places_T_of = {
            intervention: torch.tensor(places, dtype=torch.long, device=self._device)
            for intervention, places in places_of.items()
        }
        edited_layers = sorted({layer for intervention in places_T_of for layer in intervention.by_layer})
        handles = [
            self._decoder_layers[layer].register_forward_hook(_edit(layer, places_T_of)) for layer in edited_layers
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _by_layer(edits: Sequence[Edit], device: str) -> dict[int, tuple[Application, ...]]:
    by_layer: dict[int, tuple[Application, ...]] = {}
    for edit in edits:
        by_layer[edit.layer] = (*by_layer.get(edit.layer, ()), _APPLICATIONS[type(edit)](edit, device))
    return by_layer


def _edit(layer: int, places_T_of: Mapping[AppliedIntervention, torch.Tensor]) -> Callable[..., Any]:
    """Make the forward hook of one decoder layer; its return value replaces the layer's output."""
    here = [(places, which) for which, places in places_T_of.items() if layer in which.by_layer]

    def edit(_module: nn.Module, _args: Any, output: Any) -> Any:
        # A copy: the output of some layers is a tensor that other modules still use.
        edited = tensor_of(output).clone(memory_format=torch.contiguous_format)
        # The sequence may have a batch axis of length one; writing to a view without that axis changes ``edited``.
        resid_ND = edited.view(-1, edited.shape[-1])
        for places_T, intervention in here:
            resid_ND[places_T] = intervention.edited(layer, resid_ND[places_T])
        return (edited, *output[1:]) if isinstance(output, tuple | list) else edited

    return edit
