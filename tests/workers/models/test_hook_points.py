"""Where hook points are: told by arithmetic, refused by name where a block has none."""

from __future__ import annotations

import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.models.hook_points import find_decoder_layers, find_taps
from torch import nn


class _Serial(nn.Module):
    """A block of the usual kind, with a scale before what it adds."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.mixer, self.gate, self.feed = nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        self.scale = scale

    def forward(self, resid_BTD: torch.Tensor) -> torch.Tensor:
        resid_BTD = resid_BTD + self.mixer(resid_BTD) * self.scale
        return resid_BTD + self.feed(self.gate(resid_BTD)) * self.scale


class _Parallel(_Serial):
    """Attention and MLP side by side: there is no stream between the two."""

    def forward(self, resid_BTD: torch.Tensor) -> torch.Tensor:
        normed_BTD = self.gate(resid_BTD)
        return resid_BTD + self.mixer(normed_BTD) + self.feed(normed_BTD)


def probe(block: nn.Module):
    return lambda: block(torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(0)))


def test_the_parts_of_a_block_are_told_whatever_they_are_called():
    block = _Serial()
    taps = find_taps([block], [0], ["attn_out", "resid_mid", "mlp_out"], probe(block))
    assert taps["attn_out"][0].module is block.mixer
    assert (taps["resid_mid"][0].module, taps["resid_mid"][0].of_input) == (block.gate, True)
    assert taps["mlp_out"][0].module is block.feed


@pytest.mark.parametrize("block", [_Parallel(), _Serial(scale=0.5)], ids=["side by side", "scaled"])
def test_a_block_without_such_parts_is_refused_by_name(block: nn.Module):
    with pytest.raises(InputError, match=r"resid_mid, mlp_out cannot be found in decoder layer 0, a _") as caught:
        find_taps([block], [0], ["resid_mid", "resid_post", "mlp_out"], probe(block))
    assert caught.value.field == "capture.hook_points"
    taps = find_taps([block], [0], ["resid_pre", "resid_post"], probe(block))
    assert [taps["resid_pre"][0].of_input, taps["resid_post"][0].of_input] == [True, False]


def test_the_blocks_are_told_from_a_list_of_experts_of_the_same_length():
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    model = nn.Module()
    model.layers = nn.ModuleList(Mixture() for _ in range(3))
    assert find_decoder_layers(model, 3) == list(model.layers)


@pytest.mark.parametrize("num_lists", [0, 2])
def test_blocks_that_cannot_be_told_are_refused(num_lists: int):
    model = nn.Module()
    for index in range(num_lists):
        model.add_module(f"stack{index}", nn.ModuleList(nn.Linear(2, 2) for _ in range(3)))
    with pytest.raises(InputError, match=f"{num_lists} lists of 3 modules") as caught:
        find_decoder_layers(model, 3)
    assert caught.value.field == "model.source"
