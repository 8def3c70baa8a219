"""The table of sums: what passes add to slots, compared with numpy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from persona_atlas.jobs.poolings import Span
from persona_atlas.workers.vllm.capture_plan import Sum
from persona_atlas.workers.vllm.inside import slot_table
from persona_atlas.workers.vllm.inside.slot_table import SlotTable
from persona_atlas.workers.vllm.inside.tracking import Stretch

L, D, SLOTS = 3, 5, 4
STOP = 99
MEAN: Sum = ("mean", "response")
LAST: Sum = ("last", "response")
PROMPT: Sum = ("mean", "prompt")


@pytest.fixture(params=[frozenset(), frozenset({"cpu"})], ids=["token by token", "by products"], autouse=True)
def devices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways of adding tokens, that of GPUs too."""
    monkeypatch.setattr(slot_table, "PRODUCT_DEVICES", request.param)
    monkeypatch.setattr(slot_table, "PRODUCT_LENGTH", 1)


def table(*sums: Sum) -> SlotTable:
    return SlotTable(sums, num_layers=L, slots=SLOTS, d_model=D, stop_ids=[STOP, 98], device="cpu")


def a_pass(num_tokens: int, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], torch.Tensor]:
    return [torch.randn(num_tokens, D).to(dtype) for _ in range(L)], torch.randint(0, 50, (num_tokens,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_and_last_tokens_of_many_passes_are_those_of_numpy(dtype: torch.dtype):
    rng = random.Random(0)
    torch.manual_seed(0)
    sums = table(MEAN, LAST, PROMPT)
    sums.reset(range(SLOTS))
    expected = {(key, slot): np.zeros((L, D)) for key in (MEAN, LAST, PROMPT) for slot in range(SLOTS)}
    ids = {(key, slot): 0 for key in (MEAN, PROMPT) for slot in range(SLOTS)}
    counts = dict.fromkeys(ids, 0)
    for _ in range(20):
        hidden, token_ids = a_pass(12, dtype)
        stretches: dict[Span, list[Stretch]] = {"response": [], "prompt": []}
        spans: tuple[Span, Span] = ("prompt", "response")
        begin = 0
        for slot in rng.sample(range(SLOTS), rng.randint(1, SLOTS)):
            for span in spans:
                end = begin + rng.randint(1, 2)
                if end > 12:
                    break
                stretches[span].append(Stretch(slot, begin, end, span == "response"))
                key = MEAN if span == "response" else PROMPT
                for layer in range(L):
                    part = hidden[layer][begin:end].double().numpy()
                    expected[key, slot][layer] += part.sum(axis=0)
                    if span == "response":
                        expected[LAST, slot][layer] = part[-1]
                ids[key, slot] += int(token_ids[begin:end].sum())
                counts[key, slot] += end - begin
                begin = end
        sums.add({span: some for span, some in stretches.items() if some}, hidden, token_ids)
    taken = sums.take([2, 0, 3, 1])
    for place, slot in enumerate([2, 0, 3, 1]):
        for key in (MEAN, LAST, PROMPT):
            got_LD = taken.values[key][:, place]
            assert got_LD.dtype == np.float32
            np.testing.assert_allclose(got_LD, expected[key, slot], rtol=1e-5, atol=1e-5)
        for key in (MEAN, PROMPT):
            assert (taken.counts[key][place], taken.id_sums[key][place]) == (counts[key, slot], ids[key, slot])
        assert taken.counts[LAST][place] == 1


def test_the_token_that_ends_a_turn_and_what_follows_it_do_not_count():
    sums = table(MEAN, LAST)
    sums.reset(range(SLOTS))
    hidden, _ = a_pass(4)
    for ids in ([7, STOP], [8, 9], [STOP, 10]):
        both: dict[Span, list[Stretch]] = {"response": [Stretch(0, 0, 1, True), Stretch(1, 1, 2, True)]}
        sums.add(both, hidden, torch.tensor([*ids, 0, 0]))
    taken = sums.take([0, 1])
    assert taken.counts == {MEAN: [2, 0], LAST: [1, 0]}
    assert taken.id_sums == {MEAN: [15, 0], LAST: [8, 0]}
    np.testing.assert_allclose(taken.values[MEAN][:, 0], 2 * torch.stack([one[0] for one in hidden]).numpy(), rtol=1e-6)
    assert not taken.values[MEAN][:, 1].any()


def test_in_a_text_that_exists_every_token_of_a_span_counts():
    sums = table(MEAN)
    sums.reset([0, 1])
    hidden, _ = a_pass(4)
    mixed: dict[Span, list[Stretch]] = {"response": [Stretch(0, 0, 2, False), Stretch(1, 2, 3, True)]}
    sums.add(mixed, hidden, torch.tensor([STOP, 5, STOP, 0]))
    assert sums.take([0, 1]).counts == {MEAN: [2, 0]}


def test_a_slot_that_is_used_again_starts_from_nothing():
    sums = table(MEAN, LAST)
    sums.reset([1, 2])
    hidden, _ = a_pass(4)
    sums.add({"response": [Stretch(1, 0, 1, True), Stretch(2, 1, 2, True)]}, hidden, torch.tensor([STOP, 6, 7, 8]))
    sums.reset([1])
    sums.add({"response": [Stretch(1, 2, 3, True)]}, hidden, torch.tensor([0, 0, 7, 8]))
    taken = sums.take([1, 2])
    assert (taken.counts[MEAN], taken.id_sums[MEAN]) == ([1, 1], [7, 6])
    np.testing.assert_allclose(taken.values[MEAN][0, 0], hidden[0][2].numpy(), rtol=1e-6)


def test_a_number_that_is_not_finite_stays_in_its_slot():
    sums = table(MEAN)
    sums.reset([0, 1])
    hidden, ids = a_pass(2)
    hidden[1][0, 2] = torch.nan
    sums.add({"response": [Stretch(0, 0, 1, True), Stretch(1, 1, 2, True)]}, hidden, ids)
    sums.reset([0])
    assert np.isfinite(sums.take([0, 1]).values[MEAN]).all()


def test_the_size_is_that_of_its_rows_and_of_the_spare_one():
    assert table(MEAN, PROMPT).num_bytes == 2 * L * (SLOTS + 1) * D * 4
