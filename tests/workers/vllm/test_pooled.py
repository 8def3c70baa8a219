"""A slot's sums are those of exactly the tokens that vLLM reports, or the rollout fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.poolings import TokenSpans
from persona_atlas.workers.vllm.capture_plan import Sum
from persona_atlas.workers.vllm.flights import SlotCapture
from persona_atlas.workers.vllm.pooled import pooled

from requests_of import engine_settings

IDS = (5, 6, 7, 8, 9, 2)
SPANS = TokenSpans((3, 5))
MEAN: Sum = ("mean", "response")
LAST: Sum = ("last", "prompt")
SETTINGS = engine_settings(
    Path("none"), layers=[0, 3], poolings=["response_mean", "prompt_last", "assistant_start"], token_layers=[3]
)


def slot(**changed: object) -> SlotCapture:
    whole = SlotCapture(
        {MEAN: np.full((2, 4), 6, dtype=np.float32), LAST: np.ones((2, 4), dtype=np.float32)},
        {MEAN: 2, LAST: 1},
        {MEAN: 17, LAST: 7},
        np.arange(12, dtype=np.float32).reshape(1, 3, 4),
        (8, 9, 2),
    )
    return replace(whole, **changed)


def test_a_mean_is_divided_poolings_share_a_sum_and_the_end_of_the_turn_is_no_content():
    vectors, tokens = pooled(slot(), SETTINGS, SPANS, IDS, "it")
    assert list(vectors) == [("resid_post", name) for name in ("response_mean", "prompt_last", "assistant_start")]
    assert (vectors["resid_post", "response_mean"] == 3).all()
    assert (vectors["resid_post", "prompt_last"] == vectors["resid_post", "assistant_start"]).all()
    np.testing.assert_array_equal(tokens["resid_post", "tokens"], slot().tokens_KTD[:, :2])


@pytest.mark.parametrize(
    "changed",
    [
        {"counts": {MEAN: 1, LAST: 1}},
        {"counts": {MEAN: 3, LAST: 1}},
        {"id_sums": {MEAN: 18, LAST: 7}},
        {"id_sums": {MEAN: 17, LAST: 8}},
        {"tokens_KTD": np.zeros((1, 1, 4), dtype=np.float32), "token_ids": (8,)},
        {"token_ids": (9, 8, 2)},
    ],
    ids=[
        "one too few",
        "one too many",
        "another token",
        "another last token",
        "a token that was not kept",
        "in another order",
    ],
)
def test_tokens_that_are_not_those_of_the_response_fail_it(changed: dict[str, object]):
    with pytest.raises(UnitError, match="it: ") as caught:
        pooled(slot(**changed), SETTINGS, SPANS, IDS, "it")
    assert caught.value.code == "tokens_missing"
    assert not caught.value.is_permanent


def test_an_empty_response_has_no_vector_and_its_prompt_has():
    empty = slot(counts={MEAN: 0, LAST: 1}, id_sums={MEAN: 0, LAST: 7})
    vectors, tokens = pooled(empty, SETTINGS, TokenSpans((3, 3)), IDS[:3], "it")
    assert np.isnan(vectors["resid_post", "response_mean"]).all()
    assert (vectors["resid_post", "prompt_last"] == 1).all()
    assert tokens["resid_post", "tokens"].shape == (1, 0, 4)


@pytest.mark.parametrize("array", ["sums", "tokens"])
def test_a_number_that_is_not_finite_names_its_layer(array: str):
    sums = {key: values.copy() for key, values in slot().sums.items()}
    tokens_KTD = slot().tokens_KTD.copy()
    if array == "sums":
        sums[MEAN][1, 2] = np.inf
    else:
        tokens_KTD[0, 1, 0] = np.nan
    with pytest.raises(UnitError, match="layer 3") as caught:
        pooled(slot(sums=sums, tokens_KTD=tokens_KTD), SETTINGS, SPANS, IDS, "it")
    assert caught.value.code == "not_finite"
