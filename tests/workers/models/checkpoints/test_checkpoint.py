"""What cannot be run is refused from its small files, when a job is planned, in words that say what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec_parts import ModelSpec
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.loaded_model import load_model
from persona_atlas.workers.models.model_files import find_model, read_facts
from persona_atlas.workers.models.model_sketch import sketch_model
from safetensors.torch import load_file, save_file

from hub_server import running_hub
from plain_forward import PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of
from tiny_families import N_LAYERS, WITH_IMAGES, save_tiny_family


@pytest.fixture
def model(tiny_model_directory: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may change."""
    return Path(shutil.copytree(tiny_model_directory, tmp_path / "model"))


def declare(**more: Any) -> Callable[[Path], None]:
    """Change the configuration; a key with None is taken out."""

    def change(model: Path) -> None:
        config = json.loads((model / "config.json").read_text()) | more
        kept = {key: value for key, value in config.items() if value is not None}
        (model / "config.json").write_text(json.dumps(kept))

    return change


def other(kind: str, *architectures: str, **more: Any) -> Callable[[Path], None]:
    """Put the configuration of another kind of model in place."""

    def change(model: Path) -> None:
        made = {"model_type": kind, "architectures": list(architectures), **more}
        (model / "config.json").write_text(json.dumps(made))

    return change


