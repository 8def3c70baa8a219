from __future__ import annotations

from dataclasses import replace

import pytest
from persona_atlas.jobs.engines import (
    VLLM_ARCHITECTURES,
    choose_engine,
    possible_engines,
    require_vllm_model,
    vllm_architecture,
)
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.specs.spec_parts import PlacementSpec
from persona_atlas.jobs.vllm.parallelism import tensor_parallel_sizes

from fakes import FACTS

LLAMA = replace(FACTS, architectures=("LlamaForCausalLM",))
ADAPTED = replace(LLAMA, has_adapter=True)
GPTQ = replace(LLAMA, quantization="gptq", quantized_bytes=5_500, dtype="float16")
FP8, MXFP8 = (replace(LLAMA, quantization=name, quantized_bytes=10_500, dtype="bfloat16") for name in ("fp8", "mxfp8"))
FLOAT32 = {"model": {"source": "none", "dtype": "float32"}}
FALCON = replace(FACTS, architectures=("FalconForCausalLM",), family="falcon")


def spec_of(hook_points=("resid_post",), temperature=0.7, more=None, **placement) -> JobSpec:
    data = {"model": {"source": "none"}, "store": {"url": "unused"}, "capture": {"hook_points": list(hook_points)}}
    return JobSpec.model_validate(
        data | {"sampling": {"temperature": temperature}, "placement": placement} | (more or {})
    )


def chosen(facts=LLAMA, *, vllm_installed: bool = True, has_gpu: bool = True, **job):
    return choose_engine(spec_of(**job), facts, vllm_installed=vllm_installed, has_gpu=has_gpu)


def refusal(*args, **kwargs) -> InputError:
    with pytest.raises(InputError) as caught:
        chosen(*args, **kwargs)
    return caught.value


def test_auto_is_vllm_where_it_is_installed_on_gpus_and_captures_what_is_asked_for():
    assert chosen() == "vllm"
    assert chosen(vllm_installed=False) == "builtin"
    assert chosen(has_gpu=False) == "builtin"
    assert chosen(FALCON) == "builtin"
    assert chosen(ADAPTED) == "builtin"
    assert chosen(hook_points=("resid_post", "mlp_out")) == "builtin"
    assert chosen(more={"capture": {"before_intervention": True}}) == "builtin"
    assert chosen(more={"interventions": [{"ablate": "axis", "axis": "runs/mine", "layers": "middle"}]}) == "vllm"
    assert chosen(engine="builtin") == "builtin"


def test_vllm_that_is_asked_for_needs_no_gpu():
    assert chosen(engine="vllm", has_gpu=False, tensor_parallel=2) == "vllm"


@pytest.mark.parametrize(
    ("facts", "given", "code", "field", "words"),
    [
        (LLAMA, {"hook_points": ("attn_out",)}, "no_hook_point", "capture.hook_points", ("attn_out", "builtin")),
        (
            LLAMA,
            {"more": {"capture": {"before_intervention": True}}},
            "no_before_intervention",
            "capture.before_intervention",
            ("after its edits", "builtin"),
        ),
        (FALCON, {}, "no_vllm_model", "placement.engine", ("FalconForCausalLM", "Qwen3ForCausalLM", "builtin")),
        (ADAPTED, {}, "no_adapter", "model.adapter", ("adapter", "builtin")),
        (LLAMA, {"vllm_installed": False}, "no_vllm", "placement.engine", ("persona-atlas[vllm]",)),
        (FP8, {"has_gpu": False}, "quantised", "model.source", ("no kernels on CPUs", "fp8", "builtin")),
        (MXFP8, {}, "quantised", "model.source", ("does not read", "mxfp8", "builtin")),
        (
            GPTQ,
            {"more": {"model": {"source": "none", "dtype": "float32"}}},
            "quantised_dtype",
            "model.dtype",
            ("gptq",),
        ),
    ],
)
def test_what_vllm_cannot_run_is_refused_with_field_and_fix(facts, given, code, field, words):
    error = refusal(facts, engine="vllm", **given)
    assert (error.code, error.field, error.exit_status) == (code, field, 2)
    assert all(word in str(error) for word in words), error


def test_quantised_weights_go_to_the_engine_that_runs_them_or_are_refused_by_name():
    assert chosen(GPTQ) == chosen(GPTQ, engine="vllm", has_gpu=False) == chosen(FP8) == "vllm"
    assert chosen(FP8, has_gpu=False) == chosen(FP8, vllm_installed=False) == chosen(MXFP8) == "builtin"
    for given, reason in (
        ({"has_gpu": False}, "there is no GPU"),
        ({"vllm_installed": False}, "not installed"),
        ({"engine": "builtin"}, "placement.engine is builtin"),
        ({"hook_points": ("mlp_out",)}, "resid_post only"),
        ({"more": FLOAT32}, "bfloat16 or float16 only"),
    ):
        error = refusal(GPTQ, **given)
        assert (error.code, error.field) == ("quantised", "model.source")
        assert reason in error.message
        assert "quantised with gptq" in error.message
        assert "placement.engine=vllm" in str(error.hint)
    assert possible_engines(spec_of(), GPTQ) == ["vllm"]


