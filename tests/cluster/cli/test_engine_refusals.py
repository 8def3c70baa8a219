"""What vLLM cannot run is refused by ``plan``, ``plan --check-model``, ``cluster render`` and ``run`` alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.jobs.errors import InputError
from safetensors.torch import save_file

from tiny_families import save_tiny_family

COMMANDS = {
    "plan": ["plan"],
    "check": ["plan", "--check-model"],
    "render": ["cluster", "render", "--kind", "raycluster", "--spec"],
    "run": ["run"],
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERSONA_ATLAS_CACHE", str(tmp_path / "cache"))


def adapter_of(base: Path, directory: Path) -> Path:
    """Save the files of an adapter; its weights are read only when the model is loaded."""
    directory.mkdir()
    settings = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj"], "base_model_name_or_path": str(base)}
    (directory / "adapter_config.json").write_text(json.dumps(settings | {"task_type": "CAUSAL_LM"}))
    save_file({"lora_A": torch.zeros(2, 2)}, directory / "adapter_model.safetensors")
    return directory


def spec_of(folder: Path, model: dict[str, Any], **placement: Any) -> Path:
    roles = {"names": ["pirate"], "prompts": 1, "questions": 1}
    spec = {"model": model, "personas": {"roles": roles, "traits": {"names": []}}, "placement": placement}
    path = folder / "job.yaml"
    path.write_text(json.dumps(spec | {"sampling": {"max_new_tokens": 8}, "store": {"url": str(folder / "store")}}))
    return path


def invoke(command: str, spec: Path, *options: str) -> str:
    arguments = [*COMMANDS[command], str(spec), *options]
    return CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False).stdout


def refused(command: str, spec: Path) -> tuple[str, str | None]:
    with pytest.raises(InputError) as caught:
        invoke(command, spec)
    return caught.value.code, caught.value.field


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("engine", ["vllm", "auto"])
def test_a_pipeline_is_refused_where_the_model_s_class_hands_nothing_over(command: str, engine: str, tmp_path: Path):
    base = save_tiny_family(tmp_path / "base", "gemma2")
    device = "cuda" if engine == "auto" and command != "run" else "cpu"
    spec = spec_of(tmp_path, {"source": str(base)}, engine=engine, pipeline_parallel=2, device=device)
    # Without a GPU, an auto job is left to the built-in engine, which has one device.
    code = "one_device" if (engine, device) == ("auto", "cpu") else "no_pipeline"
    assert refused(command, spec) == (code, "placement.pipeline_parallel")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("is_source", [False, True], ids=["model.adapter", "model.source"])
def test_an_adapter_is_refused_before_a_model_is_loaded(command: str, is_source: bool, tmp_path: Path):
    base = save_tiny_family(tmp_path / "base", "qwen3")
    adapter = str(adapter_of(base, tmp_path / "lora"))
    model = {"source": adapter} if is_source else {"source": str(base), "adapter": adapter}
    assert refused(command, spec_of(tmp_path, model, engine="vllm")) == ("no_adapter", "model.adapter")


def test_auto_leaves_an_adapter_to_the_built_in_engine(tmp_path: Path):
    base = save_tiny_family(tmp_path / "base", "qwen3")
    spec = spec_of(tmp_path, {"source": str(adapter_of(base, tmp_path / "lora"))}, device="cuda")
    found = json.loads(invoke("check", spec, "--json"))
    assert found["engines"] == ["builtin"]
    assert (found["model_check"]["vllm"], found["model_check"]["tensor_parallel_sizes"]) == (None, [1])
    assert "no: it does not apply adapters" in invoke("check", spec)
    plain = spec_of(tmp_path, {"source": str(base)}, device="cuda")
    assert json.loads(invoke("plan", plain, "--json"))["engines"] == ["builtin", "vllm"]