def delete(*names: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for name in names:
            (model / name).unlink(missing_ok=True)

    return change


def diffusion(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "tokenizer").mkdir()
    (model / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def gguf_alone(model: Path) -> None:
    (model / "model.safetensors").rename(model / "model.gguf")


def makers_form(model: Path) -> None:
    (model / "config.json").unlink()
    (model / "model.safetensors").rename(model / "consolidated.safetensors")
    (model / "params.json").write_text("{}")


def sentence_encoder(model: Path) -> None:
    (model / "modules.json").write_text("[]")
    other("bert", "BertModel")(model)


ENCODER_DECODER = "is an encoder-decoder"
ENCODER = "is an encoder, which fills gaps"
NO_HEAD = "has no head that predicts the next token"
SIZE = "must be a whole number above 0"
REFUSED: list[tuple[Callable[[Path], None], str, str]] = [
    (other("t5", "T5ForConditionalGeneration"), ENCODER_DECODER, "unknown_model"),
    (other("bart", "BartForConditionalGeneration"), ENCODER_DECODER, "unknown_model"),
    (other("bert", "BertForMaskedLM"), ENCODER, "unknown_model"),
    (other("roberta"), ENCODER, "unknown_model"),
    (other("deberta-v2", "DebertaV2ForMaskedLM"), ENCODER, "unknown_model"),
    (sentence_encoder, ENCODER, "unknown_model"),
    (other("vit", "ViTForImageClassification"), "is no language model", "unknown_model"),
    (other("clip", "CLIPModel"), "is no language model", "unknown_model"),
    (other("whisper", "WhisperForConditionalGeneration"), ENCODER_DECODER, "unknown_model"),
    (declare(architectures=["LlamaForSequenceClassification"]), NO_HEAD, "unknown_model"),
    (declare(architectures=["LlamaForTokenClassification"]), NO_HEAD, "unknown_model"),
    (declare(architectures=["LlamaForRewardModel"]), NO_HEAD, "unknown_model"),
    (declare(architectures=["LlamaModel"]), NO_HEAD, "unknown_model"),
    (other("gemma3_text", "Gemma3ForCausalLM", use_bidirectional_attention=True), "later tokens too", "unknown_model"),
    (declare(model_type="of_tomorrow"), "has no such model", "unknown_model"),
    (declare(num_hidden_layers=0), f"num_hidden_layers {SIZE}, but is 0", "unknown_model"),
    (declare(hidden_size=float("nan")), "config.json: ", "unknown_model"),
    (declare(hidden_size=float("inf")), "config.json: ", "unknown_model"),
    (declare(num_attention_heads=0), "config.json: ", "unknown_model"),
    (declare(num_key_value_heads=-2), f"num_key_value_heads {SIZE}, but is -2", "unknown_model"),
    (declare(max_position_embeddings=0), f"max_position_embeddings {SIZE}, but is 0", "unknown_model"),
    (diffusion, "model_index.json: it is a pipeline", "unknown_model"),
    (gguf_alone, "model.gguf is GGUF", "no_model"),
    (makers_form, "config.json: missing; params.json", "no_model"),
    (delete("config.json"), "config.json: missing", "no_model"),
    (delete("tokenizer.json", "tokenizer_config.json"), "tokenizer.json: missing", "no_model"),
    (delete("chat_template.jinja"), "has no chat template", "no_chat_template"),
]


@pytest.mark.parametrize(("change", "words", "code"), REFUSED)
def test_what_cannot_be_run_is_refused_when_a_job_is_planned(
    model: Path, change: Callable[[Path], None], words: str, code: str
):
    change(model)
    for find in (sketch_model, find_model):
        with pytest.raises(InputError) as caught:
            find(ModelSpec(source=str(model)), print)
        assert words in caught.value.message
        assert (caught.value.code, caught.value.field) == (code, "model.source")
        assert caught.value.hint


def test_a_model_that_is_refused_costs_no_download(model: Path, tmp_path: Path):
    declare(architectures=["LlamaForSequenceClassification"])(model)
    with running_hub(tmp_path / "hub-cache") as hub:
        hub.repositories["maker/reward"] = model
        for find in (sketch_model, find_model):
            with pytest.raises(InputError, match=NO_HEAD):
                find(ModelSpec(source="maker/reward"), print)
        assert "model.safetensors" not in hub.fetched


def test_a_configuration_of_a_newer_transformers_names_both_versions(model: Path):
    declare(model_type="of_tomorrow", transformers_version="99.1.0")(model)
    with pytest.raises(InputError, match="has no such model") as caught:
        read_facts(model)
    assert transformers.__version__ in caught.value.message
    assert caught.value.hint == "It was saved by transformers 99.1.0; upgrade transformers."


def test_a_gguf_file_as_a_source_is_refused_with_the_way_to_read_it(model: Path):
    gguf_alone(model)
    with pytest.raises(InputError, match="is a file, and a model is a directory") as caught:
        find_model(ModelSpec(source=str(model / "model.gguf")), print)
    assert "package://" in str(caught.value.hint)


@pytest.mark.parametrize("name", ["LLaMAForCausalLM", "LlamaForCausalLM"])
def test_a_language_model_s_head_may_have_an_older_name(model: Path, name: str):
    declare(architectures=[name])(model)
    assert read_facts(model).n_layers == 3
    declare(architectures=None)(model)
    assert read_facts(model).n_layers == 3


def test_weights_that_lack_a_tensor_are_not_filled_with_random_numbers(model: Path):
    tensors = load_file(model / "model.safetensors")
    del tensors["model.layers.1.mlp.down_proj.weight"]
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"lack model\.layers\.1\.mlp\.down_proj\.weight that config\.json asks for"):
        load_model(engine_settings(model, layers=(0,)))


@pytest.mark.parametrize("family", sorted(WITH_IMAGES))
def test_of_a_model_that_also_takes_images_the_language_model_is_captured(tmp_path: Path, family: str):
    directory = save_tiny_family(tmp_path / "model", family)
    assert read_facts(directory).n_layers == N_LAYERS
    engine = BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS)))
    plain = PlainModel(directory)
    for row in generate(engine, requests_of(6)):
        states = plain.places(conversation_ids(row.rollout))
        expected = pool(states["resid_post"], row.rollout)
        for (_, pooling), got_LD in row.vectors_LD.items():
            if row.rollout.has_vector:
                assert relative_errors(got_LD, expected[pooling]).max() < 1e-4
