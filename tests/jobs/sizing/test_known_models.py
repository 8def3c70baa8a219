"""The table of known models against their published sizes.

Sources, per model: the architecture table of its technical report, its config.json on the Hugging Face hub, and
metadata.total_size of its model.safetensors.index.json there, which is the bytes of all weights.

- Llama 3.3 70B: "The Llama 3 Herd of Models" (arXiv 2407.21783), table 3: 80 layers, 8192, FFN 28672, 64 heads, 8
  key-value heads, vocabulary 128,000 and 256 control tokens; meta-llama/Llama-3.3-70B-Instruct.
- Qwen 3 32B: "Qwen3 Technical Report" (arXiv 2505.09388), table 1: 64 layers, 64 heads, 8 key-value heads, not tied;
  Qwen/Qwen3-32B.
- Gemma 2 27B: "Gemma 2" (arXiv 2408.00118), table 1: 46 layers, 4608, 32 heads, 16 key-value heads, head 128, tied;
  google/gemma-2-27b-it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from persona_atlas.jobs.engines import VLLM_MAX_NUM_BATCHED_TOKENS, possible_engines, vllm_architecture
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.sizing.devices import load_devices
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sizing.fit import fits, require_fit
from persona_atlas.jobs.sizing.known_models import known_configurations, known_models
from persona_atlas.jobs.sizing.pricing import price
from persona_atlas.jobs.sources.load import load_source
from persona_atlas.jobs.specs.spec import load_spec

from fakes import small_plan, small_spec

EXAMPLES = Path(__file__).parents[3] / "examples"


@dataclass(frozen=True)
class Published:
    """Published figures of a model; ``kv_bytes`` of one token in bfloat16: 2 x layers x key-value heads x head x 2."""

    example: str
    total_size: int
    kv_bytes: int
    middle: int
    middle_of_paper: int
    gpus: int
    replicas: int


PUBLISHED = {
    "meta-llama/Llama-3.3-70B-Instruct": Published(
        "llama-3.3-70b.yaml", 141_107_412_992, 2 * 80 * 8 * 128 * 2, middle=40, middle_of_paper=40, gpus=4, replicas=2
    ),
    "Qwen/Qwen3-32B": Published(
        "qwen-3-32b.yaml", 65_524_246_528, 2 * 64 * 8 * 128 * 2, middle=32, middle_of_paper=32, gpus=2, replicas=4
    ),
    "google/gemma-2-27b-it": Published(
        "gemma-2-27b.yaml", 54_454_256_640, 2 * 46 * 16 * 128 * 2, middle=23, middle_of_paper=22, gpus=2, replicas=4
    ),
}
MODELS = pytest.mark.parametrize("name", sorted(PUBLISHED))


def example_plan(name: str) -> Plan:
    spec = load_spec(EXAMPLES / PUBLISHED[name].example)
    assert spec.model.source == name
    return make_plan(spec, load_source(spec), known_models()[name])


@MODELS
def test_bytes_of_weights_and_of_a_token_s_keys_and_values_are_the_published_ones(name: str):
    plan = small_plan(small_spec(model={"source": name}, placement={"batch_tokens": 1000}), facts=known_models()[name])
    figures = estimate(plan)
    assert figures.weight_bytes == PUBLISHED[name].total_size
    assert figures.cache_bytes == 1000 * PUBLISHED[name].kv_bytes


@pytest.mark.parametrize("name", sorted(known_models()))
def test_facts_and_configuration_of_a_model_agree(name: str):
    facts, config = known_models()[name], known_configurations()[name]
    heads = config["num_attention_heads"], config["num_key_value_heads"]
    assert (facts.n_layers, facts.d_model) == (config["num_hidden_layers"], config["hidden_size"])
    assert (facts.num_attention_heads, facts.num_kv_heads) == heads
    assert (facts.mlp_width, facts.max_context) == (config["intermediate_size"], config["max_position_embeddings"])
    assert facts.kv_values_per_token == 2 * facts.n_layers * facts.num_kv_heads * config["head_dim"]
    assert facts.family == config["model_type"]
    assert vllm_architecture(facts) is not None


@MODELS
def test_the_example_of_a_model_is_the_full_set_and_fits_eight_gpus_of_80_gb(name: str):
    published, plan = PUBLISHED[name], example_plan(name)
    spec, table = plan.spec, load_devices()
    assert plan.num_rollouts == 907_200
    assert plan.layers == tuple(range(plan.facts.n_layers))
    assert published.middle_of_paper in plan.layers
    assert plan.facts.n_layers // 2 == published.middle
    assert (spec.sampling.temperature, spec.sampling.top_p, spec.sampling.max_new_tokens) == (0.7, 0.9, 512)
    assert (spec.placement.gpus_per_replica, spec.placement.replicas) == (published.gpus, published.replicas)
    assert published.gpus * published.replicas == 8
    assert possible_engines(spec, plan.facts) == ["vllm"]
    figures = estimate(plan, "vllm")
    for device in ("H100", "A100-80"):
        require_fit(plan, figures, table.only(device))
        found = price(plan, figures, device, table.devices[device], tensor_parallel=figures.tensor_parallel)
        assert (found.gpus, found.replicas) == (8, published.replicas)
        assert 40 < found.rows <= 256
        # Fewer GPUs a replica do not fit, or have room for fewer rollouts and take more GPU-hours.
        fewer = replace(figures, tensor_parallel=published.gpus // 2)
        if fits(fewer, table.devices[device], published.gpus // 2):
            half = price(plan, fewer, device, table.devices[device], tensor_parallel=published.gpus // 2)
            assert half.gpu_hours > found.gpu_hours


@MODELS
def test_vllm_needs_memory_for_its_slots_and_the_states_of_a_step_beside_weights_and_keys(name: str):
    plan = example_plan(name)
    figures, facts = estimate(plan, "vllm"), plan.facts
    assert figures.capture_bytes == (256 + 8) * facts.n_layers * facts.d_model * 4
    assert figures.step_bytes == VLLM_MAX_NUM_BATCHED_TOKENS * facts.n_layers * facts.d_model * 2
    both = example_plan(name)
    two = both.spec.replaced(capture={"poolings": ["response_mean", "prompt_last"]})
    doubled = estimate(make_plan(two, both.source, facts), "vllm")
    assert doubled.capture_bytes == 2 * figures.capture_bytes
