"""Captured vectors against plain Hugging Face, family by family; each row with its own rollout; damage is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import InputError, UnitError
from persona_atlas.workers.capture import PooledCapture, find_blocks
from persona_atlas.workers.engine import CapturedRollout
from persona_atlas.workers.transformers_engine import TransformersEngine
from safetensors.torch import load_file, save_file
from torch import nn

from plain_forward import POOLINGS, PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, requests_of
from tiny_families import FAMILIES, N_LAYERS, save_tiny_family

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def family_directory(tmp_path_factory: pytest.TempPathFactory):
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_family(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


def assert_equal_to_plain(rows: list[CapturedRollout], plain: PlainModel) -> None:
    for row in rows:
        hooked_LTD, hidden_LTD = plain.run(conversation_ids(row.rollout))
        expected, hidden = pool(hooked_LTD, row.rollout), pool(hidden_LTD, row.rollout)
        for pooling in POOLINGS:
            got_LD = row.vectors_LD["resid_post", pooling]
            assert got_LD.dtype == np.float32
            if pooling.startswith("response_") and not row.rollout.has_vector:
                assert np.isnan(got_LD).all()
                continue
            assert relative_errors(got_LD, expected[pooling]).max() < TOLERANCE, (row.rollout.address, pooling)
            # Hugging Face gives the last block's output after the final norm.
            below_LD, hidden_LD = got_LD[:-1], hidden[pooling][:-1]
            assert relative_errors(below_LD, hidden_LD).max() < TOLERANCE, (row.rollout.address, pooling)
            assert relative_errors(got_LD[-1:], hidden[pooling][-1:]).max() > 0.01


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_vectors_equal_a_one_by_one_forward_pass_in_every_family(family_directory, family: str):
    directory = family_directory(family)
    engine = TransformersEngine(engine_settings(directory, layers=range(N_LAYERS)))
    requests = requests_of(48)
    rows = engine.generate(requests)
    assert [row.rollout.address for row in rows] == [request.address for request in requests]
    lengths = {row.rollout.num_content_tokens for row in rows}
    assert {0, 1, 20} <= lengths, "the batch should hold an empty, a one-token and a cut response"
    assert len(lengths) >= 6
    assert len({len(row.rollout.prompt_token_ids) for row in rows}) >= 6
    assert_equal_to_plain(rows, PlainModel(directory))


@pytest.mark.model
def test_vectors_equal_a_one_by_one_forward_pass_in_a_real_model(smollm2_directory: Path):
    settings = engine_settings(smollm2_directory, layers=range(30), max_new_tokens=10, temperature=0.7, top_p=0.9)
    rows = TransformersEngine(settings).generate(requests_of(5))
    assert_equal_to_plain(rows, PlainModel(smollm2_directory))


@pytest.mark.parametrize("family", ["gemma3", "gpt2"])
def test_the_batch_budget_changes_no_rollout_and_no_vector(family_directory, family: str):
    directory = family_directory(family)
    requests = requests_of(12)
    one_by_one, few, all_at_once = (
        TransformersEngine(engine_settings(directory, layers=range(N_LAYERS), batch_tokens=budget)).generate(requests)
        for budget in (1, 400, 100_000)
    )
    assert any(len(row.rollout.response_token_ids) == 20 for row in one_by_one)
    for alone, *others in zip(one_by_one, few, all_at_once, strict=True):
        for other in others:
            assert other.rollout == alone.rollout
            for array, vector_LD in alone.vectors_LD.items():
                np.testing.assert_allclose(other.vectors_LD[array], vector_LD, rtol=1e-4, atol=1e-4)


def test_only_the_asked_layers_and_poolings_come_back_in_their_order(family_directory):
    directory = family_directory("llama")
    requests = requests_of(6)
    (whole,), (part,) = (
        TransformersEngine(engine_settings(directory, layers=layers, poolings=poolings)).generate(requests[1:2])
        for layers, poolings in ((range(N_LAYERS), POOLINGS), ((1, 3), ("response_last", "response_mean")))
    )
    assert list(part.vectors_LD) == [("resid_post", "response_last"), ("resid_post", "response_mean")]
    for array, vector_LD in part.vectors_LD.items():
        np.testing.assert_allclose(vector_LD, whole.vectors_LD[array][[1, 3]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_nan_weight_fails_the_call_and_names_the_layer_where_it_is(family_directory, tmp_path: Path, pooling: str):
    directory = tmp_path / "broken"
    shutil.copytree(family_directory("llama"), directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][5, 7] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    engine = TransformersEngine(engine_settings(directory, layers=range(N_LAYERS), poolings=[pooling]))
    with pytest.raises(UnitError, match="layer 2") as caught:
        engine.generate(requests_of(3))
    assert caught.value.code == "not_finite"


class _Decoder(nn.Module):
    """Two blocks that add 1 each; the second can be left out, as a wrong hook point would be."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, resid_BTD: torch.Tensor, *, num_blocks: int = 2) -> torch.Tensor:
        for block in list(self.layers)[:num_blocks]:
            resid_BTD = block(resid_BTD + 1)
        return resid_BTD