@pytest.mark.parametrize("name", ["tensor_parallel", "pipeline_parallel"])
def test_several_devices_a_replica_are_refused_where_only_the_built_in_engine_is_left(name: str):
    assert "does not apply adapters" in str(refusal(ADAPTED, **{name: 2}))
    error = refusal(engine="builtin", **{name: 2})
    assert (error.code, error.field) == ("one_device", f"placement.{name}")
    assert "placement.engine=vllm" in str(error)
    for given, reason in (
        ({"vllm_installed": False}, "not installed"),
        ({"has_gpu": False}, "no GPU"),
        ({"hook_points": ("mlp_out",)}, "resid_post only"),
    ):
        error = refusal(**given, **{name: 2})
        assert error.code == "one_device"
        assert reason in str(error)


def test_architectures_are_told_by_name_or_else_by_family():
    assert vllm_architecture(replace(FACTS, family="qwen3")) is VLLM_ARCHITECTURES["Qwen3ForCausalLM"]
    reward = replace(FACTS, architectures=("LlamaForSequenceClassification",))
    assert vllm_architecture(reward) is None
    gemma = replace(FACTS, architectures=("Gemma2ForCausalLM",), family="gemma2")
    assert require_vllm_model(gemma).implementation == "transformers"
    assert require_vllm_model(LLAMA).implementation == "vllm"


def test_the_engine_is_no_part_of_a_run_s_identity_nor_of_its_record():
    from persona_atlas.jobs.specs.spec import make_spec

    data = {"model": {"source": "models/tiny"}, "store": {"url": "runs/mine"}}
    changed = {"engine": "vllm", "tensor_parallel": 2, "pipeline_parallel": 2}
    assert make_spec(data).digest == make_spec(data | {"placement": changed}).digest
    assert PlacementSpec(tensor_parallel=4, pipeline_parallel=2).gpus_per_replica == 8


@pytest.mark.parametrize(
    ("heads", "kv_heads", "width", "sizes"),
    [
        (9, 3, 1536, [1, 3]),
        (8, 8, 64, [1, 2, 4, 8]),
        (64, 8, 28672, [1, 2, 4, 8, 16, 32, 64]),
        (12, 4, 36, [1, 2, 4, 12]),
    ],
)
def test_a_tensor_parallel_size_divides_the_heads_and_the_mlps(heads: int, kv_heads: int, width: int, sizes: list[int]):
    facts = replace(LLAMA, num_attention_heads=heads, num_kv_heads=kv_heads, mlp_width=width)
    assert tensor_parallel_sizes(facts, 64) == sizes
    only = [size for size in sizes if kv_heads % size == 0]
    assert tensor_parallel_sizes(facts, 64, shares_kv_heads=False) == only
    for size in range(1, 65):
        if size in sizes:
            assert chosen(facts, engine="vllm", tensor_parallel=size) == "vllm"
        else:
            error = refusal(facts, engine="vllm", tensor_parallel=size)
            assert (error.code, error.field) == ("does_not_split", "placement.tensor_parallel")
            assert f"Sizes that do: {', '.join(map(str, sizes))}." in str(error)


@pytest.mark.parametrize("name", VLLM_ARCHITECTURES)
def test_a_pipeline_needs_a_class_that_hands_hidden_states_over_its_stages(name: str):
    facts = replace(LLAMA, architectures=(name,))
    if name in ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"):
        assert chosen(facts, pipeline_parallel=2) == "vllm"
        return
    for engine in ("vllm", "auto"):
        error = refusal(facts, engine=engine, pipeline_parallel=2)
        assert (error.code, error.field) == ("no_pipeline", "placement.pipeline_parallel")
        assert "LlamaForCausalLM" in str(error)


def test_more_pipeline_stages_than_layers_are_refused():
    assert chosen(engine="vllm", pipeline_parallel=4) == "vllm"
    assert refusal(engine="vllm", pipeline_parallel=5).field == "placement.pipeline_parallel"


def test_an_auto_job_may_run_on_either_engine_and_others_on_one():
    def possible(facts=LLAMA, **placement):
        return possible_engines(spec_of(**placement), facts)

    assert possible() == ["builtin", "vllm"]
    assert possible(device="cpu") == ["builtin"]
    assert possible(FALCON) == ["builtin"]
    assert possible(ADAPTED) == ["builtin"]
    assert possible(tensor_parallel=2) == ["vllm"]
    assert possible(engine="vllm", device="cpu") == ["vllm"]
    with pytest.raises(InputError):
        possible(FALCON, tensor_parallel=2)


def test_a_temperature_that_vllm_would_raise_is_refused_when_vllm_would_generate():
    assert chosen(temperature=0) == chosen(temperature=0.01) == "vllm"
    assert chosen(temperature=0.005) == "builtin"
    error = refusal(engine="vllm", temperature=0.005)
    assert (error.code, error.field) == ("low_temperature", "sampling.temperature")
    given = {"conversations": {"source": "talks.jsonl"}}
    assert chosen(engine="vllm", temperature=0.005, more=given) == "vllm", "nobody samples"
