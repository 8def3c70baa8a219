"""What an engine promises about ends, lengths and seeds, held to a tiny random model."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import InputError, UnitError
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import TokenisedText

from fed_tokens import count_tokens
from plain_forward import PlainModel, conversation_ids, pool, relative_errors
from requests_of import chat, engine_settings, generate, requests_of
from tiny_families import N_LAYERS, STOP_IDS, save_tiny_family
from tiny_models import END_ID, save_tiny_llama

MAX_NEW = 12


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(tmp_path_factory.mktemp("engine"), "llama")


@pytest.fixture(scope="module")
def engine(directory: Path) -> BuiltinEngine:
    return BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS), max_new_tokens=MAX_NEW))


def test_finish_reasons_and_content_counts_follow_the_end_of_turn_token(engine: BuiltinEngine):
    rollouts = [row.rollout for row in generate(engine, requests_of(40))]
    assert {rollout.finish_reason for rollout in rollouts} == {"stop", "length"}
    for rollout in rollouts:
        content = rollout.response_token_ids[: rollout.num_content_tokens]
        assert not set(content) & set(STOP_IDS)
        if rollout.finish_reason == "stop":
            assert len(rollout.response_token_ids) == rollout.num_content_tokens + 1
            assert rollout.response_token_ids[-1] in STOP_IDS
        else:
            assert len(rollout.response_token_ids) == rollout.num_content_tokens == MAX_NEW


def test_a_response_ends_at_the_token_that_only_the_template_knows(directory: Path, tmp_path: Path):
    """As of checkpoints whose settings name the end of a document and not the end of a turn."""
    other = shutil.copytree(directory, tmp_path / "wrong-end")
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps(settings | {"eos_token_id": 0}))
    settings = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": "<|pad|>"}))
    engine = BuiltinEngine(engine_settings(other, layers=range(N_LAYERS), max_new_tokens=60))
    rollouts = [row.rollout for row in generate(engine, requests_of(40))]
    assert engine.loaded.stop_ids == {0, END_ID}
    ended = [rollout for rollout in rollouts if END_ID in rollout.response_token_ids]
    assert ended
    for rollout in ended:
        assert rollout.response_token_ids.index(END_ID) == rollout.num_content_tokens
        assert rollout.finish_reason == "stop"


def test_the_last_sampled_token_counts_when_a_response_is_cut_by_length(engine: BuiltinEngine, directory: Path):
    plain = PlainModel(directory)
    cut = [row for row in generate(engine, requests_of(40)) if row.rollout.finish_reason == "length"]
    assert cut
    for row in cut[:3]:
        whole, _ = plain.run(conversation_ids(row.rollout))
        without_last, _ = plain.run(conversation_ids(row.rollout)[:-1])
        got_LD = row.vectors_LD["resid_post", "response_mean"]
        assert relative_errors(got_LD, pool(whole, row.rollout)["response_mean"]).max() < 1e-4
        assert relative_errors(got_LD, pool(without_last, row.rollout)["response_mean"]).min() > 1e-2


def test_the_end_of_turn_token_is_not_counted(engine: BuiltinEngine, directory: Path):
    plain = PlainModel(directory)
    ended = [
        row
        for row in generate(engine, requests_of(40))
        if row.rollout.finish_reason == "stop" and row.rollout.num_content_tokens
    ]
    assert ended
    for row in ended[:3]:
        ids = [*row.rollout.prompt_token_ids, *row.rollout.response_token_ids]
        with_end, _ = plain.run(ids)
        without_end, _ = plain.run(ids[:-1])
        got_LD = row.vectors_LD["resid_post", "response_last"]
        assert relative_errors(got_LD, pool(without_end, row.rollout)["response_last"]).max() < 1e-4
        assert relative_errors(got_LD, pool(with_end, row.rollout)["response_last"]).min() > 1e-2


def test_an_empty_response_has_no_numbers_in_response_poolings_and_all_in_prompt_poolings(engine: BuiltinEngine):
    empty = [row for row in generate(engine, requests_of(40)) if not row.rollout.has_vector]
    assert empty
    for row in empty:
        assert row.rollout.response == ""
        for (_, pooling), vector_LD in row.vectors_LD.items():
            assert np.isnan(vector_LD).all() if pooling.startswith("response_") else np.isfinite(vector_LD).all()


def test_a_response_of_a_single_token_is_its_own_mean_and_last(engine: BuiltinEngine):
    single = [row for row in generate(engine, requests_of(60)) if row.rollout.num_content_tokens == 1]
    assert single
    for row in single:
        mean_LD, last_LD = (row.vectors_LD["resid_post", name] for name in ("response_mean", "response_last"))
        np.testing.assert_array_equal(mean_LD, last_LD)


def test_a_rollout_is_the_same_with_other_batch_mates_and_in_another_order(engine: BuiltinEngine):
    requests = requests_of(20)
    alone = {row.rollout.address: row for request in requests for row in generate(engine, [request])}
    shuffled = random.Random(4).sample(requests, 13)
    together = generate(engine, shuffled)
    assert [row.rollout.address for row in together] == [request.address for request in shuffled]
    for row in together:
        assert row.rollout == alone[row.rollout.address].rollout
        for array, vector_LD in row.vectors_LD.items():
            np.testing.assert_allclose(vector_LD, alone[row.rollout.address].vectors_LD[array], rtol=1e-4, atol=1e-4)


def test_another_seed_gives_another_response_and_is_kept_with_it(engine: BuiltinEngine):
    (request,) = requests_of(1)
    again = dataclasses.replace(request.address, sample_index=1)
    other = dataclasses.replace(request, address=again, seed=request.seed + 1)
    first, second = generate(engine, [request, other])
    assert first.rollout.response_token_ids != second.rollout.response_token_ids
    assert (first.rollout.seed, second.rollout.seed) == (request.seed, request.seed + 1)


def test_the_response_text_is_its_content_tokens_decoded(tmp_path: Path):
    directory = save_tiny_llama(tmp_path / "model")
    (row,) = generate(BuiltinEngine(engine_settings(directory, layers=[0])), requests_of(1))
    assert END_ID not in row.rollout.response_token_ids[: row.rollout.num_content_tokens]
    assert row.rollout.response
    assert "<|end|>" not in row.rollout.response


def test_greedy_decoding_follows_the_likeliest_token_of_a_plain_forward_pass(directory: Path):
    settings = engine_settings(directory, layers=[0], max_new_tokens=6, temperature=0.0)
    plain = PlainModel(directory)
    for row in generate(BuiltinEngine(settings), requests_of(4)):
        ids = list(row.rollout.prompt_token_ids)
        for token in row.rollout.response_token_ids:
            logits_V = plain.model(input_ids=torch.tensor([ids])).logits[0, -1]
            assert int(logits_V.argmax()) == token
            ids.append(token)


def test_a_prompt_that_leaves_no_room_in_the_context_is_a_unit_error(tmp_path: Path):
    directory = save_tiny_llama(tmp_path / "model", max_context=64)
    engine = BuiltinEngine(engine_settings(directory, layers=[0], max_new_tokens=10))
    (request,) = requests_of(1, system_prompt="")
    turns = len(engine.renderer.render(chat("", "")))
    fitting = dataclasses.replace(request, messages=chat("", "x" * (64 - 10 - turns)))
    (row,) = generate(engine, [fitting])
    assert len(row.rollout.prompt_token_ids) == 54
    beyond = dataclasses.replace(fitting, messages=chat("", fitting.question + "x"))
    asked = iter([fitting, beyond, request])
    rollouts = engine.generate(lambda: next(asked, None))
    # What is under way is finished first: it is not at fault.
    assert next(rollouts).rollout.address == fitting.address
    with pytest.raises(UnitError, match="55 prompt tokens and 10 new ones exceed") as caught:
        next(rollouts)
    assert caught.value.code == "too_long"
    assert str(beyond.address) in caught.value.message
    assert "Set sampling.max_new_tokens to at most 9" in str(caught.value.hint)
    assert next(asked) is request


def test_requests_are_asked_for_as_room_comes_and_rollouts_come_as_they_end(directory: Path):
    (longest, *_) = sorted(requests_of(40), key=lambda request: -len(request.question))
    engine = BuiltinEngine(engine_settings(directory, layers=[0], max_new_tokens=MAX_NEW, batch_tokens=400))
    room = 400 // (len(engine.renderer.render(longest.messages)) + MAX_NEW)
    asked = given = 0
    to_ask = iter(requests_of(40))

    def next_request() -> RolloutRequest | None:
        nonlocal asked
        asked += 1
        return next(to_ask, None)

    for _ in engine.generate(next_request):
        given += 1
        # One more may be held back for want of room, and short prompts leave room for more than the longest would.
        assert asked <= given + 3 * room + 1
    assert given == 40


def test_a_pause_in_the_requests_is_no_end_while_rollouts_are_under_way(engine: BuiltinEngine):
    requests: list[RolloutRequest | None] = [*requests_of(2), None, *requests_of(5)[2:]]
    rows = list(engine.generate(lambda: requests.pop(0) if requests else None))
    assert len(rows) == 5


def test_rollouts_that_share_a_system_prompt_read_it_once(directory: Path, monkeypatch: pytest.MonkeyPatch):
    engine = BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS), max_new_tokens=2))
    asked = [(request, chat("You are a pirate. " * 8, request.question)) for request in requests_of(12)]
    requests = [dataclasses.replace(request, messages=messages) for request, messages in asked]
    prompt_tokens = sum(len(engine.renderer.render(r.messages)) for r in requests)
    seen = count_tokens(engine, monkeypatch)
    rows = generate(engine, requests)
    shared = len(engine.renderer.shared_prefix(requests[0].opening))
    fed = sum(row.rollout.num_content_tokens for row in rows)
    assert sum(seen) == prompt_tokens - 11 * shared + fed


def test_texts_that_begin_alike_read_their_prefix_once(directory: Path, monkeypatch: pytest.MonkeyPatch):
    engine = BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS)))
    prefixes = (tuple(range(40, 70)), tuple(range(80, 110)))
    texts = [TokenisedText(f"text {n}", (*prefixes[n % 2], 150 + n, *range(50, 60)), ((35, 41),)) for n in range(6)]
    seen = count_tokens(engine, monkeypatch)
    engine.capture(texts)
    assert sum(seen) == 6 * 41 - 4 * 30


def test_a_consumer_that_stops_early_leaves_the_engine_usable(engine: BuiltinEngine):
    to_ask = iter(requests_of(20))
    rollouts = engine.generate(lambda: next(to_ask, None))
    next(rollouts)
    assert not torch.is_inference_mode_enabled()
    first = generate(engine, requests_of(4))
    assert next(rollouts).rollout.address
    assert [row.rollout for row in generate(engine, requests_of(4))] == [row.rollout for row in first]


def test_a_directory_that_is_no_model_is_an_input_error(tmp_path: Path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be used") as caught:
        BuiltinEngine(engine_settings(tmp_path, layers=[0]))
    assert caught.value.field == "model.source"


def test_weights_that_were_cut_short_are_an_input_error(directory: Path, tmp_path: Path):
    broken = tmp_path / "broken"
    shutil.copytree(directory, broken)
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        BuiltinEngine(engine_settings(broken, layers=[0]))
    assert caught.value.field == "model.source"


def test_a_model_with_layers_that_are_not_attention_is_refused(tmp_path: Path):
    save_tiny_family(tmp_path / "model", "qwen3")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"layer_types": ["linear_attention"] * len(config["layer_types"])}))
    with pytest.raises(InputError, match="linear_attention"):
        BuiltinEngine(engine_settings(tmp_path / "model", layers=range(N_LAYERS), max_new_tokens=MAX_NEW))
