"""Models are built from configurations alone: parameters, decoder layers and hook points, against real small models."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.sizing.known_models import known_configurations, known_models
from persona_atlas.jobs.specs.spec_parts import HookPoint
from persona_atlas.workers.models.model_check import check_model, config_of

from other_families import ALONE_FAMILIES, SHARING_FAMILIES
from tiny_families import FAMILIES

EVERY = get_args(HookPoint)


@pytest.mark.parametrize("name", sorted(known_configurations()))
def test_the_known_models_are_built_without_weights_and_have_the_parameters_of_the_table(name: str):
    facts = known_models()[name]
    found = check_model(config_of(known_configurations()[name]))
    assert (found.num_parameters, found.n_layers) == (facts.num_parameters, facts.n_layers)
    assert (found.model_class,) == facts.architectures
    assert found.hook_points == EVERY


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gemma2", "gemma3", "mistral"])
def test_what_is_counted_without_weights_is_what_the_model_has(family: str):
    from transformers import AutoModelForCausalLM

    config: Any = FAMILIES[family]()
    model: Any = AutoModelForCausalLM.from_config(config)
    found = check_model(config)
    assert found.num_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.n_layers == config.num_hidden_layers
    assert found.hook_points == EVERY


def test_inner_hook_points_are_told_only_of_families_that_have_them():
    assert check_model(ALONE_FAMILIES["gptj"]()).hook_points in (("resid_pre", "resid_post"), None)
    assert check_model(ALONE_FAMILIES["falcon"]()).hook_points == ("resid_pre", "resid_post")
    # Of these no narrow copy can be made or run.
    assert check_model(ALONE_FAMILIES["mamba2"]()).hook_points is None
    assert check_model(ALONE_FAMILIES["recurrent_gemma"]()).hook_points is None
    assert check_model(SHARING_FAMILIES["gpt_oss"]()).hook_points == EVERY


def test_sizes_that_do_not_go_together_are_refused():
    values = known_configurations()["Qwen/Qwen3-32B"] | {"num_attention_heads": 0}
    with pytest.raises(InputError) as caught:
        check_model(config_of(values))
    assert (caught.value.code, caught.value.field) == ("unknown_model", "model.source")


def test_a_check_leaves_the_random_numbers_of_the_process_as_they_were():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    check_model(FAMILIES["llama"]())
    assert torch.equal(torch.rand(3), expected)
