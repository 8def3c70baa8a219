"""A reader that loads weights layer by layer captures, to the last bit, what an engine that holds them captures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.interventions import AddVector, Cap, Direction, Intervention
from persona_atlas.jobs.specs.spec_parts import CanarySpec
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.streaming.reader import StreamedReader
from persona_atlas.workers.builtin.streaming.skeleton import open_skeleton
from persona_atlas.workers.engine import CapturedText, EngineSettings, TokenisedText
from transformers import LlamaConfig, LlamaForCausalLM

from captured_texts import assert_same, rollout_of, texts
from other_families import ALONE_FAMILIES, LONGROPE_BORDER, LONGROPE_FAMILIES
from plain_forward import ALL_POOLINGS, POINTS
from requests_of import engine_settings
from tiny_families import D_MODEL, FAMILIES, N_LAYERS, SHAPE, save_tiny_family, save_tiny_model

_EVERY: dict[str, Any] = {
    "layers": range(N_LAYERS),
    "hook_points": POINTS,
    "poolings": ALL_POOLINGS,
    "token_layers": (1, N_LAYERS - 1),
    "batch_tokens": 150,
}
"""Everything that can be captured, in several walks."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(tmp_path_factory.mktemp("llama"), "llama")


def read_by(settings: EngineSettings, asked: Sequence[TokenisedText]) -> list[CapturedText]:
    reader = StreamedReader(settings)
    try:
        return reader.capture(asked)
    finally:
        reader.close()


@pytest.mark.parametrize("family", [*sorted(FAMILIES), "qwen2_5_vl"])
def test_every_hook_point_and_pooling_is_that_of_the_resident_engine_in_every_family(tmp_path: Path, family: str):
    settings = engine_settings(save_tiny_family(tmp_path, family), **_EVERY)
    assert_same(read_by(settings, texts()), BuiltinEngine(settings).capture(texts()))


@pytest.mark.parametrize("family", [*sorted(FAMILIES), "qwen2_5_vl"])
def test_layers_above_the_only_captured_one_need_not_be_of_its_kind(tmp_path: Path, family: str):
    lowest: dict[str, Any] = _EVERY | {"layers": (0,), "token_layers": (0,)}
    settings = engine_settings(save_tiny_family(tmp_path, family), **lowest)
    assert_same(read_by(settings, texts(2)), BuiltinEngine(settings).capture(texts(2)))


def test_layers_above_the_captured_ones_may_be_larger(tmp_path: Path):
    config = FAMILIES["qwen3_moe"]()
    config.mlp_only_layers = [0, 1]
    edits = Intervention((AddVector(3, Direction.of([1.0] * D_MODEL), 0.7),))
    settings = engine_settings(save_tiny_model(tmp_path, config), layers=(0,), batch_tokens=150)
    asked = [*texts(2), *texts(2, edits)]
    assert_same(read_by(settings, asked), BuiltinEngine(settings).capture(asked))


@pytest.mark.parametrize("family", ["bloom", "mamba", "lfm2", "phi3"])
def test_texts_that_must_not_share_a_pass_are_read_alone(tmp_path: Path, family: str):
    # A family with one layer after another of two kinds, and one where only texts of more than 60 tokens are alone.
    directory = save_tiny_model(tmp_path, (ALONE_FAMILIES | LONGROPE_FAMILIES)[family]())
    settings = engine_settings(directory, layers=range(N_LAYERS), batch_tokens=150)
    assert any(len(text.token_ids) > LONGROPE_BORDER for text in texts())
    assert_same(read_by(settings, texts()), BuiltinEngine(settings).capture(texts()))


def test_interventions_edit_a_walk_as_they_edit_a_pass(llama: Path):
    rng = np.random.default_rng(0)
    along = [Direction.of(rng.normal(size=D_MODEL).tolist()) for _ in range(2)]
    # The second one edits a layer above the captured ones.
    some = Intervention((AddVector(1, along[0], 0.7), Cap(1, along[1], 0.1)))
    other = Intervention((AddVector(3, along[1], 2.0, positions="response"),))
    asked = [*texts(3, some), *texts(3), *texts(2, other)]
    settings = engine_settings(llama, layers=(0, 1, 2), batch_tokens=150)
    expected = BuiltinEngine(settings).capture(asked)
    assert any(record for text in expected for record in text.edits)
    assert_same(read_by(settings, asked), expected)


def test_in_bfloat16_and_of_a_checkpoint_in_several_files(tmp_path: Path, llama: Path):
    LlamaForCausalLM.from_pretrained(llama, dtype=torch.bfloat16).save_pretrained(tmp_path, max_shard_size="30KB")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (llama / name).is_file():
            (tmp_path / name).write_bytes((llama / name).read_bytes())
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    for dtype in ("bfloat16", "float32"):
        settings = engine_settings(tmp_path, layers=range(N_LAYERS), batch_tokens=150, dtype=dtype)
        assert_same(read_by(settings, texts()), BuiltinEngine(settings).capture(texts()))


def test_the_canary_is_a_plain_pass_whose_layers_are_loaded_as_they_are_called(llama: Path):
    settings = engine_settings(llama, **_EVERY)
    asked = texts()
    reader = StreamedReader(settings)
    first, second = [rollout_of(text, got) for text, got in zip(asked, reader.capture(asked), strict=True)][2:4]
    before = reader.stream.loads.layers
    canary, mixed = reader.canary(first), reader.canary(replace(first, vectors_LD=second.vectors_LD))
    reader.close()
    assert canary is not None
    assert mixed is not None
    assert max(canary.relative_error_L) < 1e-4
    assert min(mixed.relative_error_L) > reader.canary_limit
    # And one that was being loaded ahead when the texts had been read.
    assert reader.stream.loads.layers - before <= 2 * N_LAYERS + 1


