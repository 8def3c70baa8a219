"""Apply interventions to the outputs of decoder layers, each to the tokens of its own request alone.

A packed pass is one line of tokens of many requests, and each may carry an intervention of its own. A hook on every
edited decoder layer takes the tokens of one intervention out of the line, edits them in float32 and puts them back, so
that neighbours in the pass are not touched. The hooks are on the model only while a pass runs, and must be attached
before those that capture: PyTorch runs hooks in the order in which they were attached and hands each one what the one
before it returned, so what is captured at the output of an edited layer is the edited stream. A pass without edits gets
no hook at all.

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
"""Takes float32 ``(T, D)``, the output of a decoder layer at some tokens, and gives the edited one."""

_REMEMBERED = 64
"""Interventions whose vectors are kept on the device, so that a job that repeats them uploads each once."""


def _add_vector(edit: AddVector, device: str) -> Application:
    added_D = edit.coefficient * torch.tensor(edit.vector, dtype=torch.float32, device=device)
    return lambda resid_TD: resid_TD + added_D


_APPLICATIONS: Mapping[type[Any], Callable[[Any, str], Application]] = {AddVector: _add_vector}
"""How each kind of edit is applied: a function of the edit and the device."""


@dataclass(frozen=True, eq=False, slots=True)
class AppliedIntervention:
    """An intervention ready for one model: its vectors lie on the device. Compared and hashed by identity.

    Attributes:
        by_layer: For each edited layer its applications, in order.
    """

    by_layer: Mapping[int, tuple[Application, ...]]

    def edited(self, layer: int, resid_TD: torch.Tensor) -> torch.Tensor:
        """Return the output of a decoder layer as the edits leave it.

        Args:
            layer: Which.
            resid_TD: Its output at tokens of this intervention, any float dtype.

        Returns:
            The same shape and dtype; the arithmetic is in float32.
        """
        edited_TD = resid_TD.float()
        for apply in self.by_layer[layer]:
            edited_TD = apply(edited_TD)
        return edited_TD.to(resid_TD.dtype)


class Interventions:
    """Makes interventions ready for one model and applies them in its passes.

    Args:
        decoder_layers: All of the model's, in order.
        d_model: Width of the residual stream.
        device: Where the model is.
    """

    def __init__(self, decoder_layers: Sequence[nn.Module], d_model: int, device: str) -> None:
        self._decoder_layers = list(decoder_layers)
        self._d_model = d_model
        self._device = device
        self._ready: OrderedDict[Intervention, AppliedIntervention] = OrderedDict()

    def ready(self, intervention: Intervention | None) -> AppliedIntervention | None:
        """Make an intervention ready.

        Equal interventions give the same object while it is remembered, so that those who share a prefix can compare
        by identity. An intervention without edits is None: it is no intervention, and may share with those.

        Args:
            intervention: What a request carries.

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
            stretches: ``(intervention, start, stop)`` for each stretch of the line of tokens, end exclusive; stretches
                that carry none may be left out.
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
    """Make the hook of one decoder layer; what it returns takes the place of the layer's output."""
    here = [(places, which) for which, places in places_T_of.items() if layer in which.by_layer]

    def edit(_module: nn.Module, _args: Any, output: Any) -> Any:
        # A copy: some layers hand on a tensor that others still hold.
        edited = tensor_of(output).clone(memory_format=torch.contiguous_format)
        # The line may have a batch axis of one before it; a view without that axis writes through.
        resid_ND = edited.view(-1, edited.shape[-1])
        for places_T, intervention in here:
            resid_ND[places_T] = intervention.edited(layer, resid_ND[places_T])
        return (edited, *output[1:]) if isinstance(output, tuple | list) else edited

    return edit
