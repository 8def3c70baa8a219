"""The arithmetic of the canary."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.rollouts import Canary
from persona_atlas.workers.canary import LIMITS, compare, require_close

MEAN, LAST = ("resid_post", "response_mean"), ("resid_post", "response_last")


@given(size=st.floats(1e-6, 0.5), seed=st.integers(0, 2**32))
def test_the_error_is_the_share_of_the_norm_and_the_worst_array_counts(size: float, seed: int):
    rng = np.random.default_rng(seed)
    plain_LD = rng.standard_normal((3, 8)) + 3
    off_LD = plain_LD + size * plain_LD[:, ::-1] * [[0], [1], [0]]
    canary = compare(
        {MEAN: plain_LD.astype(np.float32), LAST: off_LD.astype(np.float32)}, {MEAN: plain_LD, LAST: plain_LD}
    )
    assert canary.relative_error_L[0] < 1e-6
    assert canary.relative_error_L[1] == pytest.approx(size, rel=1e-2, abs=1e-6)
    assert canary.cosine_L[2] == pytest.approx(1)
    assert canary.cosine_L[1] < canary.cosine_L[0] + 1e-9


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_beyond_every_limit(value: float):
    plain_LD = np.ones((2, 4))
    got_LD = plain_LD.astype(np.float32)
    got_LD[1, 2] = value
    canary = compare({MEAN: got_LD}, {MEAN: plain_LD})
    assert canary.relative_error_L == (0.0, np.inf)
    with pytest.raises(UnitError, match="layer 9"):
        require_close(canary, [4, 9], 1e9)


def test_a_zero_stream_that_was_captured_as_zero_is_right():
    canary = compare({MEAN: np.zeros((1, 4), np.float32)}, {MEAN: np.zeros((1, 4))})
    assert (canary.relative_error_L, canary.cosine_L) == ((0.0,), (1.0,))


def test_the_worst_layer_is_named_with_both_figures():
    canary = Canary(1, (1e-5, 2e-3, 3e-3), (1.0, 1.0, 1.0))
    require_close(canary, [0, 5, 10], LIMITS["bfloat16"])
    with pytest.raises(UnitError, match=r"layer 10: .* by 3\.0e-03 of its norm; 1e-03 is allowed") as caught:
        require_close(canary, [0, 5, 10], LIMITS["float32"])
    assert caught.value.code == "canary"
