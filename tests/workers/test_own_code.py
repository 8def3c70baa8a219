"""Code that a checkpoint brings along is never run, and nobody is asked whether to run it."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import persona_atlas
import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.poolings import DEFAULT_POOLING
from persona_atlas.jobs.specs.spec_parts import CaptureSpec, SamplingSpec
from persona_atlas.workers.builtin.loaded_model import load_model
from persona_atlas.workers.chat.spans import load_renderer
from persona_atlas.workers.engine import EngineSettings
from persona_atlas.workers.models.checkpoints.checkpoint import open_checkpoint

PACKAGE = Path(persona_atlas.__file__).parent
SIZES = {"num_hidden_layers": 2, "hidden_size": 8, "num_attention_heads": 2}
CODE = (
    "from pathlib import Path\nPath(__file__).with_name('CODE_WAS_RUN').touch()\nPath('CODE_WAS_RUN').touch()\n"
    "from transformers import LlamaConfig\n\n\nclass XConfig(LlamaConfig):\n    model_type = 'x'\n"
)


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of an architecture of its own; a test in which transformers asks a question fails."""
    folder = tmp_path / "model"
    folder.mkdir()
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoTokenizer": ["configuration_x.XConfig", None]}
    (folder / "config.json").write_text(json.dumps({"model_type": "x", "auto_map": auto_map, **SIZES}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (folder / "configuration_x.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))

    def asked(prompt: str = "") -> str:
        raise AssertionError(f"asked: {prompt}")

    monkeypatch.setattr("builtins.input", asked)
    return folder


def engine_settings(directory: Path) -> EngineSettings:
    return EngineSettings(
        directory=directory,
        dtype="float32",
        device="cpu",
        threads=1,
        batch_tokens=64,
        layers=(0,),
        sampling=SamplingSpec(),
        capture=CaptureSpec(poolings=[DEFAULT_POOLING]),
    )


@pytest.mark.parametrize(
    "load",
    [open_checkpoint, load_renderer, lambda directory: load_model(engine_settings(directory))],
    ids=["configuration", "tokenizer", "model"],
)
def test_a_checkpoint_that_needs_its_own_code_is_refused(
    checkpoint: Path, load: Callable[[Path], object], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(InputError, match="this project never runs a checkpoint's code") as caught:
        load(checkpoint)
    error = caught.value
    assert (error.code, error.field, error.exit_status) == ("custom_code", "model.source", 2)
    assert "an architecture that transformers has" in str(error.hint)
    assert "trust_remote_code" not in str(error)
    assert capsys.readouterr().out == ""
    assert not list(checkpoint.parent.rglob("CODE_WAS_RUN"))


def test_an_unknown_architecture_that_names_only_a_model_class_of_its_own_is_refused(checkpoint: Path):
    config = {"model_type": "x", "auto_map": {"AutoModelForCausalLM": "modeling_x.XModel"}, **SIZES}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        open_checkpoint(checkpoint)
    assert caught.value.code == "custom_code"
    del config["auto_map"]
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        open_checkpoint(checkpoint)
    assert caught.value.code == "unknown_model"


def test_code_of_its_own_is_ignored_where_transformers_has_the_architecture(
    checkpoint: Path, tiny_model_directory: Path
):
    whole = Path(shutil.copytree(tiny_model_directory, checkpoint.parent / "whole"))
    config = json.loads((whole / "config.json").read_text())
    auto_map = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "configuration_x.XModel"}
    (whole / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    (whole / "configuration_x.py").write_text(CODE)
    assert open_checkpoint(whole).config.num_hidden_layers == config["num_hidden_layers"]
    model, _ = load_model(engine_settings(whole))
    assert isinstance(model, torch.nn.Module)
    assert not list(checkpoint.parent.rglob("CODE_WAS_RUN"))


def loads_in(file: Path) -> list[ast.Call]:
    """Return the calls in a file that load a configuration, a tokenizer or a model."""
    calls = (node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))) if isinstance(node, ast.Call))
    names = ("from_pretrained", "from_config")
    return [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr in names]


def test_every_load_says_that_code_is_not_trusted():
    loading: set[str] = set()
    for folder in ("analysis", "benchmarks", "cluster", "jobs", "storage", "workers"):
        for file in sorted((PACKAGE / folder).rglob("*.py")):
            for call in loads_in(file):
                given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
                assert given.get("trust_remote_code") == "False", f"{file}:{call.lineno}"
                loading.add(file.name)
    assert {"architecture.py", "convert_gguf.py", "spans.py", "loaded_model.py"} <= loading
