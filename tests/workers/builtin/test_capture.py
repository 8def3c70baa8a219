"""Looking at a pass: wanted tokens, sums of spans, and layers that were not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import UnitError
from persona_atlas.workers.builtin.passes.capture import Capture, require_finite
from persona_atlas.workers.models.hook_points import Tap
from persona_atlas.workers.observation import Wanted
from torch import nn

D_MODEL = 4


class _Decoder(nn.Module):
    """Two blocks, each of which adds 1; the second can be left out, or done twice."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Identity(), nn.Identity()])

    def forward(self, resid_BTD: torch.Tensor, order: tuple[int, ...] = (0, 1)) -> torch.Tensor:
        for layer in order:
            resid_BTD = self.layers[layer](resid_BTD + 1)
        return resid_BTD


def capture_of(model: _Decoder) -> Capture:
    return Capture({"resid_post": [Tap(block, of_input=False) for block in model.layers]}, [3, 7], model.layers[1])


@settings(deadline=None, max_examples=60)
@given(
    num_tokens=st.integers(1, 40),
    places=st.lists(st.integers(0, 39), max_size=6),
    spans=st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), max_size=6),
    seed=st.integers(0, 2**32),
)
def test_tokens_and_sums_are_those_of_plain_arithmetic(num_tokens, places, spans, seed):
    places = [place % num_tokens for place in places]
    spans = [tuple(sorted((a % (num_tokens + 1), b % (num_tokens + 1)))) for a, b in spans]
    line_ND = np.random.default_rng(seed).standard_normal((num_tokens, D_MODEL)).astype(np.float32) * 100
    model = _Decoder()
    _, seen = capture_of(model).observe(
        lambda: model(torch.from_numpy(line_ND)[None]),
        Wanted(tokens=places, spans=spans),
        num_tokens=num_tokens,
        device="cpu",
    )
    shown = seen["resid_post"]
    for position in range(2):
        expected_ND = line_ND.astype(np.float64) + position + 1
        np.testing.assert_allclose(shown.tokens_LED[position].numpy(), expected_ND[places], rtol=1e-6)
        for span, (start, stop) in enumerate(spans):
            expected_D = expected_ND[start:stop].sum(axis=0)
            np.testing.assert_allclose(shown.sums_LPD[position, span].numpy(), expected_D, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("order", "times"), [((0,), 0), ((0, 1, 1), 2)])
def test_a_layer_that_is_not_seen_exactly_once_is_named(order: tuple[int, ...], times: int):
    model = _Decoder()
    with pytest.raises(UnitError, match=f"layer 7: resid_post was seen {times} times") as caught:
        capture_of(model).observe(
            lambda: model(torch.zeros(1, 3, D_MODEL), order), Wanted(tokens=[0]), num_tokens=3, device="cpu"
        )
    assert caught.value.code == "hook_not_fired"


def test_nothing_is_left_on_the_model_after_a_pass_not_even_one_that_failed():
    model = _Decoder()

    def fail() -> torch.Tensor:
        model(torch.zeros(1, 3, D_MODEL))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        capture_of(model).observe(fail, Wanted(tokens=[0]), num_tokens=3, device="cpu")
    # A hook that was left would see this pass too.
    _, seen = capture_of(model).observe(
        lambda: model(torch.zeros(1, 1, D_MODEL)), Wanted(tokens=[0]), num_tokens=1, device="cpu"
    )
    assert seen["resid_post"].tokens_LED[:, 0, 0].tolist() == [1, 2]


def test_the_lowest_layer_whose_numbers_are_not_finite_is_named():
    vectors_LD = torch.zeros(3, D_MODEL)
    require_finite(vectors_LD, [2, 4, 6], "a mean")
    vectors_LD[1, 2], vectors_LD[2, 0] = torch.inf, torch.nan
    with pytest.raises(UnitError, match=r"^layer 4: a mean is not finite\. .*model\.dtype"):
        require_finite(vectors_LD, [2, 4, 6], "a mean")
