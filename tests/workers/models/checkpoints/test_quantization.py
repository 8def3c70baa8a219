"""Quantised checkpoints: those that are restored to plain weights, with their true sizes, and refused ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.specs.spec_parts import ModelSpec
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.models.model_files import read_facts
from persona_atlas.workers.models.model_sketch import sketch_model
from safetensors.torch import load_file, save_file

from fakes import small_plan
from quantised_models import FORMATS, save_quantised
from requests_of import engine_settings, generate, requests_of
from tiny_families import N_LAYERS, save_tiny_family
from vllm_families import save_vllm_family

BLOCK = 16


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(tmp_path_factory.mktemp("plain"), "qwen3")


def declare(directory: Path, **more: Any) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | more))


def change(directory: Path, replaced: Callable[[str, torch.Tensor], dict[str, torch.Tensor]]) -> None:
    """Replace the weights of projections."""
    changed: dict[str, torch.Tensor] = {}
    for key, value in load_file(directory / "model.safetensors").items():
        changed |= replaced(key, value) if key.endswith("_proj.weight") else {key: value}
    save_file(changed, directory / "model.safetensors", metadata={"format": "pt"})


def eighth(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
    """Quantise a weight to 8-bit floats in blocks; its largest value of a block is kept exactly."""
    rows, columns = value.shape
    blocks = value.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)) / 448
    packed = (blocks / scales[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
    return {key: packed, f"{key}_scale_inv": scales}


@pytest.fixture
def model(plain: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain, tmp_path / "model"))


def test_8_bit_floats_are_counted_as_parameters_and_restored(model: Path, plain: Path):
    change(model, eighth)
    restored = dict(load_file(model / "model.safetensors"))
    quantization = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
    declare(model, quantization_config=quantization, dtype="bfloat16")
    facts, expected = read_facts(model), read_facts(plain)
    assert (facts.num_parameters, facts.dtype) == (expected.num_parameters, "bfloat16")
    engine = BuiltinEngine(engine_settings(model, layers=range(N_LAYERS)))
    assert {parameter.dtype for parameter in engine.loaded.model.parameters()} == {torch.float32}
    for key, value in engine.loaded.model.state_dict().items():
        if not key.endswith("_proj.weight"):
            continue
        scales = restored[f"{key}_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        assert torch.allclose(value, restored[key].float() * scales, rtol=1e-2)
    assert len(generate(engine, requests_of(3))) == 3


def test_a_model_in_mxfp4_is_counted_by_its_configuration(model: Path, plain: Path):
    def halved(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {f"{key}_blocks": torch.zeros(value.numel() // 2, dtype=torch.uint8), f"{key}_scales": torch.zeros(1)}

    change(model, halved)
    declare(model, quantization_config={"quant_method": "mxfp4"}, dtype="bfloat16")
    facts = read_facts(model)
    assert (facts.num_parameters, facts.dtype) == (read_facts(plain).num_parameters, "bfloat16")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes in 4 bits"),
    ({"load_in_8bit": True}, "bitsandbytes in 8 bits"),
    ({"quant_method": "hqq", "bits": 4, "group_size": 128}, "hqq in 4 bits"),
    ({"group_size": 64, "bits": 4}, "mlx in 4 bits"),
    ({"quant_method": "of_tomorrow"}, "of_tomorrow"),
]


@pytest.mark.parametrize(("quantization", "words"), REFUSED, ids=lambda part: part if isinstance(part, str) else "")
def test_a_quantisation_that_cannot_be_run_is_refused_when_a_job_is_planned(
    model: Path, quantization: dict[str, Any], words: str
):
    for section in ("quantization_config", "quantization"):
        declare(model, **{section: quantization})
        with pytest.raises(InputError) as caught:
            sketch_model(ModelSpec(source=str(model)), print)
        assert f"quantised with {words}" in caught.value.message
        assert (caught.value.code, caught.value.field) == ("quantised", "model.source")
        assert "before quantisation" in str(caught.value.hint)
        declare(model, **{section: None})
    assert read_facts(model).num_parameters


@pytest.mark.parametrize("layout", sorted(FORMATS))
def test_weights_that_vllm_reads_are_counted_as_they_lie_there_and_the_built_in_engine_refuses_them(
    tmp_path: Path, layout: str
):
    twin = save_vllm_family(tmp_path / "twin", "llama")
    directory = save_quantised(twin, tmp_path / layout, layout)
    facts, other = read_facts(directory), read_facts(twin)
    assert facts.fingerprint != other.fingerprint
    assert (facts.num_parameters, facts.dtype) == (other.num_parameters, "bfloat16")
    assert facts.quantization == FORMATS[layout][1]["quant_method"]
    tensors = load_file(directory / "model.safetensors").values()
    assert facts.quantized_bytes == sum(tensor.nbytes for tensor in tensors)
    assert other.quantized_bytes == 0
    planned = small_plan(facts=replace(facts, max_context=4096))
    assert estimate(planned, "vllm").weight_bytes == facts.quantized_bytes < estimate(planned).weight_bytes
    with pytest.raises(InputError, match=f"quantised with {facts.quantization}") as caught:
        BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS)))
    assert caught.value.code == "quantised"


@pytest.mark.parametrize("name", ["weight", "qweight", "weight_packed"])
def test_packed_words_without_a_declaration_are_no_parameters(model: Path, name: str):
    def packed(key: str, value: torch.Tensor) -> dict[str, torch.Tensor]:
        return {key.removesuffix("weight") + name: torch.zeros(value.numel() // 8, dtype=torch.int32)}

    change(model, packed)
    with pytest.raises(InputError, match=r"the weights are packed.*of type I32") as caught:
        read_facts(model)
    assert caught.value.code == "quantised"


def test_masks_and_positions_of_old_checkpoints_are_no_parameters(model: Path, plain: Path):
    tensors = load_file(model / "model.safetensors")
    mask = torch.ones(64, 64, dtype=torch.uint8)
    tensors |= {"model.layers.0.attention.bias": mask, "model.position_ids": torch.arange(100)}
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert read_facts(model).num_parameters == read_facts(plain).num_parameters
