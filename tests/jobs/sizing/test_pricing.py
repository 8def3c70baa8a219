"""Time and money: a case done by hand, what must follow when something grows, and what the table may hold."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.model_facts import ModelFacts
from persona_atlas.jobs.plan import Plan, make_plan
from persona_atlas.jobs.sizing.devices import BUILTIN_DEVICES, Device, DeviceTable, load_devices
from persona_atlas.jobs.sizing.estimate import Estimate, estimate
from persona_atlas.jobs.sizing.known_models import known_models
from persona_atlas.jobs.sizing.pricing import Price, price
from persona_atlas.jobs.sizing.turn_cache import TurnCache
from persona_atlas.jobs.sources.load import load_source
from persona_atlas.jobs.specs.spec import JobSpec

from fakes import FACTS, small_plan, small_spec

LLAMA_70B = known_models()["meta-llama/Llama-3.3-70B-Instruct"]

DEVICE = Device(
    memory_gb=80,
    tflops=1000,
    float32_tflops=50,
    bandwidth_gb_s=2000,
    per_node=8,
    price_per_hour=2.0,
    efficiency=0.5,
    layer_us=100,
)


def priced(
    plan: Plan, device: Device = DEVICE, *, figures: Estimate | None = None, gpus: int | None = 1, size: int = 1
) -> Price:
    figures = estimate(plan) if figures is None else figures
    return price(plan, figures, "d", device, tensor_parallel=size, gpus=gpus)


def plan_of(questions: int = 4, facts: ModelFacts = FACTS, **parts: Any) -> Plan:
    roles = {"names": ["pirate"], "prompts": 5, "questions": questions}
    return small_plan(small_spec(personas={"roles": roles, "default": {"prompts": 0}}, **parts), facts=facts)


def test_a_case_done_by_hand():
    """20 rollouts, 10 at a time, of a 16-bit model of 1e9 parameters and 10 layers, 512 tokens each at most."""
    facts = replace(FACTS, num_parameters=10**9, n_layers=10, kv_values_per_token=1000, dtype="bfloat16")
    plan = plan_of(facts=facts)
    read_and_written = {"prompt_tokens": 2000, "canary_tokens": 500, "response_tokens": 20 * 512}
    figures = replace(estimate(plan), rows_per_batch=10, **read_and_written)
    found = priced(plan, figures=figures)
    # Moving: 2e9 bytes of weights, and 10 rows of 100 + 256 tokens of 1000 values of 2 bytes, at 1e12 bytes a second.
    assert found.step_s == pytest.approx((2e9 + 10 * 356 * 2000) / 1e12)
    assert found.limited_by == "bandwidth"
    # 1024 steps; and 2000 prompt tokens and 500 recomputed ones at 2e9 operations each, 5e14 a second.
    assert found.decode_hours == pytest.approx(1024 * found.step_s / 3600)
    assert found.prefill_hours == pytest.approx(2500 * 2e9 / 5e14 / 3600)
    assert found.gpu_hours == pytest.approx(found.decode_hours + found.prefill_hours)
    assert found.money == pytest.approx(2.0 * found.gpu_hours)
    assert found.days == pytest.approx(found.gpu_hours / 24)
    assert found.tokens_per_s == pytest.approx(10 / found.step_s)


def test_the_time_of_a_user_with_a_model_of_its_own_is_added():
    """Two conversations of three exchanges: the user's model of 2e9 parameters reads 500 tokens and writes 240."""
    drift = {"domains": ["coding"], "per_domain": 2, "exchanges": 3, "user": {"model": "other", "max_new_tokens": 40}}
    spec = JobSpec.model_validate({"model": {"source": "none"}, "drift": drift, "store": {"url": "runs/x"}})
    plan = make_plan(spec, load_source(spec), FACTS)
    figures = replace(estimate(plan), rows_per_batch=2, user_prompt_tokens=600, user_response_tokens=240)
    figures = replace(figures, turns=TurnCache(user_tokens=100))
    user = replace(FACTS, num_parameters=2 * 10**9, n_layers=10, kv_values_per_token=1000, dtype="bfloat16")
    without, found = (price(plan, figures, "d", DEVICE, tensor_parallel=1, gpus=1, user=one) for one in (None, user))
    assert found.prefill_hours - without.prefill_hours == pytest.approx(500 * 4e9 / 5e14 / 3600)
    # Moving: 4e9 bytes of weights, and 2 rows of 100 + 20 tokens of 1000 values of 2 bytes, at 1e12 bytes a second.
    assert found.decode_hours - without.decode_hours == pytest.approx(120 * (4e9 + 2 * 120 * 2000) / 1e12 / 3600)