def test_the_number_that_is_not_finite_is_found_in_a_row_still_running_and_ignored_in_one_that_ended():
    model = _Decoder()
    prompt_BTD = torch.zeros(2, 3, 4)
    for bad_row, fails in ((0, False), (1, True)):
        with PooledCapture(list(model.layers), [0, 1], ["response_mean"]) as capture:
            capture.begin(torch.ones(2, 3, dtype=torch.bool), 4)
            model(prompt_BTD)
            step_BTD = torch.zeros(2, 1, 4)
            step_BTD[bad_row] = torch.inf
            capture.feed(torch.tensor([0, 1]), torch.tensor([False, True]))
            model(step_BTD)
            if fails:
                with pytest.raises(UnitError, match="layer 0"):
                    capture.finish()
            else:
                mean_BLD = capture.finish()["response_mean"]
                assert torch.isnan(mean_BLD[0]).all()
                assert mean_BLD[1].tolist() == [[1.0] * 4, [2.0] * 4]


def test_padding_that_is_not_finite_does_not_reach_a_prompt():
    model = _Decoder()
    prompt_BTD = torch.zeros(2, 3, 4)
    prompt_BTD[0, 0] = torch.inf
    mask_BT = torch.tensor([[False, True, True], [True, True, True]])
    with PooledCapture(list(model.layers), [0, 1], ["prompt_mean", "prompt_last"]) as capture:
        capture.begin(mask_BT, 4)
        model(prompt_BTD)
        pooled = capture.finish()
    for pooled_BLD in pooled.values():
        assert pooled_BLD[0].tolist() == [[1.0] * 4, [2.0] * 4]


def test_a_layer_that_did_not_run_in_some_pass_is_named():
    model = _Decoder()
    with PooledCapture(list(model.layers), [0, 1], ["response_mean"]) as capture:
        capture.begin(torch.ones(1, 2, dtype=torch.bool), 4)
        model(torch.zeros(1, 2, 4))
        capture.feed(torch.tensor([0]), torch.tensor([True]))
        model(torch.zeros(1, 1, 4), num_blocks=1)
        with pytest.raises(UnitError, match="layer 1 was seen in 1 of 2 forward passes") as caught:
            capture.finish()
    assert caught.value.code == "hook_not_fired"


def test_a_pass_after_the_batch_is_not_captured():
    model = _Decoder()
    with PooledCapture(list(model.layers), [0, 1], ["prompt_mean"]) as capture:
        capture.begin(torch.ones(1, 2, dtype=torch.bool), 4)
        model(torch.zeros(1, 2, 4))
    model(torch.full((1, 2, 4), 100.0))
    assert capture.finish()["prompt_mean"].tolist() == [[[1.0] * 4, [2.0] * 4]]


def test_the_blocks_are_told_from_a_list_of_experts_of_the_same_length():
    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))

    model = nn.Module()
    model.layers = nn.ModuleList(Mixture() for _ in range(3))
    assert find_blocks(model, 3) == list(model.layers)


@pytest.mark.parametrize("num_lists", [0, 2])
def test_blocks_that_cannot_be_told_are_refused(num_lists: int):
    model = nn.Module()
    for index in range(num_lists):
        model.add_module(f"stack{index}", nn.ModuleList(nn.Linear(2, 2) for _ in range(3)))
    with pytest.raises(InputError, match=f"{num_lists} lists of 3 modules") as caught:
        find_blocks(model, 3)
    assert caught.value.field == "model.source"
