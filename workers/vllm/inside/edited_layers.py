"""Edits of the residual stream inside of vLLM's decoder layers: tables of fixed size, which compiled graphs may read.

Every decoder layer at which requests may be edited gets a class of its own, before vLLM compiles the model or captures
a graph of it. What it returns is edited token by token, by rows of tables that stay where they are in memory:
``setting_T`` says of each token of the pass which row of the table of settings applies to it, and is written before
every pass; a row has for each place a direction and the numbers a, b and floor of ``workers/edits``. Row 0 changes
nothing. vLLM's own classes return ``(hidden_states, residual)``, of which the sum is the residual stream; a token that
is edited gets the whole stream in ``residual``, rounded once, and any other keeps both to the last bit.

Every rank of a tensor-parallel group has the whole stream behind a decoder layer, and edits it alike. Imports vLLM's
classes by no name.
Axes: N tokens of one pass, T most tokens of a pass, S settings, P places, V directions, D d_model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ....jobs.errors import InputError
from ...editing.edits import edited
from ..edits.plan import NO_EDIT, EditPlan, EditUpload
from .transfers import to_device

_PAIRS = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
        "Qwen3MoeDecoderLayer",
        "TransformerBlock",
    }
)
"""Decoder layers that return ``(hidden_states, residual)``. The last is gpt-oss's."""

_STREAMS = frozenset({"Gemma2DecoderLayer", "Gemma3DecoderLayer"})
"""Decoder layers of transformers that return the residual stream, with a batch axis of length one."""


