"""The table of poolings: what everything else asks it."""

from __future__ import annotations

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.poolings import (
    DEFAULT_POOLING,
    POOLINGS,
    TOKENS,
    TokenSpans,
    keeps_tokens,
    pooled_names,
    pooling_named,
)
from persona_atlas.workers.pooling import ACCUMULATORS

SPANS = TokenSpans((9, 14), user=(4, 7))


def test_every_pooling_has_a_name_of_its_own_and_an_accumulator():
    assert list(POOLINGS) == [pooling.name for pooling in POOLINGS.values()]
    assert {pooling.combine for pooling in POOLINGS.values()} == set(ACCUMULATORS)
    assert POOLINGS[DEFAULT_POOLING].combine == "mean"
    assert [name for name in POOLINGS if keeps_tokens(name)] == [TOKENS]


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("response_mean", (9, 14)),
        ("response_last", (9, 14)),
        ("prompt_mean", (0, 9)),
        ("prompt_last", (0, 9)),
        ("assistant_start", (0, 9)),
        ("user_mean", (4, 7)),
        ("tokens", (9, 14)),
    ],
)
def test_each_is_over_its_span_and_those_over_a_response_need_one(name: str, tokens: tuple[int, int]):
    pooling = pooling_named(name)
    assert SPANS.of(pooling.span) == tokens
    of_response = tokens == SPANS.response
    assert pooling.defined_without_response != of_response
    assert [pooling.has_value(count) for count in (0, 3)] == [not of_response, True]
    assert pooling.needs_user_span == (name == "user_mean")


def test_the_users_tokens_are_asked_for_only_where_they_are_known():
    with pytest.raises(ValueError, match="not known"):
        TokenSpans((9, 14)).of("user")


def test_a_name_that_is_no_pooling_is_refused_with_those_that_are():
    with pytest.raises(InputError, match="'prompt_man' is not a pooling") as caught:
        pooling_named("prompt_man")
    assert caught.value.code == "unknown_pooling"
    assert "Did you mean 'prompt_mean'?" in str(caught.value.hint)
    assert all(name in str(caught.value.hint) for name in POOLINGS)
    assert not keeps_tokens("prompt_man")


def test_what_keeps_every_token_gives_no_vector_a_rollout():
    assert pooled_names(["tokens", "user_mean", "response_last"]) == ["user_mean", "response_last"]