def test_rollouts_that_the_rule_chooses_are_recomputed_while_they_are_read(llama: Path):
    along = Direction.of(np.random.default_rng(0).normal(size=D_MODEL).tolist())
    edits = Intervention((AddVector(1, along, 0.7, positions="response"),))
    asked = [replace(text, draws=(0.9, 0.2)) for text in [*texts(3), *texts(3, edits)]]
    reader = StreamedReader(engine_settings(llama, **_EVERY), rule=CanarySpec(one_in=4))
    rows = [
        replace(rollout_of(text, got), intervention=text.intervention)
        for text, got in zip(asked, reader.capture(asked), strict=True)
    ]
    before = reader.stream.loads.layers
    found = [reader.canary(row) for row in rows]
    # The next layer may have been on its way.
    assert reader.stream.loads.layers - before <= 1
    # Asked for again, they are plain passes of the model: the same numbers, which take loading all layers.
    again = [reader.canary(row) for row in rows]
    assert reader.stream.loads.layers - before > N_LAYERS
    reader.capture(asked)
    mixed = reader.canary(replace(rows[1], vectors_LD=rows[2].vectors_LD))
    reader.close()
    for one, other in zip(found, again, strict=True):
        assert one is not None
        assert other is not None
        assert max(one.relative_error_L) < 1e-4
        np.testing.assert_allclose(one.relative_error_L, other.relative_error_L, atol=1e-6)
    assert mixed is not None
    assert min(mixed.relative_error_L) > reader.canary_limit


def test_weights_are_loaded_once_a_walk_and_two_layers_are_held(llama: Path):
    settings = engine_settings(llama, layers=range(N_LAYERS), batch_tokens=150)
    reader = StreamedReader(settings)
    model: Any = reader.loaded.model
    resident = BuiltinEngine(settings).model
    bytes_of = [sum(p.nbytes for p in layer.parameters()) for layer in resident.model.layers]
    # Embeddings, final norm and two layers; no LM head.
    outside = resident.model.embed_tokens.weight.nbytes + resident.model.norm.weight.nbytes
    assert outside + 2 * bytes_of[0] <= reader.weight_bytes <= outside + 2 * bytes_of[0] + 4096
    asked = texts(8)
    tokens = sum(len(text.token_ids) for text in asked)
    before = reader.stream.loads.layers
    reader.capture(asked)
    walks = round(tokens / 150)
    loads = reader.stream.loads.layers - before
    held = [layer for layer in model.model.layers if not any(p.is_meta for p in layer.parameters())]
    reader.close()
    assert len(held) == 1
    assert abs(loads / N_LAYERS - walks) <= 1
    assert not reader.loaded.sharing.reason


def test_how_many_tokens_are_walked_is_measured_where_nobody_says_it(llama: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO")
    reader = StreamedReader(replace(engine_settings(llama, layers=[1]), batch_tokens=None))
    reader.close()
    assert reader.tokens_per_capture >= 4096
    assert f"{reader.tokens_per_capture:,} tokens are read at a time" in caplog.text


def test_a_model_that_changes_the_stream_between_layers_is_refused_by_name(
    llama: Path, monkeypatch: pytest.MonkeyPatch
):
    from transformers.modeling_outputs import BaseModelOutputWithPast
    from transformers.models.llama import modeling_llama

    def forward(self: Any, input_ids: Any = None, **named: Any) -> Any:
        resid = self.embed_tokens(input_ids)
        positions = torch.arange(resid.shape[1])[None]
        rotary = self.rotary_emb(resid, position_ids=positions)
        for layer in self.layers:
            resid = 2 * layer(resid, position_embeddings=rotary, attention_mask=None)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(resid))

    monkeypatch.setattr(modeling_llama.LlamaModel, "forward", forward)
    with pytest.raises(InputError, match="LlamaForCausalLM changes the stream between layers 0 and 1") as caught:
        StreamedReader(engine_settings(llama, layers=range(N_LAYERS)))
    assert (caught.value.code, caught.value.field) == ("not_streamed", "placement.weights")


def test_adapters_and_quantised_weights_are_refused_by_name(llama: Path, tmp_path: Path):
    for path in llama.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "adapter").mkdir()
    with pytest.raises(InputError, match="an adapter is merged") as caught:
        open_skeleton(tmp_path, "float32", "cpu")
    assert "resident" in str(caught.value.hint)
    (tmp_path / "adapter").rmdir()
    (tmp_path / "config.json").unlink()
    text = (llama / "config.json").read_text().rstrip().removesuffix("}")
    (tmp_path / "config.json").write_text(text + ', "quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(InputError, match="quantised with fp8"):
        open_skeleton(tmp_path, "float32", "cpu")


def test_weights_that_lack_a_tensor_are_refused(llama: Path, tmp_path: Path):
    for path in llama.iterdir():
        (tmp_path / path.name).symlink_to(path)
    less: dict[str, Any] = SHAPE | {"num_hidden_layers": 3}
    LlamaForCausalLM(LlamaConfig(**less)).save_pretrained(tmp_path / "less")
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "less" / "model.safetensors")
    with pytest.raises(InputError, match=r"lack model\.layers\.3"):
        open_skeleton(tmp_path, "float32", "cpu")
