"""Guided decoding: a response is one of the allowed texts, and requests without any are as they would be alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.sampling.choices import Choices
from persona_atlas.workers.engine import CapturedRollout

from requests_of import engine_settings, requests_of

STOP = frozenset({0, 1})
ALLOWED = tuple(str(number) for number in range(101))


def choices() -> Choices:
    return Choices(lambda text: [ord(character) for character in text], STOP)


@given(
    texts=st.lists(st.text("abc", min_size=1, max_size=3), min_size=1, max_size=6, unique=True),
    seed=st.integers(0, 1000),
)
def test_whatever_the_logits_are_a_whole_allowed_text_is_written(texts: list[str], seed: int):
    guide, sampled = choices(), ""
    random = torch.Generator().manual_seed(seed)
    while True:
        logits = torch.randn((2, 128), generator=random)
        kept = guide.restrict(logits, [((), []), (tuple(texts), [ord(character) for character in sampled])])
        assert torch.equal(kept[0], logits[0])
        token = int(kept[1].argmax())
        if token in STOP:
            break
        sampled += chr(token)
    assert sampled in texts


def test_the_likeliest_of_the_allowed_tokens_is_kept_with_its_logit():
    logits = torch.arange(128.0)[None]
    assert choices().following(("1", "10", "2"), []) == [ord("1"), ord("2")]
    assert choices().following(("1", "10", "2"), [ord("1")]) == [0, 1, ord("0")]
    kept = choices().restrict(logits, [(("1", "10", "2"), [])])
    assert (int(kept.argmax()), float(kept.max())) == (ord("2"), ord("2"))
    assert torch.isinf(kept).sum() == 126
    assert torch.equal(logits[0], torch.arange(128.0)), "the model's logits are not changed"


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_of_guided_and_free_requests(tiny_model_directory: Path, temperature: float):
    settings = engine_settings(tiny_model_directory, layers=(0,), max_new_tokens=6)
    sampling = settings.sampling.model_copy(update={"temperature": temperature})
    engine = BuiltinEngine(replace(settings, sampling=sampling))
    free = requests_of(4)

    def run(requests: list) -> dict[object, CapturedRollout]:
        to_do = iter(requests)
        return {got.rollout.address: got for got in engine.generate(lambda: next(to_do, None))}

    alone = run(free)
    mixed = run([replace(one, choices=ALLOWED) if number % 2 else one for number, one in enumerate(free)])
    for number, request in enumerate(free):
        got = mixed[request.address].rollout
        if number % 2:
            assert got.response in ALLOWED
            assert got.finish_reason == "stop"
        else:
            assert got.response_token_ids == alone[request.address].rollout.response_token_ids