def test_each_roof_can_be_the_one_that_is_met():
    small = replace(FACTS, num_parameters=10**6)
    assert priced(plan_of(facts=small)).limited_by == "launching"
    large = replace(FACTS, num_parameters=10**11)
    assert priced(plan_of(facts=large)).limited_by == "bandwidth"
    wide = replace(estimate(plan_of(240, facts=large)), rows_per_batch=1200)
    assert priced(plan_of(240, facts=large), figures=wide).limited_by == "arithmetic"
    assert priced(plan_of(facts=small)).step_s == pytest.approx(small.n_layers * 100e-6)


def test_a_case_of_vllm_done_by_hand():
    """As above: 20 slots and not 10, its own efficiency, and sums of 10 layers x 16 that are moved in each step."""
    facts = replace(FACTS, num_parameters=10**9, n_layers=10, kv_values_per_token=1000, dtype="bfloat16")
    plan = plan_of(facts=facts)
    read_and_written = {"prompt_tokens": 2000, "canary_tokens": 500, "response_tokens": 20 * 512}
    figures = replace(estimate(plan, "vllm"), **read_and_written)
    device = DEVICE.model_copy(update={"vllm_efficiency": 0.8, "vllm_layer_us": 1})
    found = priced(plan, device, figures=figures)
    assert (found.engine, found.rows) == ("vllm", 20)
    moved = 2e9 + 20 * 356 * 2000 + 20 * 10 * 16 * (2 + 8)
    assert found.step_s == pytest.approx(max(moved / 1.6e12, 10 * 1e-6 + 0.004))
    slow = priced(plan, device.model_copy(update={"bandwidth_gb_s": 200}), figures=figures)
    assert slow.step_s == pytest.approx(moved / 1.6e11)
    assert slow.limited_by == "bandwidth"
    assert found.decode_hours == pytest.approx(512 * found.step_s / 3600)
    assert found.prefill_hours == pytest.approx(2500 * 2e9 / 8e14 / 3600)


def test_the_slots_of_vllm_are_those_that_the_memory_of_its_devices_has_room_for():
    plan = plan_of(240, facts=LLAMA_70B, placement={"tensor_parallel": 4})
    roomy, tight = (
        priced(plan, DEVICE.model_copy(update={"memory_gb": gb}), figures=estimate(plan, "vllm"), size=4, gpus=4)
        for gb in (80, 50)
    )
    assert roomy.rows == 256
    assert 1 < tight.rows < 256
    assert tight.tokens_per_s < roomy.tokens_per_s


def test_what_capturing_costs_vllm_is_a_few_per_cent_of_a_70b_model_s_step():
    def step_s(layers: str | list[int]) -> float:
        plan = plan_of(240, facts=LLAMA_70B, placement={"tensor_parallel": 4}, capture={"layers": layers})
        return priced(plan, figures=estimate(plan, "vllm"), size=4, gpus=4).step_s

    assert 1 < step_s("all") / step_s([40]) < 1.05


def test_texts_that_a_server_generates_are_read_and_not_decoded():
    own = plan_of(facts=LLAMA_70B)
    served = plan_of(facts=LLAMA_70B, generation={"endpoint": "http://host/v1"})
    found = priced(served)
    assert found.decode_hours == 0
    read = estimate(served).prompt_tokens + estimate(served).response_tokens + estimate(served).canary_tokens
    assert found.prefill_hours == pytest.approx(2 * LLAMA_70B.num_parameters * read / 5e14 / 3600)
    assert found.gpu_hours < priced(own).gpu_hours
    assert (estimate(own).cache_bytes > 0, estimate(served).cache_bytes) == (True, 0)


def test_texts_of_a_family_that_shares_no_pass_are_priced_one_at_a_time():
    shared, alone = (plan_of(facts=replace(LLAMA_70B, family=family)) for family in ("llama", "falcon"))
    assert (priced(shared).rows, priced(alone).rows) == (20, 1)
    assert priced(alone).decode_hours > 10 * priced(shared).decode_hours


