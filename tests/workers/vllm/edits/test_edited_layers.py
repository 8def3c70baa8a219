"""Decoder layers that edit what they return, token by token. They are stand-ins of the classes that vLLM has."""

from __future__ import annotations

from types import SimpleNamespace as Some

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.vllm.edits.plan import EditPlan, EditUpload, RequestEdits
from persona_atlas.workers.vllm.inside.edited_layers import EditTables, edit_layers
from persona_atlas.workers.vllm.inside.rank_edits import edited_stretches
from persona_atlas.workers.vllm.inside.tracking import Piece
from torch import nn

D = 16
GENERATOR = torch.Generator().manual_seed(0)
UNIT = np.eye(D, dtype="<f4")[3]


class LlamaDecoderLayer(nn.Module):
    def forward(self, hidden: torch.Tensor, residual: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hidden, residual


class Gemma2DecoderLayer(nn.Module):
    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        return stream


class StrangeLayer(LlamaDecoderLayer):
    pass


def edited_layer(kind: type[nn.Module], *, skips: bool = False) -> tuple[nn.Module, EditTables]:
    """A layer with two places, of which row 1 caps at the first, and row 2 ablates at the second."""
    tables = EditTables(EditPlan((1, 1), 4, 4), tokens=8, d_model=D, device="cpu", skips=skips)
    inf = float("inf")
    settings = ((1, ((0, 2, 0.0, 0.0, 5.0),)), (2, ((1, 2, 0.0, -1.0, -inf),)))
    tables.write(EditUpload(((2, UNIT.tobytes()),), settings))
    layers = nn.ModuleList([kind(), kind()])
    edit_layers(Some(model=Some(layers=layers)), tables, range(2))
    return layers[1], tables


def stream_of(num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, residual = torch.randn(2, num_tokens, D, generator=GENERATOR).to(dtype).unbind()
    return hidden, residual


@pytest.mark.parametrize("skips", [False, True])
def test_each_token_gets_the_edits_of_its_row_and_any_other_keeps_both_parts_to_the_last_bit(skips: bool):
    layer, tables = edited_layer(LlamaDecoderLayer, skips=skips)
    hidden, residual = stream_of(6, torch.bfloat16)
    tables.begin_pass([(1, 1, 3), (2, 4, 5)])
    new_hidden, new_residual = layer(hidden, residual)
    new, old = (new_hidden + new_residual).float(), (hidden + residual).float()
    others = [index for index in range(D) if index != 3]
    assert new[1:3, 3].tolist() == [5.0, 5.0]
    assert new[4, 3] == 0
    assert torch.equal(new[:, others], old[:, others])
    for untouched in (0, 3, 5):
        assert torch.equal(new_hidden[untouched], hidden[untouched])
        assert torch.equal(new_residual[untouched], residual[untouched])
    tables.begin_pass([])
    assert all(map(torch.equal, layer(hidden, residual), (hidden, residual)))


def test_layers_of_transformers_return_the_stream_alone():
    layer, tables = edited_layer(Gemma2DecoderLayer)
    stream, _ = stream_of(4)
    tables.begin_pass([(1, 0, 1)])
    new = layer(stream[None])
    assert new.shape == (1, 4, D)
    assert new[0, 0, 3] == 5
    assert torch.equal(new[0, 1:], stream[1:])


def test_a_row_that_is_written_again_forgets_what_it_did():
    layer, tables = edited_layer(LlamaDecoderLayer)
    tables.write(EditUpload((), ((1, ((1, 2, 7.0, 0.0, -float("inf")),)),)))
    hidden, residual = stream_of(1)
    tables.begin_pass([(1, 0, 1)])
    new = torch.add(*layer(hidden, residual))
    assert torch.allclose(new, hidden + residual + 7 * torch.from_numpy(UNIT))


def test_only_layers_with_places_are_changed_and_an_unknown_class_is_refused_by_name():
    layers = nn.ModuleList([LlamaDecoderLayer() for _ in range(3)])
    tables = EditTables(EditPlan((1, 2), 1, 1), tokens=2, d_model=D, device="cpu", skips=False)
    edit_layers(Some(model=Some(layers=layers)), tables, range(2))
    changed = [type(layer) is not LlamaDecoderLayer for layer in layers]
    assert changed == [False, True, False], "the last is of another stage of the pipeline"
    assert isinstance(layers[1], LlamaDecoderLayer)
    for model, name in [(Some(model=Some(layers=nn.ModuleList([StrangeLayer()]))), "StrangeLayer"), (Some(), "Simple")]:
        tables = EditTables(EditPlan((0,), 1, 1), tokens=2, d_model=D, device="cpu", skips=False)
        with pytest.raises(InputError, match=name) as caught:
            edit_layers(model, tables, range(1))
        assert caught.value.code == "no_intervention"


def test_a_pass_has_the_tokens_of_each_request_on_both_sides_of_where_its_response_begins():
    requests = {"both": RequestEdits(3, 4, 6), "response": RequestEdits(0, 5, 6)}
    pieces = [Piece("both", 4, 4), Piece("plain", 0, 3), Piece("response", 0, 6), Piece("response", 6, 1)]
    assert edited_stretches(pieces, requests) == [(3, 0, 2), (4, 2, 4), (5, 13, 14)]
    assert edited_stretches([Piece("both", 0, 2), Piece("both", 9, 2)], requests) == [(3, 0, 2), (4, 2, 4)]
