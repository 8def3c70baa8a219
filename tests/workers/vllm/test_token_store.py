"""Every token of chosen layers: kept in the order of passes, apart for every slot."""

from __future__ import annotations

import numpy as np
import torch
from persona_atlas.workers.vllm.inside.token_store import TokenStore
from persona_atlas.workers.vllm.inside.tracking import Stretch


def test_tokens_are_kept_slot_by_slot_in_their_order():
    store = TokenStore(num_layers=2, d_model=3, device="cpu")
    store.reset([4, 7])
    passes = [[torch.randn(5, 3) for _ in range(2)] for _ in range(3)]
    for number, hidden in enumerate(passes):
        token_ids = torch.arange(5, dtype=torch.int32) + 10 * number
        store.add([Stretch(7, 0, 2, False), Stretch(4, 4, 5, True)], hidden, token_ids)
    of_seven, of_four = store.take([7, 4])
    seven, four = of_seven.tokens_KND, of_four.tokens_KND
    assert (of_seven.token_ids, of_four.token_ids) == ([0, 1, 10, 11, 20, 21], [4, 14, 24])
    assert (seven.dtype, seven.shape, four.shape) == (np.float32, (2, 6, 3), (2, 3, 3))
    for layer in range(2):
        np.testing.assert_array_equal(seven[layer], np.concatenate([one[layer][:2].numpy() for one in passes]))
        np.testing.assert_array_equal(four[layer], np.stack([one[layer][4].numpy() for one in passes]))
    assert seven.base is None, "the tokens of a whole pass would stay in memory"


def test_a_slot_that_is_used_again_or_was_freed_has_nothing_of_before():
    store = TokenStore(num_layers=1, d_model=2, device="cpu")
    store.reset([0])
    store.add([Stretch(0, 0, 2, True)], [torch.randn(2, 2)], torch.tensor([5, 6]))
    store.reset([0])
    assert store.take([0])[0].tokens_KND.shape == (1, 0, 2)
    store.add([Stretch(0, 0, 1, True)], [torch.randn(2, 2)], torch.tensor([5, 6]))
    assert store.take([0])[0].tokens_KND.shape == (1, 0, 2)
