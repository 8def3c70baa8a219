"""Which jobs may load their weights layer by layer, and how many tokens they should then read at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from persona_atlas.jobs.engines import choose_engine
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.sizing.devices import load_devices
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.jobs.sizing.fit import fits
from persona_atlas.jobs.sizing.known_models import known_models
from persona_atlas.jobs.sizing.streaming import (
    can_stream,
    estimates_of,
    least_estimate,
    require_streamed,
    streamed_walk,
)
from persona_atlas.jobs.sizing.walks import LEAST_WALK_TOKENS, walk_tokens

from fakes import small_plan, small_spec

TABLE = load_devices()
NAME = "meta-llama/Llama-3.3-70B-Instruct"
LLAMA_70B = replace(known_models()[NAME], layer_parameters=855_655_424, outside_parameters=2_101_354_496)
SERVED = {"endpoint": "http://gpu:8000/v1"}


def plan_of(facts: Any = LLAMA_70B, generation: Any = SERVED, **placement: Any) -> Plan:
    spec = small_spec(model={"source": NAME}, generation=generation, placement=placement)
    return small_plan(spec, facts=facts)


def test_two_layers_and_what_lies_outside_of_them_are_counted():
    held, streamed = (estimate(plan_of(), "builtin", weights) for weights in ("resident", "streamed"))
    layers, outside = 2 * 855_655_424 * 2, 2_101_354_496 * 2
    walk = 3 * 32_768 * 8192 * 2
    assert streamed.weight_bytes == layers + outside + walk
    assert streamed.device_bytes < 0.12 * held.device_bytes
    assert [fits(one, TABLE.devices["L4"], 1) for one in (held, streamed)] == [False, True]


def test_layers_of_unknown_size_are_taken_for_equal_parts_of_the_model():
    facts = replace(LLAMA_70B, layer_parameters=0, outside_parameters=0)
    known = estimate(plan_of(), "builtin", "streamed").weight_bytes
    assert known / 1.1 < estimate(plan_of(facts), "builtin", "streamed").weight_bytes < 1.1 * known


@pytest.mark.parametrize(("device", "tokens"), [("H100", 59_392), ("L4", 8192), ("cpu", 4096)])
def test_tokens_follow_from_the_bytes_of_a_layer_the_bandwidth_and_the_arithmetic(device: str, tokens: int):
    walk = streamed_walk(plan_of(), TABLE.devices[device])
    assert walk.tokens == tokens
    assert walk.layer_bytes == 2 * 855_655_424
    assert walk.share_of_resident == 1
    # Less than the bandwidth asks for is slower by as much.
    few = streamed_walk(plan_of(batch_tokens=1024), TABLE.devices[device])
    assert few.is_asked
    assert few.share_of_resident == pytest.approx(min(1, 1024 * walk.token_s / walk.load_s))


def test_no_walk_is_so_short_that_its_own_cost_shows():
    assert walk_tokens(1e-6, 1.0, "cpu") == LEAST_WALK_TOKENS
    assert walk_tokens(1e-6, 1.0, "cuda", most=2000) == 2000


def test_weights_are_streamed_where_they_fit_no_device_or_where_that_is_asked_for():
    small = TABLE.only("L4")
    assert [one.weights for one in estimates_of(plan_of(), small).values()] == ["streamed"]
    assert {one.weights for one in estimates_of(plan_of(weights="resident"), small).values()} == {"resident"}
    asked = plan_of(weights="streamed")
    assert list(estimates_of(asked, TABLE)) == ["builtin"]
    assert choose_engine(asked.spec, asked.facts, vllm_installed=True, has_gpu=True) == "builtin"
    assert least_estimate(plan_of()).weights == "streamed"
    assert least_estimate(plan_of(weights="resident")).weights == "resident"


@pytest.mark.parametrize(
    ("facts", "generation", "placement", "words"),
    [
        (LLAMA_70B, None, {}, "its workers generate"),
        (LLAMA_70B, SERVED, {"engine": "vllm"}, r"placement\.engine is vllm"),
        (replace(LLAMA_70B, has_adapter=True), SERVED, {}, "adapter"),
        (replace(LLAMA_70B, quantization="fp8"), SERVED, {}, "quantised with fp8"),
        (LLAMA_70B, SERVED, {"tensor_parallel": 2}, "several devices"),
    ],
)
def test_what_cannot_be_streamed_is_refused_by_name(facts: Any, generation: Any, placement: Any, words: str):
    with pytest.raises(InputError, match=words) as caught:
        require_streamed(plan_of(facts, generation, weights="streamed", **placement))
    assert (caught.value.code, caught.value.field) == ("not_streamed", "placement.weights")
    assert "resident" in str(caught.value.hint)
    # Where it is only allowed, weights are held as ever.
    other = plan_of(facts, generation, **placement)
    require_streamed(other)
    assert not can_stream(other)
