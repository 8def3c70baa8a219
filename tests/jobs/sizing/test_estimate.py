"""The estimate of a plan: it follows what is asked, and a replica's memory has room for what it must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.sizing.estimate import estimate, resolved_dtype

from fakes import FACTS, small_plan, small_spec


@given(questions=st.integers(1, 30), samples=st.integers(1, 4))
@settings(max_examples=20, deadline=None)
def test_one_question_more_takes_more_of_everything_that_is_spent(questions: int, samples: int):
    def of(count: int):
        roles = {"names": ["pirate"], "prompts": 2, "questions": count, "samples": samples}
        return estimate(small_plan(small_spec(personas={"roles": roles, "default": {"prompts": 0}})))

    less, more = of(questions), of(questions + 1)
    assert more.prompt_tokens > less.prompt_tokens
    assert more.response_tokens - less.response_tokens == 2 * samples * 512
    assert more.stored_bytes - less.stored_bytes == 2 * samples * FACTS.n_layers * FACTS.d_model * 2


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2), ("float16", 2)])
def test_a_replica_holds_the_weights_in_their_type_and_a_batch_beside(dtype: str, width: int):
    facts = replace(FACTS, num_parameters=70_000_000_000, dtype=dtype)
    found = estimate(small_plan(facts=facts))
    assert found.weight_bytes == 70_000_000_000 * width
    assert found.replica_bytes >= found.weight_bytes + found.cache_bytes + found.capture_bytes
    assert found.cache_bytes > 0
    assert found.capture_bytes > 0


def test_the_asked_type_wins_over_the_checkpoints_own():
    assert estimate(small_plan(small_spec(model={"source": "none", "dtype": "bfloat16"}))).weight_bytes == 20_000
    assert resolved_dtype("auto", "bfloat16") == "bfloat16"
    assert resolved_dtype("auto", "float8_e4m3fn") == "float32"


def test_a_larger_batch_takes_more_cache_and_nothing_more_of_the_store():
    small = estimate(small_plan(small_spec(placement={"batch_tokens": 1024})))
    large = estimate(small_plan(small_spec(placement={"batch_tokens": 4096})))
    assert large.cache_bytes == 4 * small.cache_bytes
    assert large.stored_bytes == small.stored_bytes


def test_an_assignment_is_half_a_batch_or_all_that_a_server_is_asked_for_at_once():
    found = estimate(small_plan(small_spec(placement={"batch_tokens": 4096})))
    assert found.rows_per_assignment == found.rows_per_batch // 2 > 0
    assert estimate(small_plan(small_spec(placement={"batch_tokens": 64}))).rows_per_assignment == 1
    server = {"endpoint": "http://localhost:8000/v1", "concurrency": 500}
    served = estimate(small_plan(small_spec(placement={"batch_tokens": 4096}, generation=server)))
    assert served.rows_per_assignment == 500


def test_every_unit_makes_its_arrays_its_texts_and_its_commit():
    plan = small_plan(small_spec(capture={"poolings": ["response_mean", "prompt_last"]}))
    assert estimate(plan).objects == 4 * len(plan.units)


def test_every_kept_token_is_counted_in_the_store_and_in_memory():
    def of(**capture: object):
        counts = {"names": ["pirate"], "prompts": 1, "questions": 4}
        personas = {"roles": counts, "default": {"prompts": 0}}
        return estimate(small_plan(small_spec(personas=personas, capture=capture, sampling={"max_new_tokens": 100})))

    pooled = of(poolings=["response_mean"])
    both = of(poolings=["response_mean", "tokens"], token_layers=[1, 2])
    assert (pooled.stored_token_bytes, pooled.held_token_bytes) == (0, 0)
    assert both.stored_token_bytes == 4 * 100 * 2 * FACTS.d_model * 2
    assert both.stored_bytes == pooled.stored_bytes + both.stored_token_bytes
    assert both.objects == pooled.objects + 1
    assert both.capture_bytes == pooled.capture_bytes, "they leave the device at once"
    # Of the batch, and of four units of four.
    assert both.held_token_bytes == (both.rows_per_batch + 16) * 100 * 2 * FACTS.d_model * 4
    assert both.machine_bytes == both.replica_bytes + both.held_token_bytes
    alone = of(poolings=["tokens"], token_layers=[1, 2])
    assert (alone.stored_bytes, alone.capture_bytes) == (both.stored_token_bytes, 0)


def test_every_token_of_every_layer_of_a_large_run_comes_to_what_nobody_wants():
    roles = {"names": ["*"], "samples": 1}
    spec = small_spec(
        personas={"roles": roles, "default": {"prompts": 0}},
        capture={"poolings": ["tokens"], "token_layers": list(range(8))},
    )
    found = estimate(small_plan(spec, facts=replace(FACTS, n_layers=80, d_model=8192)))
    # 275 roles x 5 prompts x 240 questions x 512 tokens x 8 layers x 8192 x 2 bytes.
    assert found.stored_token_bytes == 330_000 * 512 * 8 * 8192 * 2
