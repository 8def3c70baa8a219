"""The engine inside vLLM gives what every engine must: the vectors of one-by-one plain Hugging Face passes.

One model of each family is loaded once. Its batch holds eight rollouts and its passes 64 tokens, so most prompts are
split and share passes with responses; prompts begin alike, and vLLM's prefix cache is on.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from persona_atlas.workers.engine import CapturedRollout, TokenisedText
from persona_atlas.workers.vllm.vllm_engine import VllmEngine

from conformance import MAX_NEW, TOLERANCE, as_generated, as_read, assert_equal_to_plain
from edited_forward import assert_equal_to_edited, interventions_of_every_kind, under
from plain_forward import ALL_POOLINGS, PlainModel, relative_errors
from requests_of import generate, requests_of
from tiny_families import N_LAYERS
from vllm_engines import plain_model, vllm_engine
from vllm_families import D_MODEL, FAMILIES, save_vllm_family

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

TOKEN_LAYERS = (1, N_LAYERS - 1)
_LONG = "You are a pirate of the seven seas, who has seen many ships and speaks of nothing but gold and rum. " * 2


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def loaded(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[VllmEngine, PlainModel, Path]]:
    directory = save_vllm_family(tmp_path_factory.mktemp(request.param), request.param)
    with vllm_engine(directory, poolings=ALL_POOLINGS, token_layers=TOKEN_LAYERS) as engine:
        yield engine, plain_model(directory, engine), directory


def of_many_lengths(engine: VllmEngine) -> list[CapturedRollout]:
    """Rollouts with a cut response among them. On a CPU vLLM takes no seeds, and one in fifty batches has none."""
    for _ in range(10):
        rows = generate(engine, [*requests_of(16), *requests_of(24, system_prompt=_LONG)[16:]])
        lengths = {row.rollout.num_content_tokens for row in rows}
        if MAX_NEW in lengths and len(lengths) >= 5:
            return rows
    raise AssertionError("no batch had a cut response and others of five lengths")


def test_every_pooling_and_token_equals_a_plain_forward_pass(loaded: tuple[VllmEngine, PlainModel, Path]):
    engine, plain, _ = loaded
    rows = of_many_lengths(engine)
    for mode in (as_generated, as_read):
        assert_equal_to_plain(mode(engine, rows), plain, TOKEN_LAYERS)


def test_rollouts_of_one_batch_under_different_interventions_equal_plain_passes_under_the_same(
    loaded: tuple[VllmEngine, PlainModel, Path],
):
    engine, plain, _ = loaded
    rows = generate(engine, under(requests_of(18), interventions_of_every_kind(D_MODEL, N_LAYERS)))
    for mode in (as_generated, as_read):
        assert_equal_to_edited(mode(engine, rows), plain, TOKEN_LAYERS)
    row = next(row for row in rows if row.intervention is not None and row.rollout.has_vector)
    canary, unaware = engine.canary(row), engine.canary(replace(row, intervention=None))
    assert canary is not None
    assert unaware is not None
    assert max(canary.relative_error_L) < TOLERANCE
    assert max(unaware.relative_error_L) > engine.canary_limit


def test_the_canary_sees_what_is_right_and_what_is_wrong(loaded: tuple[VllmEngine, PlainModel, Path]):
    engine, _, _ = loaded
    first, second = [row for row in generate(engine, requests_of(20)) if row.rollout.has_vector][:2]
    canary = engine.canary(first)
    assert canary is not None
    assert max(canary.relative_error_L) < TOLERANCE
    mixed = engine.canary(replace(first, vectors_LD=second.vectors_LD))
    assert mixed is not None
    assert min(mixed.relative_error_L) > engine.canary_limit


@pytest.mark.parametrize("alike", [0, 150])
def test_a_text_of_several_turns_gives_a_vector_for_each(loaded: tuple[VllmEngine, PlainModel, Path], alike: int):
    engine, plain, _ = loaded
    rng = random.Random(0)
    prefixes = [[rng.randrange(40, 200) for _ in range(alike)] for _ in range(2)]
    # More turns than are read at once, an empty one among them.
    turns = [(3, 9), (20, 20), *((30 + 3 * n, 31 + 3 * n) for n in range(9))]
    users = [(1, 3), (12, 17), *((28 + 3 * n, 30 + 3 * n) for n in range(9))]
    texts = [
        TokenisedText(
            f"text {n}",
            (*prefixes[n % 2], *(rng.randrange(40, 200) for _ in range(70))),
            tuple((alike + start, alike + stop) for start, stop in turns),
            tuple((alike + start, alike + stop) for start, stop in users),
        )
        for n in range(6)
    ]
    # The first two are read twice: the second time, the cache has all of them.
    for text, captured in zip([*texts, *texts[:2]], [*engine.capture(texts), *engine.capture(texts[:2])], strict=True):
        states_LTD = plain.places(text.token_ids)["resid_post"].astype(np.float64)
        for (start, stop), user, vectors in zip(text.responses, text.user_spans, captured.vectors_LD, strict=True):
            assert len(vectors) == len(ALL_POOLINGS)
            for (_, pooling), got_LD in vectors.items():
                first, last = (start, stop) if pooling.startswith("response_") else (0, start)
                first, last = user if pooling == "user_mean" else (first, last)
                if first == last:
                    assert np.isnan(got_LD).all()
                    continue
                span_LTD = states_LTD[:, first:last]
                expected_LD = span_LTD.mean(axis=1) if pooling.endswith("_mean") else span_LTD[:, -1]
                assert relative_errors(got_LD, expected_LD).max() < TOLERANCE, (text.name, pooling)
        for (start, stop), kept in zip(text.responses, captured.tokens_KTD, strict=True):
            got_KTD, expected_KTD = kept["resid_post", "tokens"], states_LTD[list(TOKEN_LAYERS), start:stop]
            assert got_KTD.shape == expected_KTD.shape
            assert relative_errors(got_KTD, expected_KTD).max(initial=0) < TOLERANCE


@pytest.mark.model
def test_a_real_model_conforms(smollm2_directory: Path):
    with vllm_engine(
        smollm2_directory, layers=range(30), max_new_tokens=10, temperature=0.7, top_p=0.9, poolings=ALL_POOLINGS
    ) as engine:
        plain = plain_model(smollm2_directory, engine)
        rows = generate(engine, requests_of(8))
        spoken = [(row, row.rollout.prompt_token_ids[slice(*row.user_span or (0, 0))]) for row in rows]
        decode = engine.model.tokenizer.decode
        assert [decode(ids) for _, ids in spoken] == [row.rollout.question for row, _ in spoken]
        for mode in (as_generated, as_read):
            assert_equal_to_plain(mode(engine, rows), plain, bytes_are_tokens=False)
