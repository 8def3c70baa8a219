"""What vLLM's workers are told, through its JSON values."""

from __future__ import annotations

import json

import pytest
from persona_atlas.jobs.poolings import POOLINGS, TokenSpans
from persona_atlas.workers.vllm.capture_plan import SlotSpans, WorkerPlan


def plan_of(*poolings: str) -> WorkerPlan:
    return WorkerPlan.of(poolings, layers=[0, 2, 5], token_layers=[2], slots=9, stop_ids=[3, 1])


def test_a_plan_and_the_spans_of_a_slot_survive_json():
    plan = plan_of(*POOLINGS)
    assert WorkerPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    spans = SlotSpans.of(4, plan.spans, TokenSpans((7, 7), (2, 5)), is_open=True)
    assert spans.ranges == {"response": (7, None), "prompt": (0, 7), "user": (2, 5)}
    assert SlotSpans.from_json(json.loads(json.dumps(spans.to_json()))) == spans


def test_poolings_of_the_same_tokens_share_a_sum():
    plan = plan_of("prompt_last", "assistant_start", "response_mean", "tokens")
    assert plan.sums == (("last", "prompt"), ("mean", "response"))
    assert plan.keeps_tokens
    assert not plan_of("response_mean").keeps_tokens


@pytest.mark.parametrize(
    ("poolings", "first"),
    [
        (("response_mean",), 7),
        (("tokens",), 7),
        (("response_last",), 8),
        (("prompt_last",), 6),
        (("prompt_last", "user_mean"), 2),
        (("response_mean", "prompt_mean"), 0),
    ],
)
def test_the_first_token_that_a_cache_must_not_skip(poolings: tuple[str, ...], first: int):
    assert plan_of(*poolings).first_needed([TokenSpans((20, 30), (15, 18)), TokenSpans((7, 9), (2, 5))]) == first


def test_an_empty_response_needs_no_token_of_itself():
    assert plan_of("response_mean", "response_last").first_needed([TokenSpans((7, 7))]) is None
    assert plan_of("response_mean", "prompt_last").first_needed([TokenSpans((7, 7))]) == 6
