"""The edits of padded batches of a Hugging Face model, from hooks that stay attached over many forward passes.

A batch of B rows and T tokens is a pass of B * T tokens, row after row; see ``edited_pass``. Padding tokens are edited
like any other, which changes nothing, because no token attends to them.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from torch import nn

from ...jobs.errors import InputError
from ...jobs.interventions import Intervention
from ..models.hook_points import find_decoder_layers, tensor_of
from .edited_pass import EditedPass, EditedStretch
from .interventions import Interventions

_Value = TypeVar("_Value")


class EditedBatches:
    """The edits of every batch that runs through a model.

    Args:
        model: The model.
        per_row: Interventions: of every row, or one for all.
        lengths: Prompt lengths: of every row, or one for all; empty where they are not needed.

    Raises:
        InputError: An intervention does not fit the model, or the model counts no positions and prompt lengths are
            given.
    """

    def __init__(self, model: nn.Module, per_row: Sequence[Intervention | None], lengths: Sequence[int]) -> None:
        decoder: Any = model.get_decoder() if hasattr(model, "get_decoder") else model  # pyright: ignore[reportCallIssue]
        config: Any = model.config.get_text_config()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
        self._decoder: nn.Module = decoder
        self._layers = find_decoder_layers(model, int(config.num_hidden_layers))
        self._d_model = int(config.hidden_size)
        self._per_row = per_row
        self._lengths = lengths
        for one in per_row:
            problem = one and one.problem(len(self._layers), self._d_model)
            if problem:
                raise InputError(f"{problem}.", code="bad_intervention", field="intervention")
        # A model may be spread over several devices; each has its own copies of the vectors it needs.
        self._of_device: dict[str, Interventions] = {}
        self._plans: dict[str, EditedPass] = {}
        self._start = 0
        if lengths and "past_key_values" not in inspect.signature(decoder.forward).parameters:
            raise InputError(
                f"a {type(model).__name__} keeps no past_key_values, so it is not known which of its tokens are those "
                "of the response.",
                code="no_positions",
                field="prompt_length",
                hint="Use edits that act on all tokens.",
            )

    def attach(self) -> list[Any]:
        """Attach the hooks, and return their handles."""
        edited = sorted({edit.layer for one in self._per_row if one is not None for edit in one.edits})
        return [
            self._decoder.register_forward_pre_hook(self._begin, with_kwargs=True),
            # Before all other hooks: those by which transformers records hidden states stay on a model once they are
            # attached, so that otherwise these would be edited or not, depending on what ran before.
            *(self._layers[layer].register_forward_hook(partial(self._edit, layer), prepend=True) for layer in edited),
        ]

    def _begin(self, _module: nn.Module, args: Any, named: Any) -> None:
        """Start a forward pass: forget the plans of the last one, and find the position of the first token."""
        self._plans = {}
        if self._lengths:
            past = named.get("past_key_values", args[2] if len(args) > 2 else None)
            self._start = int(past.get_seq_length()) if past is not None else 0

    def _edit(self, layer: int, _module: nn.Module, _args: Any, output: Any) -> Any:
        resid = tensor_of(output)
        device = str(resid.device)
        if device not in self._plans:
            if device not in self._of_device:
                self._of_device[device] = Interventions(self._layers, self._d_model, device)
            rows, tokens = (1, len(resid)) if resid.dim() == 2 else resid.shape[:2]
            stretches = self._stretches(self._of_device[device], rows, tokens)
            self._plans[device] = self._of_device[device].planned(stretches)
        plan = self._plans[device]
        return plan.edit(layer, output) if layer in plan.layers else output

    def _stretches(self, interventions: Interventions, rows: int, tokens: int) -> list[EditedStretch]:
        ready = [interventions.ready(one) for one in _expanded(self._per_row, rows, "interventions")]
        lengths = _expanded(self._lengths or [0], rows, "prompt lengths")
        return [
            stretch
            for row, (applied, length) in enumerate(zip(ready, lengths, strict=True))
            if applied is not None
            for stretch in applied.stretches(row * tokens, self._start, self._start + tokens, length)
        ]


def _expanded(values: Sequence[_Value], rows: int, what: str) -> list[_Value]:
    """Repeat each value for the rows that ``generate`` makes of one, which are beside each other."""
    times, rest = divmod(rows, len(values))
    if rest:
        raise InputError(
            f"{len(values)} {what} were given for a batch of {rows} rows.",
            code="bad_batch",
            field="intervention" if what == "interventions" else "prompt_length",
            hint="Give one for all rows, or one for each.",
        )
    return [value for value in values for _ in range(times)]
