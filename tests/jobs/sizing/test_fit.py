"""What does not fit is refused before anything is rented, and what is offered instead does fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.sizing.devices import Device, DeviceTable, load_devices
from persona_atlas.jobs.sizing.estimate import Estimate, device_bytes, estimate
from persona_atlas.jobs.sizing.fit import SpecChange, changes_that_fit, fits, require_fit, smallest_tensor_parallel
from persona_atlas.jobs.sizing.known_models import known_models

from fakes import small_plan, small_spec

TABLE = load_devices()
LLAMA_70B = known_models()["meta-llama/Llama-3.3-70B-Instruct"]


def plan_of(model: str = "meta-llama/Llama-3.3-70B-Instruct", dtype: str = "auto", **parts: Any) -> Plan:
    return small_plan(small_spec(model={"source": model, "dtype": dtype}, **parts), facts=known_models()[model])


def changed(plan: Plan, change: SpecChange) -> Plan:
    """The plan with the change that was offered."""
    placement = plan.spec.placement
    parts: dict[str, Any] = {
        "placement": {
            "tensor_parallel": change.tensor_parallel or placement.tensor_parallel,
            "batch_tokens": change.batch_tokens or placement.batch_tokens,
        }
    }
    if change.layers is not None:
        parts["capture"] = {"layers": list(range(change.layers))}
    return plan_of(plan.spec.model.source, change.dtype or plan.spec.model.dtype, **parts)


def estimate_for(plan: Plan) -> Estimate:
    """The estimate for the engine that a replica of that many devices takes."""
    return estimate(plan, "vllm" if plan.spec.placement.gpus_per_replica > 1 else "builtin")


def with_memory(device: Device, memory_gb: float) -> DeviceTable:
    return TABLE.model_copy(update={"devices": {"d": device.model_copy(update={"memory_gb": memory_gb})}})


@pytest.mark.parametrize(
    ("device", "size"),
    [("H200", 2), ("H100", 4), ("A100-80", 4), ("A100-40", 8), ("L40S", 4), ("L4", None), ("cpu", None)],
)
def test_the_smallest_number_of_gpus_for_a_70b_model(device: str, size: int | None):
    plan = plan_of()
    assert smallest_tensor_parallel(plan, estimate(plan), TABLE.devices[device]) == size
    if size is not None and size > 1:
        assert not fits(estimate(plan, "vllm"), TABLE.devices[device], size // 2)


def test_a_model_that_fits_no_node_is_refused_with_what_would_fit():
    plan = plan_of()
    with pytest.raises(InputError) as caught:
        require_fit(plan, estimate(plan), TABLE)
    assert (caught.value.code, caught.value.field) == ("does_not_fit", "placement.tensor_parallel")
    assert f"{device_bytes(estimate(plan), 1) / 1e9:.1f} GB" in caught.value.message
    assert "placement.tensor_parallel=4 on H100" in str(caught.value.hint)
    assert "on cpu" not in str(caught.value.hint)


def test_what_fits_one_device_of_the_table_is_let_through():
    for size, name in ((4, "H100"), (2, "H200"), (8, "A100-40")):
        plan = plan_of(placement={"tensor_parallel": size})
        require_fit(plan, estimate(plan, "vllm"), TABLE.only(name))
    small = plan_of("meta-llama/Llama-3.1-8B-Instruct")
    require_fit(small, estimate(small), TABLE)


def test_a_replica_over_more_devices_than_a_machine_has_is_refused():
    plan = plan_of(placement={"tensor_parallel": 16})
    with pytest.raises(InputError) as caught:
        require_fit(plan, estimate(plan, "vllm"), TABLE)
    assert "placement.tensor_parallel=2 on H200" in str(caught.value.hint)


def test_when_nothing_helps_it_says_so():
    plan = plan_of()
    with pytest.raises(InputError) as caught:
        require_fit(plan, estimate(plan), TABLE.only("cpu"))
    assert "smaller model" in str(caught.value.hint)
    assert "placement.weights=streamed" in str(caught.value.hint)


def test_a_batch_that_is_too_large_is_cut_before_more_gpus_are_the_only_word():
    plan = plan_of("meta-llama/Llama-3.1-8B-Instruct", placement={"batch_tokens": 1_000_000})
    changes = changes_that_fit(plan, estimate(plan), "H100", TABLE.devices["H100"])
    assert {("tensor_parallel", change.tensor_parallel is not None) for change in changes} >= {
        ("tensor_parallel", True)
    }
    assert any(change.batch_tokens for change in changes)


def test_fewer_layers_are_offered_where_capture_is_what_is_too_large():
    plan = plan_of("meta-llama/Llama-3.1-8B-Instruct", placement={"batch_tokens": 200_000})
    figures = replace(estimate(plan), capture_bytes=60 * 10**9)
    changes = changes_that_fit(plan, figures, "H100", TABLE.devices["H100"])
    layers = next(change.layers for change in changes if change.layers)
    assert 0 < layers < 32
    assert fits(replace(figures, capture_bytes=60 * 10**9 * layers // 32), TABLE.devices["H100"], 1)


@given(
    memory=st.floats(2, 200),
    model=st.sampled_from(sorted(known_models())),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    batch=st.integers(2_000, 300_000),
    size=st.sampled_from([1, 2, 4, 8, 16]),
)
@settings(max_examples=40, deadline=None)
def test_whatever_is_offered_fits(memory: float, model: str, dtype: str, batch: int, size: int):
    plan = plan_of(model, dtype, placement={"batch_tokens": batch, "tensor_parallel": size})
    table = with_memory(TABLE.devices["H100"], memory)
    device = table.devices["d"]
    figures = estimate_for(plan)
    if fits(figures, device, size):
        require_fit(plan, figures, table)
        return
    with pytest.raises(InputError):
        require_fit(plan, figures, table)
    for change in changes_that_fit(plan, figures, "d", device):
        better = changed(plan, change)
        assert fits(estimate_for(better), device, better.spec.placement.tensor_parallel), change