class EditTables:
    """The tables of one rank.

    Args:
        plan: Where requests may be edited.
        tokens: T.
        d_model: D.
        device: Where the model is.
        skips: Whether a layer whose places no token of a pass needs may be left out: only where no graph is compiled
            or captured, since a graph would leave it out for good.

    Attributes:
        setting_T: Row of the table of settings for every token of the pass.
        used: Places that a token of this pass needs.
        skips: The same.
    """

    def __init__(self, plan: EditPlan, *, tokens: int, d_model: int, device: Any, skips: bool) -> None:
        num_places, num_settings = len(plan.places), plan.settings + 1
        self.plan = plan
        self.skips = skips
        self.used: set[int] = set()
        self._device = torch.device(device)
        self._places_of_setting: dict[int, frozenset[int]] = {}
        self._is_clean = True
        self.setting_T = torch.zeros(tokens, dtype=torch.long, device=device)
        self.direction_PS = torch.zeros(num_places, num_settings, dtype=torch.long, device=device)
        # a, b and floor in one table: to gather three of them takes as long as one.
        self.terms_P3S = torch.zeros(num_places, 3, num_settings, device=device)
        self.terms_P3S[:, 2] = -torch.inf
        self.unit_VD = torch.zeros(plan.directions + 1, d_model, device=device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the tables."""
        tables = (self.setting_T, self.direction_PS, self.terms_P3S, self.unit_VD)
        return sum(table.nbytes for table in tables)

    def write(self, upload: EditUpload) -> None:
        """Write rows; passes that the device was given before see the old ones.

        Args:
            upload: The rows.
        """
        for row, data in upload.directions:
            self.unit_VD[row].copy_(torch.from_numpy(np.frombuffer(data, dtype="<f4").copy()))
        for row, places in upload.settings:
            self.direction_PS[:, row] = 0
            self.terms_P3S[:, :2, row] = 0
            self.terms_P3S[:, 2, row] = -torch.inf
            for place, direction, a, b, floor in places:
                self.direction_PS[place, row] = direction
                self.terms_P3S[place, :, row] = torch.tensor([a, b, floor], device=self._device)
            self._places_of_setting[row] = frozenset(place for place, *_ in places)

    def begin_pass(self, stretches: Sequence[tuple[int, int, int]]) -> None:
        """Say which tokens of the coming pass are edited, and how.

        Args:
            stretches: Row of the table of settings, first token and end, exclusive; of any other token: none.
        """
        self.used.clear()
        if not stretches and self._is_clean:
            return
        setting_T = np.zeros(len(self.setting_T), dtype=np.int64)
        for setting, start, stop in stretches:
            setting_T[start:stop] = setting
            self.used |= self._places_of_setting.get(setting, frozenset())
        # The whole of it: a graph may run over more tokens than the pass has.
        self.setting_T.copy_(to_device(setting_T, self._device), non_blocking=True)
        self._is_clean = not stretches


class LayerEdits(nn.Module):
    """The edits of one decoder layer, in the order of its places.

    Args:
        tables: The tables.
        layer: 0-based decoder layer.
        is_pair: Whether it returns ``(hidden_states, residual)``.
    """

    setting_T: torch.Tensor
    direction_PS: torch.Tensor
    terms_P3S: torch.Tensor
    unit_VD: torch.Tensor

    def __init__(self, tables: EditTables, layer: int, *, is_pair: bool) -> None:
        super().__init__()
        self._used = tables.used
        self._skips = tables.skips
        self._is_pair = is_pair
        self._places = [place for place, where in enumerate(tables.plan.places) if where == layer]
        # Buffers, which a compiled graph takes as arguments and does not copy into itself.
        for name in ("setting_T", "direction_PS", "terms_P3S", "unit_VD"):
            self.register_buffer(name, getattr(tables, name), persistent=False)

    def forward(self, output: Any) -> Any:
        """Edit what the layer returns."""
        if self._skips and self._used.isdisjoint(self._places):
            return output
        if not self._is_pair:
            return self._edited(output.squeeze(0))[0].unsqueeze(0)
        hidden, residual = output
        stream, is_edited_N1 = self._edited(hidden + residual)
        return hidden.masked_fill(is_edited_N1, 0), torch.where(is_edited_N1, stream, residual)

    def _edited(self, stream_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the edited stream, and which tokens are edited."""
        setting_N = self.setting_T[: stream_ND.shape[0]]
        is_edited_N1 = torch.zeros_like(setting_N, dtype=torch.bool)[:, None]
        resid_ND = stream_ND.float()
        for place in self._places:
            direction_N = self.direction_PS[place][setting_N]
            a_N, b_N, floor_N = self.terms_P3S[place][:, setting_N].unbind()
            resid_ND, _ = edited(resid_ND, self.unit_VD[direction_N], a_N, b_N, floor_N)
            is_edited_N1 = is_edited_N1 | (direction_N != NO_EDIT)[:, None]
        return torch.where(is_edited_N1, resid_ND.to(stream_ND.dtype), stream_ND), is_edited_N1


def edit_layers(model: Any, tables: EditTables, own: range) -> None:
    """Let the decoder layers of a model edit what they return; called before it runs for the first time.

    Args:
        model: A model of vLLM.
        tables: The tables of this rank.
        own: The layers of this rank's stage of the pipeline.

    Raises:
        InputError: It is not known what these decoder layers return; names their class.
    """
    layers: Any = getattr(getattr(model, "model", None), "layers", None)
    for layer in sorted(set(tables.plan.places)):
        if layer not in own:
            continue
        name = type(layers[layer]).__name__ if isinstance(layers, nn.ModuleList) else type(model).__name__
        if name not in _PAIRS | _STREAMS:
            raise InputError(
                f"vLLM's {type(model).__name__} has decoder layers of the class {name}, of which it is not known how "
                "to edit what they return.",
                code="no_intervention",
                field="placement.engine",
                hint="Set it to builtin.",
            )
        _give_edits(layers[layer], LayerEdits(tables, layer, is_pair=name in _PAIRS))


def _give_edits(module: nn.Module, edits: LayerEdits) -> None:
    """Give one module a class of its own, of which ``forward`` edits what the module's class returns."""
    original = type(module)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.persona_atlas_edits(original.forward(self, *args, **kwargs))

    module.add_module("persona_atlas_edits", edits)
    module.__class__ = type(original.__name__, (original,), {"forward": forward, "__module__": __name__})
