"""Keys and values that are kept between the turns of conversations change no vector, and spare the tokens before."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.jobs.interventions import Intervention
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.batching.kept_turns import KeptTurns
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.passes.kv_cache import KVCache, PrefixKV
from persona_atlas.workers.engine import CapturedRollout

from dialogues import dialogue_attempt
from fed_tokens import count_tokens
from plain_forward import PlainModel, conversation_ids, pool, relative_errors
from requests_of import chat, engine_settings
from tiny_families import N_LAYERS, save_tiny_family

SCRIPTS = [[f"Why {number}? " * (1 + number), "And then what?", "Tell me more.", "Is it so?"] for number in range(6)]
TURNS = ("response_mean", "response_last", "prompt_last", "user_mean")


def keeping(
    directory: Path,
    poolings: tuple[str, ...] = TURNS,
    *,
    keeps: bool = True,
    layers: Sequence[int] = range(N_LAYERS),
    **options: Any,
) -> BuiltinEngine:
    settings = engine_settings(directory, layers=layers, max_new_tokens=10, poolings=poolings, **options)
    return BuiltinEngine(replace(settings, kept_turns=0.5 if keeps else 0.0))


def converse(
    engine: BuiltinEngine, scripts: Sequence[Sequence[str]] = SCRIPTS, *, turn_by_turn: bool = False
) -> list[CapturedRollout]:
    """Have all conversations at once, or each turn in a stream of its own; the rows by conversation and turn."""
    attempt = dialogue_attempt("pirate", scripts)
    requests = {request.address: request for request in attempt.first_requests()}
    waiting, later = deque(requests.values()), deque[RolloutRequest]()
    rows: list[CapturedRollout] = []

    def following() -> RolloutRequest | None:
        return waiting.popleft() if waiting else None

    while waiting:
        for row in engine.generate(following):
            rows.append(row)
            after = attempt.requests.following(requests[row.rollout.address], row.rollout)
            if after is not None:
                requests[after.address] = after
                (later if turn_by_turn else waiting).append(after)
        waiting += later
        later.clear()
    assert len(rows) == sum(map(len, scripts))
    return sorted(rows, key=lambda row: (row.rollout.address.question_index, row.rollout.address.turn_index))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [100_000, 700], ids=["room for all", "some forgotten"])
def test_vectors_of_later_turns_equal_plain_passes_over_the_whole_conversation(
    family: str, batch_tokens: int, tmp_path: Path
):
    directory = save_tiny_family(tmp_path, family)
    plain = PlainModel(directory)
    for row in converse(keeping(directory, batch_tokens=batch_tokens)):
        content = row.rollout.num_content_tokens
        states = plain.outputs(conversation_ids(row.rollout))
        expected = pool(states, row.rollout, row.user_span)
        for (point, pooling), vector in row.vectors_LD.items():
            assert point == "resid_post"
            if content or not pooling.startswith("response"):
                assert relative_errors(vector, expected[pooling]).max() < 1e-4, (row.rollout.address, pooling)


def test_a_later_turn_computes_its_new_tokens_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    directory = save_tiny_family(tmp_path, "llama")
    counts: dict[bool, int] = {}
    rows: dict[bool, list[CapturedRollout]] = {}
    for keeps in (False, True):
        engine = keeping(directory, keeps=keeps)
        seen = count_tokens(engine, monkeypatch)
        rows[keeps] = converse(engine)
        counts[keeps] = sum(seen)
    assert [row.rollout for row in rows[True]] == [row.rollout for row in rows[False]]
    # Of a conversation, each token once, apart from the template's between a response and the next message.
    longest = [row.rollout for row in rows[True] if row.rollout.address.turn_index == 7]
    once = sum(len(conversation_ids(rollout)) for rollout in longest)
    assert counts[True] <= once + 3 * 4 * len(SCRIPTS) < 0.7 * counts[False]


@pytest.mark.parametrize("turn_by_turn", [False, True], ids=["one stream", "a stream for each turn"])
def test_what_is_kept_equals_the_keys_and_values_of_a_plain_pass(
    turn_by_turn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Where no other is running, the last pass over a response ends at the top captured layer, here the first."""
    engine = keeping(save_tiny_family(tmp_path, "llama"), layers=(0,))
    kept: list[tuple[list[int], PrefixKV]] = []
    keep = KeptTurns.keep

    def noting(turns: KeptTurns, request: RolloutRequest, token_ids: Sequence[int], values: PrefixKV) -> None:
        kept.append((list(token_ids), values))
        keep(turns, request, token_ids, values)

    monkeypatch.setattr(KeptTurns, "keep", noting)
    rows = [row for script in SCRIPTS[:2] for row in converse(engine, [script], turn_by_turn=turn_by_turn)]
    assert (len(rows), len(kept)) == (8, 6)
    plain = PlainModel(tmp_path).model
    for token_ids, values in kept:
        with torch.no_grad():
            cache = plain(input_ids=torch.tensor([token_ids]), use_cache=True).past_key_values
        for layer, pair in zip(cache.layers, values.layers, strict=True):
            assert pair is not None
            torch.testing.assert_close(pair[0], layer.keys[0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(pair[1], layer.values[0], rtol=1e-3, atol=1e-4)


def test_a_mean_over_prompts_has_every_token(tmp_path: Path):
    directory = save_tiny_family(tmp_path, "llama")
    plain = PlainModel(directory)
    for row in converse(keeping(directory, ("prompt_mean", "response_mean"))):
        expected = pool(plain.outputs(conversation_ids(row.rollout)), row.rollout, None)
        vector = row.vectors_LD["resid_post", "prompt_mean"]
        assert relative_errors(vector, expected["prompt_mean"]).max() < 1e-4


def kept_of(num_tokens: int) -> PrefixKV:
    return PrefixKV([(torch.arange(float(num_tokens))[None, :, None], torch.zeros(1, num_tokens, 1))])


def request_of(conversation: int, turn: int | None = 1, system_prompt: str = "Be.") -> RolloutRequest:
    address = RolloutAddress("role", "pirate", "pos", 0, conversation, 0, turn)
    return RolloutRequest(address, chat(system_prompt, "?"), 0, goes_on=True)


def test_a_prefix_ends_where_the_tokens_differ_and_is_taken_once():
    kept = KeptTurns(100)
    kept.keep(request_of(0), [*range(20), 90, 91], kept_of(22))
    prefix = kept.take(request_of(0, 3), [*range(20), 80, 81, 82], 22)
    assert prefix is not None
    assert prefix.length == 20
    assert prefix.kept is not None
    (pair,) = prefix.kept.layers
    assert pair is not None
    assert pair[0].ravel().tolist() == list(np.arange(20.0))
    assert kept.take(request_of(0, 3), list(range(20)), 19) is None
    assert kept.num_tokens == 0


@pytest.mark.parametrize(
    "other",
    [
        request_of(1, 3),
        request_of(0, 3, "Be another."),
    ],
    ids=["another conversation", "the side of the user"],
)
def test_another_request_gets_nothing(other: RolloutRequest):
    kept = KeptTurns(100)
    kept.keep(request_of(0), list(range(20)), kept_of(20))
    assert kept.take(other, list(range(30)), 29) is None
    assert kept.num_tokens == 20


def test_what_finds_no_room_is_not_kept_and_what_is_there_stays():
    kept = KeptTurns(50)
    for number in range(3):
        if kept.has_room(request_of(number), 20):
            kept.keep(request_of(number), list(range(20)), kept_of(20))
    assert kept.num_tokens == 40
    found = [kept.take(request_of(number, 3), list(range(30)), 29) for number in range(3)]
    assert [one is not None for one in found] == [True, True, False]


def test_what_nobody_asks_for_gives_way_in_the_end():
    kept = KeptTurns(50)
    kept.keep(request_of(0), list(range(40)), kept_of(40))
    found = [kept.has_room(request_of(1), 40) for _ in range(20)]
    assert found[:16] == [False] * 16
    assert found[16]
    assert kept.num_tokens == 0


def test_what_does_not_go_on_is_not_kept():
    kept = KeptTurns(50)
    assert kept.has_room(request_of(0), 50)
    assert not kept.has_room(request_of(0), 51)
    assert not kept.has_room(replace(request_of(0), goes_on=False), 20)
    assert not kept.has_room(replace(request_of(0), intervention=Intervention()), 20)


@pytest.mark.parametrize("at_once", [2, 6])
def test_memory_that_kept_turns_take_is_given_up_before_anything_fails(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """On a device that has room for less than half of the batch's tokens."""
    directory = save_tiny_family(tmp_path, "llama")
    engine = keeping(directory, batch_tokens=4000)
    most = 900
    reserve, keep = KVCache.reserve, KeptTurns.keep
    running: list[KVCache] = []

    def require_room(kept: KeptTurns | None) -> None:
        cache = running[-1]
        if cache.num_slots * cache.num_positions + (0 if kept is None else kept.num_tokens) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    def reserving(cache: KVCache, *sizes: int) -> None:
        reserve(cache, *sizes)
        running[:] = [cache]
        require_room(engine._kept_turns)  # pyright: ignore[reportPrivateUsage]

    def keeping_turn(kept: KeptTurns, *turn: Any) -> None:
        keep(kept, *turn)
        require_room(kept)

    monkeypatch.setattr(KVCache, "reserve", reserving)
    monkeypatch.setattr(KeptTurns, "keep", keeping_turn)
    scripts = [[f"{number} why? " * 4] * 6 for number in range(6)]
    rows = [row for first in range(0, 6, at_once) for row in converse(engine, scripts[first : first + at_once])]
    assert len(rows) == 36
    assert engine.batch_tokens < 4000


def test_what_runs_and_what_is_kept_stay_within_the_tokens_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    engine = keeping(save_tiny_family(tmp_path, "llama"), batch_tokens=1200)
    reserve, keep = KVCache.reserve, KeptTurns.keep
    held = {"running": 0, "kept": 0}
    sums: list[int] = []

    def reserving(cache: KVCache, *sizes: int) -> None:
        reserve(cache, *sizes)
        held["running"] = cache.num_slots * cache.num_positions
        sums.append(sum(held.values()))

    def keeping_turn(kept: KeptTurns, *turn: Any) -> None:
        keep(kept, *turn)
        held["kept"] = kept.num_tokens
        sums.append(sum(held.values()))

    monkeypatch.setattr(KVCache, "reserve", reserving)
    monkeypatch.setattr(KeptTurns, "keep", keeping_turn)
    converse(engine)
    assert max(sums) <= 1200
    assert held["kept"] > 0
