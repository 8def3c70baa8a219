"""What every engine and capture mode must give: the vectors of one-by-one plain forward passes, whatever the batch.

Each family's requests hold empty responses, responses of one token and cut ones, prompts of many lengths, with and
without a system prompt; some rollouts go on while others end and new ones take their places.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import UnitError
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import CapturedRollout, TokenisedText
from safetensors.torch import load_file, save_file

from conformance import (
    MAX_NEW,
    MODES,
    TOLERANCE,
    Mode,
    RememberingModel,
    as_generated,
    as_read,
    assert_equal_to_plain,
)
from plain_forward import ALL_POOLINGS, POINTS, POOLINGS, PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of
from tiny_families import FAMILIES, N_LAYERS, save_tiny_family


@pytest.fixture(scope="module")
def directory_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def find(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_family(tmp_path_factory.mktemp(family), family)
        return made[family]

    return find


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_hook_point_and_pooling_equals_a_plain_forward_pass_in_every_family(
    directory_of: Callable[[str], Path], family: str
):
    directory = directory_of(family)
    # Room for about eight rollouts: most of them join while others run.
    settings = engine_settings(
        directory,
        layers=range(N_LAYERS),
        hook_points=POINTS,
        poolings=ALL_POOLINGS,
        batch_tokens=1000,
        token_layers=(1, N_LAYERS - 1),
    )
    engine = BuiltinEngine(settings)
    rows = generate(engine, requests_of(40))
    lengths = {row.rollout.num_content_tokens for row in rows}
    assert {0, 1, MAX_NEW} <= lengths, "there should be an empty, a one-token and a cut response"
    assert len(lengths) >= 6
    assert len({len(row.rollout.prompt_token_ids) for row in rows}) >= 6
    plain = RememberingModel(directory)
    for mode in (as_generated, as_read):
        assert_equal_to_plain(mode(engine, rows), plain, settings.token_layers)


@MODES
def test_tokens_alone_are_kept_of_their_layers_and_no_other_array_is_made(
    directory_of: Callable[[str], Path], mode: Mode
):
    directory = directory_of("qwen3")
    settings = engine_settings(directory, layers=(2,), poolings=(), token_layers=(2,), batch_tokens=600)
    engine = BuiltinEngine(settings)
    rows = mode(engine, generate(engine, requests_of(12)))
    plain = PlainModel(directory)
    for row in rows:
        assert row.vectors_LD == {}
        expected_TD = plain.places(conversation_ids(row.rollout))["resid_post"][2, len(row.rollout.prompt_token_ids) :]
        got_KTD = row.tokens_KTD["resid_post", "tokens"]
        assert got_KTD.shape == (1, *expected_TD.shape)
        assert relative_errors(got_KTD[0], expected_TD).max(initial=0) < TOLERANCE
    # Nothing of the batch or the pass stays with a rollout: it could be kept for long.
    assert all(array.base is None for row in rows for array in row.tokens_KTD.values())


@MODES
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2"])
def test_the_last_layer_is_captured_before_the_final_norm(directory_of: Callable[[str], Path], family: str, mode: Mode):
    directory = directory_of(family)
    engine = BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS)))
    plain = PlainModel(directory)
    rows = mode(engine, generate(engine, requests_of(3)))
    for row in rows:
        _, hidden_LTD = plain.run(conversation_ids(row.rollout))
        got_LD = row.vectors_LD["resid_post", "prompt_mean"]
        expected_LD = pool(hidden_LTD, row.rollout)["prompt_mean"]
        # Hugging Face gives the last block's output after the norm, all others as they are.
        assert relative_errors(got_LD[:-1], expected_LD[:-1]).max() < TOLERANCE
        assert relative_errors(got_LD[-1:], expected_LD[-1:]).max() > 0.01


@pytest.mark.parametrize("family", ["gemma3", "qwen3_moe", "gpt2"])
def test_neither_batch_nor_order_nor_neighbours_change_a_rollout_or_its_vectors(
    directory_of: Callable[[str], Path], family: str
):
    directory = directory_of(family)
    requests = requests_of(16)
    engines = [
        BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS), poolings=ALL_POOLINGS, batch_tokens=budget))
        for budget in (1, 600, 100_000)
    ]
    modes = (as_generated, as_read)
    first = generate(engines[0], requests)
    alone = {mode: {row.rollout.address: row for row in mode(engines[0], first)} for mode in modes}
    for seed, engine in enumerate(engines):
        rows = generate(engine, random.Random(seed).sample(requests, 11))
        for mode in modes:
            for row in mode(engine, rows):
                same = alone[mode][row.rollout.address]
                assert row.rollout == same.rollout
                for array, vector_LD in row.vectors_LD.items():
                    np.testing.assert_allclose(vector_LD, same.vectors_LD[array], rtol=1e-4, atol=1e-4)


def test_every_row_of_a_full_batch_belongs_to_its_rollout(directory_of: Callable[[str], Path], tmp_path: Path):
    """Block 0 is made to hand on the stream as it came: a vector is a mean of embeddings, and tells whose it is."""
    directory = tmp_path / "transparent"
    shutil.copytree(directory_of("llama"), directory)
    weights = load_file(directory / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        weights[f"model.layers.0.{name}.weight"].zero_()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    settings = engine_settings(directory, layers=[0], batch_tokens=1500)
    engine = BuiltinEngine(settings)
    rows = generate(engine, requests_of(60))
    embedding = PlainModel(directory).model.get_input_embeddings().weight.detach().double().numpy()
    for row in [*rows, *as_read(engine, rows)]:
        said = list(row.rollout.response_token_ids[: row.rollout.num_content_tokens])
        if said:
            got_D = row.vectors_LD["resid_post", "response_mean"][0]
            np.testing.assert_allclose(got_D, embedding[said].mean(axis=0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            row.vectors_LD["resid_post", "prompt_mean"][0],
            embedding[list(row.rollout.prompt_token_ids)].mean(axis=0),
            rtol=1e-4,
            atol=1e-5,
        )


@pytest.mark.parametrize("change", ["another token's", "another layer's", "one that is missing"])
def test_the_canary_sees_tokens_that_are_not_the_rollouts_own(directory_of: Callable[[str], Path], change: str):
    settings = engine_settings(directory_of("llama"), layers=range(N_LAYERS), token_layers=(1, 3))
    engine = BuiltinEngine(settings)
    row = max(generate(engine, requests_of(8)), key=lambda row: row.rollout.num_content_tokens)
    canary = engine.canary(row)
    assert canary is not None
    assert max(canary.relative_error_L) < TOLERANCE
    tokens_KTD = row.tokens_KTD["resid_post", "tokens"].copy()
    if change == "another token's":
        tokens_KTD[1, 5] = tokens_KTD[1, 6]
    elif change == "another layer's":
        tokens_KTD[1] = tokens_KTD[0]
    else:
        tokens_KTD[1, -1] = 0
    wrong = engine.canary(CapturedRollout(row.rollout, row.vectors_LD, {("resid_post", "tokens"): tokens_KTD}))
    assert wrong is not None
    assert wrong.relative_error_L[3] > engine.canary_limit > wrong.relative_error_L[1]


@MODES
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_in_bfloat16_the_vectors_point_where_the_plain_ones_do(
    directory_of: Callable[[str], Path], family: str, mode: Mode
):
    directory = directory_of(family)
    settings = engine_settings(
        directory, layers=range(N_LAYERS), poolings=ALL_POOLINGS, dtype="bfloat16", batch_tokens=800
    )
    engine = BuiltinEngine(settings)
    plain = PlainModel(directory, torch.bfloat16)
    for row in mode(engine, generate(engine, requests_of(12))):
        states_LTD, _ = plain.run(conversation_ids(row.rollout))
        for (_, pooling), got_LD in row.vectors_LD.items():
            if row.rollout.has_vector or not pooling.startswith("response_"):
                expected_LD = pool(states_LTD, row.rollout)[pooling]
                norms_L = np.linalg.norm(got_LD, axis=1) * np.linalg.norm(expected_LD, axis=1)
                assert ((got_LD * expected_LD).sum(axis=1) / norms_L).min() > 0.999


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_canary_sees_what_is_right_and_what_is_wrong(directory_of: Callable[[str], Path], family: str):
    engine = BuiltinEngine(
        engine_settings(directory_of(family), layers=range(N_LAYERS), hook_points=POINTS, poolings=ALL_POOLINGS)
    )
    first, second = [row for row in generate(engine, requests_of(20)) if row.rollout.has_vector][:2]
    canary = engine.canary(first)
    assert canary is not None
    assert canary.num_rollouts == 1
    assert len(canary.relative_error_L) == len(canary.cosine_L) == N_LAYERS
    assert max(canary.relative_error_L) < TOLERANCE
    assert min(canary.cosine_L) > 0.9999
    assert canary.taken_for == ""
    mixed = engine.canary(replace(first, vectors_LD=second.vectors_LD), [second])
    assert mixed is not None
    assert mixed.taken_for == "the vectors of another rollout"
    assert min(mixed.relative_error_L) > engine.canary_limit
    shifted = {array: np.roll(vector_LD, 1, axis=0) for array, vector_LD in first.vectors_LD.items()}
    wrong_layer = engine.canary(replace(first, vectors_LD=shifted))
    assert wrong_layer is not None
    assert wrong_layer.taken_for == "the vector of another layer"
    assert min(wrong_layer.relative_error_L) > engine.canary_limit


@pytest.mark.parametrize("alike", [0, 20])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_text_of_several_turns_gives_a_vector_for_each(directory_of: Callable[[str], Path], family: str, alike: int):
    directory = directory_of(family)
    settings = engine_settings(directory, layers=range(N_LAYERS), hook_points=POINTS, poolings=ALL_POOLINGS)
    engine = BuiltinEngine(settings)
    plain = PlainModel(directory)
    rng = random.Random(0)
    # Two halves that begin alike, as the rollouts of two system prompts do.
    prefixes = [[rng.randrange(40, 200) for _ in range(alike)] for _ in range(2)]
    turns = ((3, 9), (20, 20), (30, 31))
    # Of the first response the user's words lie partly in what another text reads, where texts begin alike; the other
    # two answer one message.
    users = ((alike // 2, alike + 2), (alike + 12, alike + 17), (alike + 12, alike + 17))
    texts = [
        TokenisedText(
            f"text {n}",
            (*prefixes[n % 2], *(rng.randrange(40, 200) for _ in range(60))),
            tuple((alike + start, alike + stop + n * (start == 30)) for start, stop in turns),
            users,
        )
        for n in range(8)
    ]
    for text, captured in zip(texts, engine.capture(texts), strict=True):
        states = plain.places(text.token_ids)
        for (start, stop), user, vectors in zip(text.responses, users, captured.vectors_LD, strict=True):
            assert len(vectors) == len(POINTS) * len(ALL_POOLINGS)
            for (point, pooling), got_LD in vectors.items():
                first, last = (start, stop) if pooling.startswith("response_") else (0, start)
                if pooling == "user_mean":
                    first, last = user
                if first == last:
                    assert np.isnan(got_LD).all()
                    continue
                span_LTD = states[point][:, first:last].astype(np.float64)
                expected_LD = span_LTD.mean(axis=1) if pooling.endswith("_mean") else span_LTD[:, -1]
                assert relative_errors(got_LD, expected_LD).max() < TOLERANCE


def test_only_the_asked_layers_and_arrays_come_back_in_their_order(directory_of: Callable[[str], Path]):
    directory = directory_of("llama")
    requests = requests_of(6)
    whole, part = (
        BuiltinEngine(engine_settings(directory, layers=layers, poolings=poolings))
        for layers, poolings in ((range(N_LAYERS), POOLINGS), ((1, 2), ("response_last", "response_mean")))
    )
    rows, parts = generate(whole, requests), generate(part, requests)
    for row, got in zip([*rows, *as_read(whole, rows)], [*parts, *as_read(part, parts)], strict=True):
        assert list(got.vectors_LD) == [("resid_post", "response_last"), ("resid_post", "response_mean")]
        for array, vector_LD in got.vectors_LD.items():
            np.testing.assert_allclose(vector_LD, row.vectors_LD[array][[1, 2]], rtol=1e-4, atol=1e-5)


def broken(directory: Path, target: Path, value: float) -> Path:
    shutil.copytree(directory, target)
    weights = load_file(target / "model.safetensors")
    weights["model.layers.2.mlp.down_proj.weight"][5, 7] = value
    save_file(weights, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_number_that_is_not_finite_fails_the_call_and_names_the_layer_where_it_began(
    directory_of: Callable[[str], Path], tmp_path: Path, pooling: str, value: float
):
    settings = engine_settings(
        broken(directory_of("llama"), tmp_path / "broken", value), layers=range(N_LAYERS), poolings=[pooling]
    )
    engine = BuiltinEngine(settings)
    with pytest.raises(UnitError, match="layer 2") as caught:
        generate(engine, requests_of(3))
    assert caught.value.code == "not_finite"
    assert "set model.dtype to bfloat16 or float32" in str(caught.value)
    with pytest.raises(UnitError, match="layer 2") as caught:
        engine.capture([TokenisedText("a text", tuple(range(40, 60)), ((5, 9),))])
    assert caught.value.code == "not_finite"


def test_a_token_that_is_not_finite_fails_the_call_though_no_pooling_shows_it(
    directory_of: Callable[[str], Path], tmp_path: Path
):
    directory = tmp_path / "broken"
    shutil.copytree(directory_of("llama"), directory)
    weights = load_file(directory / "model.safetensors")
    weights["model.embed_tokens.weight"][45, 7] = torch.nan
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    # Below the first block a token knows nothing of the others: only the one in the middle is wrong.
    settings = engine_settings(directory, layers=[0], poolings=(), token_layers=[0], hook_points=["resid_pre"])
    engine = BuiltinEngine(settings)
    assert engine.capture([TokenisedText("a text", tuple(range(40, 60)), ((7, 10),))])
    with pytest.raises(UnitError, match="layer 0") as caught:
        engine.capture([TokenisedText("a text", tuple(range(40, 60)), ((4, 9),))])
    assert caught.value.code == "not_finite"


def test_a_prefill_pass_runs_nothing_above_the_highest_captured_layer(
    directory_of: Callable[[str], Path], tmp_path: Path
):
    directory = broken(directory_of("llama"), tmp_path / "broken", torch.nan)
    engine = BuiltinEngine(engine_settings(directory, layers=[0, 1]))
    rows = generate(BuiltinEngine(engine_settings(directory_of("llama"), layers=[0, 1])), requests_of(4))
    for row, read in zip(rows, as_read(engine, rows), strict=True):
        for array, vector_LD in row.vectors_LD.items():
            np.testing.assert_allclose(read.vectors_LD[array], vector_LD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("responses", "words"), [(((0, 3),), r"\[0, 3\)"), (((5, 21),), r"\[5, 21\)"), (((5, 9), (8, 10)), r"\[8, 10\)")]
)
def test_a_span_that_cannot_be_is_refused(directory_of: Callable[[str], Path], responses, words: str):
    engine = BuiltinEngine(engine_settings(directory_of("llama"), layers=[0]))
    with pytest.raises(UnitError, match=words) as caught:
        engine.capture([TokenisedText("the text", tuple(range(40, 60)), responses)])
    assert "the text" in caught.value.message


@pytest.mark.model
def test_a_real_model_conforms(smollm2_directory: Path):
    settings = engine_settings(
        smollm2_directory,
        layers=range(30),
        max_new_tokens=10,
        temperature=0.7,
        top_p=0.9,
        poolings=ALL_POOLINGS,
        batch_tokens=400,
    )
    engine = BuiltinEngine(settings)
    rows = generate(engine, requests_of(8))
    spoken = [(row, row.rollout.prompt_token_ids[slice(*row.user_span or (0, 0))]) for row in rows]
    decode = engine.loaded.tokenizer.decode
    assert [decode(ids) for _, ids in spoken] == [row.rollout.question for row, _ in spoken]
    plain = RememberingModel(smollm2_directory)
    for mode in (as_generated, as_read):
        assert_equal_to_plain(mode(engine, rows), plain, bytes_are_tokens=False)
