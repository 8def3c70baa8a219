"""Sampling against a naive nucleus that sorts everything, and its independence of the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import UnitError
from persona_atlas.workers.builtin.sampling.sampling import sample, uniforms


def nucleus(logits_V: np.ndarray, temperature: float, top_p: float) -> tuple[np.ndarray, np.ndarray, float]:
    """Token ids of the nucleus, likeliest first, their share of its mass, and how near top_p came to an edge."""
    scaled = logits_V.astype(np.float64) / temperature
    probabilities = np.exp(scaled - scaled.max())
    probabilities /= probabilities.sum()
    order = np.argsort(-probabilities, kind="stable")
    mass = 0.0
    kept = 0
    edge = 1.0
    for token in order:
        edge = min(edge, abs(mass - top_p))
        if mass >= top_p:
            break
        mass += probabilities[token]
        kept += 1
    chosen = order[:kept]
    return chosen, probabilities[chosen] / probabilities[chosen].sum(), edge


def naive_token(logits_V: np.ndarray, uniform: float, temperature: float, top_p: float) -> tuple[int, float]:
    """The token at a uniform number, and how near that number came to an edge between two tokens."""
    ids, shares, edge = nucleus(logits_V, temperature, top_p)
    cumulative = np.cumsum(shares)
    place = min(int(np.searchsorted(cumulative, uniform, side="right")), len(ids) - 1)
    return int(ids[place]), min(edge, float(np.abs(cumulative[:-1] - uniform).min(initial=1.0)))


def distinct_logits(seed: int, vocabulary: int, spread: float) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(vocabulary) * spread).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    vocabulary=st.sampled_from([1, 2, 17, 256, 257, 700]),
    spread=st.floats(0.05, 8),
    temperature=st.floats(0.1, 3),
    top_p=st.floats(0.02, 1),
    uniform=st.floats(0, 1, exclude_max=True, width=32),
)
def test_the_token_is_the_one_of_a_naive_full_sort_nucleus(seed, vocabulary, spread, temperature, top_p, uniform):
    logits_V = distinct_logits(seed, vocabulary, spread)
    expected, margin = naive_token(logits_V, uniform, temperature, top_p)
    # Nearer to an edge than float32 sums can tell, either neighbour is right.
    assume(margin > 2e-5)
    got = sample(torch.from_numpy(logits_V)[None], torch.tensor([uniform]), temperature, top_p)
    assert got.tolist() == [expected]


@pytest.mark.parametrize(("vocabulary", "top_p"), [(40, 0.9), (1200, 0.97)])
def test_frequencies_are_the_nucleus_shares(vocabulary: int, top_p: float):
    logits_V = distinct_logits(3, vocabulary, 1.0)
    ids, shares, _ = nucleus(logits_V, 0.8, top_p)
    draws = 20_000
    uniform_B = torch.from_numpy(np.random.default_rng(0).random(draws, dtype=np.float32))
    tokens = torch.cat(
        [sample(torch.from_numpy(logits_V).expand(len(part), -1), part, 0.8, top_p) for part in uniform_B.split(2000)]
    )
    observed = np.bincount(tokens.numpy(), minlength=vocabulary) / draws
    expected = np.zeros(vocabulary)
    expected[ids] = shares
    assert observed[expected == 0].sum() == 0
    assert np.abs(observed - expected).max() < 4 * np.sqrt(expected.max() / draws)


def test_a_nucleus_wider_than_the_shortcut_reaches_its_last_token_and_no_further():
    vocabulary, top_p = 2000, 0.95
    logits_V = np.linspace(0.5, 0, vocabulary, dtype=np.float32)[np.random.default_rng(1).permutation(vocabulary)]
    ids, _, _ = nucleus(logits_V, 1.0, top_p)
    assert len(ids) > 1000
    almost_one = float(np.nextafter(np.float32(1), np.float32(0)))
    (last,) = sample(torch.from_numpy(logits_V)[None], torch.tensor([almost_one]), 1.0, top_p).tolist()
    assert last in ids[-3:].tolist()


def test_a_wide_row_does_not_change_its_narrow_batch_mate():
    narrow_V = distinct_logits(5, 600, 6.0)
    logits_BV = torch.from_numpy(np.stack([narrow_V, np.linspace(0, 0.01, 600, dtype=np.float32)]))
    for uniform in np.linspace(0, 0.99, 12, dtype=np.float32):
        both = sample(logits_BV, torch.full((2,), float(uniform)), 0.7, 0.9)
        alone = sample(logits_BV[:1], torch.full((1,), float(uniform)), 0.7, 0.9)
        assert both[0] == alone[0]


def test_the_order_of_a_batch_does_not_matter():
    logits_BV = torch.from_numpy(np.stack([distinct_logits(seed, 300, 2.0) for seed in range(9)]))
    uniform_B = torch.rand(9, generator=torch.Generator().manual_seed(0))
    order = torch.tensor([4, 8, 0, 3, 7, 1, 6, 2, 5])
    assert torch.equal(
        sample(logits_BV[order], uniform_B[order], 0.7, 0.9), sample(logits_BV, uniform_B, 0.7, 0.9)[order]
    )


def test_temperature_zero_takes_the_likeliest_whatever_the_uniform():
    logits_BV = torch.from_numpy(np.stack([distinct_logits(seed, 300, 0.1) for seed in range(5)]))
    greedy = sample(logits_BV, torch.full((5,), 0.999), 0.0, 1.0)
    assert greedy.tolist() == logits_BV.argmax(dim=1).tolist()


def test_a_tiny_nucleus_is_the_likeliest_token_alone():
    logits_BV = torch.tensor([[0.0, 0.1, 0.05]])
    assert sample(logits_BV, torch.tensor([0.99]), 1.0, 1e-6).tolist() == [1]


def test_half_precision_logits_are_sampled_as_float32():
    logits_BV = torch.from_numpy(distinct_logits(2, 500, 3.0))[None].bfloat16()
    for uniform in (0.0, 0.3, 0.9):
        at = torch.tensor([uniform])
        assert sample(logits_BV, at, 0.7, 0.9).tolist() == sample(logits_BV.float(), at, 0.7, 0.9).tolist()


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logits_that_are_not_finite_are_refused(bad: float, temperature: float):
    logits_BV = torch.zeros(3, 10)
    logits_BV[1, 4] = bad
    with pytest.raises(UnitError, match="not finite") as caught:
        sample(logits_BV, torch.zeros(3), temperature, 0.9)
    assert caught.value.code == "not_finite"
    assert "model.dtype" in str(caught.value.hint)


def test_a_row_in_which_every_token_is_forbidden_is_refused():
    with pytest.raises(UnitError, match="not finite"):
        sample(torch.full((1, 10), -torch.inf), torch.zeros(1), 0.7, 0.9)


def test_a_forbidden_token_is_never_sampled():
    logits_BV = torch.full((1, 10), -torch.inf)
    logits_BV[0, [2, 6]] = 0.0
    tokens = {int(sample(logits_BV, torch.tensor([u]), 1.0, 1.0)) for u in (0.0, 0.4, 0.6, 0.9999999)}
    assert tokens == {2, 6}


@settings(max_examples=30, deadline=None)
@given(seeds=st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=8, unique=True), steps=st.integers(1, 40))
def test_a_rollout_draws_the_same_numbers_in_every_batch(seeds: list[int], steps: int):
    together = uniforms(seeds, steps)
    assert together.dtype == torch.float32
    assert together.shape == (len(seeds), steps)
    assert bool(((together >= 0) & (together < 1)).all())
    for row, seed in enumerate(seeds):
        assert torch.equal(uniforms([seed], steps)[0], together[row])
    assert len({tuple(row) for row in together.tolist()}) == len(seeds)
