"""``plan --check-model``: what is told of a model without its weights, and what is refused there and not in the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from persona_atlas.cluster.cli import cli
from persona_atlas.jobs.errors import InputError

from hub_server import running_hub
from tiny_models import CHAT_TEMPLATE, save_tokenizer

EXAMPLES = Path(__file__).parents[3] / "examples"
FEW = ("--set", "personas.roles.names=[pirate]", "--set", "personas.traits.names=[]")


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path):
    """A hub without a repository, and a cache without a model."""
    with running_hub(tmp_path / "hub-cache") as hub:
        yield hub


def invoke(spec: Path, *options: str) -> Any:
    arguments = ["plan", str(spec), *FEW, "--check-model", *options]
    return CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)


def checked(spec: Path, *options: str) -> dict[str, Any]:
    return json.loads(invoke(spec, *options, "--json").stdout)["model_check"]


@pytest.mark.parametrize(
    ("example", "model_class", "n_layers", "implementation", "sizes"),
    [
        ("llama-3.3-70b.yaml", "LlamaForCausalLM", 80, "vllm", [1, 2, 4, 8, 16, 32, 64]),
        ("qwen-3-32b.yaml", "Qwen3ForCausalLM", 64, "vllm", [1, 2, 4, 8, 16, 32, 64]),
        ("gemma-2-27b.yaml", "Gemma2ForCausalLM", 46, "transformers", [1, 2, 4, 8, 16, 32]),
    ],
)
def test_the_three_models_are_checked_from_their_configurations_alone(
    example: str, model_class: str, n_layers: int, implementation: str, sizes: list[int]
):
    found = checked(EXAMPLES / example)
    assert (found["model"]["model_class"], found["model"]["n_layers"]) == (model_class, n_layers)
    assert "resid_post" in found["model"]["hook_points"]
    assert (found["vllm"], found["tensor_parallel_sizes"]) == (implementation, sizes)
    assert found["pipelines"] is (implementation == "vllm")
    # Without a tokenizer a word counts as a token.
    assert (found["chat"], found["tokens_are_counted"]) == (None, False)
    assert found["longest_prompt_tokens"] > 10
    text = invoke(EXAMPLES / example).stdout
    assert model_class in text
    assert "tokenizer is not on this machine" in text


@pytest.fixture
def tiny_spec(tmp_path: Path, tiny_model_directory: Path) -> Path:
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps({"model": {"source": str(tiny_model_directory)}, "store": {"url": "s3://b/x"}}))
    return path


def test_with_a_tokenizer_at_hand_a_prompt_is_rendered_and_measured(tiny_spec: Path):
    found = checked(tiny_spec)
    assert found["tokens_are_counted"] is True
    assert found["chat"]["has_system_role"] is True
    assert "You are a pirate." in found["chat"]["prompt"]
    assert (found["chat"]["opens_reasoning"], found["chat"]["leaves_channel"]) == (None, None)
    assert found["chat"]["ends_with"] == "<|end|>"
    assert "Who are you?" in invoke(tiny_spec).stdout
    assert "model_check" not in json.loads(
        CliRunner().invoke(cli, ["plan", str(tiny_spec), *FEW, "--json"], standalone_mode=False).stdout
    )


def test_a_response_for_which_the_context_has_no_room_after_the_longest_prompt_is_refused(tiny_spec: Path):
    longest, context = (checked(tiny_spec)[name] for name in ("longest_prompt_tokens", "max_context"))
    checked(tiny_spec, "--set", f"sampling.max_new_tokens={context - longest}")
    with pytest.raises(InputError) as caught:
        invoke(tiny_spec, "--set", f"sampling.max_new_tokens={context - longest + 1}")
    assert (caught.value.code, caught.value.field) == ("beyond_context", "sampling.max_new_tokens")


def test_a_tokenizer_beside_a_configuration_and_an_index_is_enough_for_prompts(tmp_path: Path):
    """A template without a system role, as Gemma 2's: the system text is in front of the user's message."""
    model = tmp_path / "gemma"
    model.mkdir()
    no_system = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHAT_TEMPLATE
    )
    save_tokenizer(model, no_system)
    from persona_atlas.jobs.sizing.known_models import known_configurations, known_models

    config = known_configurations()["google/gemma-2-27b-it"] | {"architectures": ["Gemma2ForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    total = 2 * known_models()["google/gemma-2-27b-it"].num_parameters
    index = {"metadata": {"total_size": total}, "weight_map": {"x": "model-00001-of-00012.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    found = checked(EXAMPLES / "gemma-2-27b.yaml", "--set", f"model.source={model}")
    assert found["chat"]["has_system_role"] is False
    assert "You are a pirate.\n\nWho are you?" in found["chat"]["prompt"]
    assert found["model"]["n_layers"] == 46