@given(tensor=st.sampled_from([1, 2, 4, 8]), stages=st.sampled_from([1, 2, 4]), replicas=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_the_gpus_of_a_replica_are_tensor_times_pipeline_parallel_everywhere(tensor: int, stages: int, replicas: int):
    sizes = {"tensor_parallel": tensor, "pipeline_parallel": stages, "replicas": replicas}
    plan = plan_of(240, facts=LLAMA_70B, placement=sizes)
    figures = estimate(plan, "vllm")
    found = priced(plan, figures=figures, gpus=None, size=tensor)
    assert figures.gpus_per_replica == plan.spec.placement.gpus_per_replica == tensor * stages
    assert (found.gpus, found.replicas) == (tensor * stages * replicas, replicas)
    assert figures.replica_bytes == tensor * stages * figures.device_bytes
    assert figures.weight_bytes < figures.replica_bytes


def test_float32_is_held_against_the_float32_rate():
    prefill = [
        priced(plan_of(facts=replace(LLAMA_70B, dtype=dtype))).prefill_hours for dtype in ("float32", "bfloat16")
    ]
    assert prefill[0] == pytest.approx(20 * prefill[1])


@given(gpus=st.integers(1, 200), more=st.integers(1, 100), size=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=50, deadline=None)
def test_more_gpus_never_take_longer_nor_cost_more(gpus: int, more: int, size: int):
    plan = plan_of(facts=LLAMA_70B)
    few, many = (priced(plan, gpus=size * count, size=size) for count in (gpus, gpus + more))
    assert many.days <= few.days
    assert many.money == few.money
    assert few.replicas == min(gpus, len(plan.units))
    assert few.gpus == few.replicas * size


@given(questions=st.integers(1, 60), prompt=st.integers(0, 10_000), response=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_more_tokens_take_longer(questions: int, prompt: int, response: int):
    plan = plan_of(questions)
    figures = estimate(plan)
    more = replace(
        figures,
        prompt_tokens=figures.prompt_tokens + prompt,
        response_tokens=figures.response_tokens + response,
    )
    assert priced(plan, figures=more).gpu_hours >= priced(plan, figures=figures).gpu_hours
    assert priced(plan_of(questions + 1)).prefill_hours > priced(plan).prefill_hours


@given(factor=st.floats(0, 100), efficiency=st.floats(0.05, 0.5))
@settings(max_examples=30, deadline=None)
def test_money_follows_the_price_and_time_follows_what_is_reached(factor: float, efficiency: float):
    plan = plan_of(facts=LLAMA_70B)
    dearer = DEVICE.model_copy(update={"price_per_hour": factor * DEVICE.price_per_hour})
    assert priced(plan, dearer).money == pytest.approx(factor * priced(plan).money)
    slower = DEVICE.model_copy(update={"efficiency": efficiency})
    assert priced(plan, slower).gpu_hours >= priced(plan).gpu_hours


def test_without_a_number_of_gpus_the_spec_says_how_many():
    assert priced(plan_of(placement={"replicas": 3}), gpus=None, size=2).gpus == 6
    assert priced(plan_of(), gpus=None, size=4).gpus == 4


def test_fewer_gpus_than_one_replica_takes_are_refused():
    with pytest.raises(InputError) as caught:
        priced(plan_of(), gpus=3, size=4)
    assert (caught.value.code, caught.value.field) == ("too_few_gpus", "--gpus")
    assert "at least 4" in str(caught.value)


def test_the_built_in_table_has_what_people_rent():
    table = load_devices()
    assert {"H100", "H200", "A100-80", "A100-40", "L40S", "L4", "cpu"} <= set(table.devices)
    assert table.of_kind("cpu").devices.keys() == {"cpu"}
    assert "cpu" not in table.of_kind("cuda").devices
    assert table.of_kind("auto") == table
    assert list(table.only("H100").devices) == ["H100"]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("memory_gb: 80", "memory_gb: -80", "memory_gb"),
        ("memory_gb: 80", "memory_gb: .nan", "memory_gb"),
        ("efficiency: 0.4", "efficiency: 1.4", "efficiency"),
        ("tflops: 312", "tflop: 312", "tflops"),
        ("currency: USD", "", "currency"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_field(tmp_path: Path, old: str, new: str, told: str):
    path = tmp_path / "devices.yaml"
    path.write_text(BUILTIN_DEVICES.read_text().replace(old, new))
    with pytest.raises(InputError) as caught:
        load_devices(path)
    assert told in str(caught.value)


def test_a_device_that_is_not_in_the_table_is_named():
    table: DeviceTable = load_devices()
    with pytest.raises(InputError) as caught:
        table.only("H10")
    assert caught.value.field == "--device"
    assert "'H100'" in str(caught.value)
    with pytest.raises(InputError):
        table.only("cpu").of_kind("cuda")


def test_the_known_models_have_the_sizes_that_the_docs_give():
    sizes = {name: (facts.n_layers, facts.d_model) for name, facts in known_models().items()}
    assert sizes["meta-llama/Llama-3.3-70B-Instruct"] == (80, 8192)
    assert sizes["Qwen/Qwen3-32B"] == (64, 5120)
    assert sizes["google/gemma-2-27b-it"] == (46, 4608)
    assert all(facts.fingerprint == "" for facts in known_models().values())
    assert LLAMA_70B.num_parameters == 2 * 128_256 * 8192 + 8192 + 80 * (
        2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28_672 + 2 * 8192
    )


def test_what_is_known_by_name_alone_has_no_digest():
    with pytest.raises(InputError) as caught:
        _ = plan_of(facts=LLAMA_70B).digest
    assert caught.value.code == "no_fingerprint"
