"""Interventions inside of vLLM: alone and in a batch, what its cache may share, and what its workers are told."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from persona_atlas.jobs.interventions import Ablate, Cap, Direction, Intervention
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.engine import TokenisedText
from persona_atlas.workers.vllm.loading import beside_vllm
from persona_atlas.workers.vllm.vllm_engine import VllmEngine

from conformance import TOLERANCE
from edited_forward import assert_equal_to_edited, edited_model, interventions_of_every_kind, under
from plain_forward import PlainModel, relative_errors
from requests_of import engine_settings, generate, requests_of
from tiny_families import N_LAYERS
from vllm_engines import plain_model, vllm_engine
from vllm_families import D_MODEL, save_vllm_family

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

BLOCK = 128
"""Tokens of a block of the prefix cache, on a CPU."""

RNG = np.random.default_rng(1)
ALONG = Direction.of(RNG.standard_normal(D_MODEL))
CAP = Intervention((Cap(1, ALONG, 2.0), Cap(2, ALONG, 2.0)))
CAP_OF_RESPONSES = Intervention((Cap(1, ALONG, 2.0, "response"), Cap(2, ALONG, 2.0, "response")))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vllm_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def loaded(llama: Path) -> Iterator[tuple[VllmEngine, PlainModel]]:
    """A greedy engine whose poolings leave the prefix cache to vLLM."""
    with vllm_engine(llama, poolings=("response_mean", "prompt_last"), temperature=0.0) as engine:
        yield engine, plain_model(llama, engine)


@contextmanager
def cached_tokens(engine: VllmEngine) -> Iterator[list[int]]:
    """Note how many tokens each request finds in the prefix cache."""
    manager = engine.vllm.engine_core.engine_core.scheduler.kv_cache_manager
    found = manager.get_computed_blocks
    noted: list[int] = []

    def note(request):
        blocks = found(request)
        noted.append(blocks[1])
        return blocks

    manager.get_computed_blocks = note
    try:
        yield noted
    finally:
        manager.get_computed_blocks = found


def text_of(num_tokens: int, *responses: tuple[int, int], seed: int, intervention: Intervention | None = None):
    rng = random.Random(seed)
    ids = tuple(rng.randrange(40, 200) for _ in range(num_tokens))
    return TokenisedText("the text", ids, responses, (), intervention)


def assert_read_as_plain(engine: VllmEngine, plain: PlainModel, text: TokenisedText) -> None:
    (captured,) = engine.capture([text])
    for (start, stop), vectors in zip(text.responses, captured.vectors_LD, strict=True):
        # To a response, those before it are part of the prompt.
        with edited_model(plain, text.intervention, start):
            states_LTD = plain.run(text.token_ids)[0].astype(np.float64)
        expected = {"response_mean": states_LTD[:, start:stop].mean(axis=1), "prompt_last": states_LTD[:, start - 1]}
        for (_, pooling), got_LD in vectors.items():
            assert relative_errors(got_LD, expected[pooling]).max() < TOLERANCE, (start, pooling)


def test_each_request_of_a_batch_says_and_shows_what_it_does_alone_and_in_the_built_in_engine(
    llama: Path, loaded: tuple[VllmEngine, PlainModel]
):
    engine, plain = loaded
    requests = under(requests_of(12), interventions_of_every_kind(D_MODEL, N_LAYERS))
    rows = generate(engine, requests)
    assert_equal_to_edited(rows, plain)
    settings = engine_settings(
        llama, layers=range(N_LAYERS), poolings=("response_mean", "prompt_last"), temperature=0.0
    )
    with beside_vllm(engine.vllm):
        built_in = generate(BuiltinEngine(settings), requests)
    alone = [generate(engine, [request])[0] for request in requests]
    unedited = generate(engine, [replace(request, intervention=None) for request in requests])
    said = [row.rollout.response_token_ids for row in rows]
    assert said != [row.rollout.response_token_ids for row in unedited], "the edits change nothing that is said"
    for others in (alone, built_in):
        assert said == [row.rollout.response_token_ids for row in others]
        for row, other in zip(rows, others, strict=True):
            for array, got_LD in row.vectors_LD.items():
                if row.rollout.has_vector or array[1] == "prompt_last":
                    assert relative_errors(got_LD, other.vectors_LD[array]).max() < TOLERANCE


def test_only_an_intervention_on_the_prompt_changes_what_prompts_may_share(loaded: tuple[VllmEngine, PlainModel]):
    engine, plain = loaded
    prompt = "You are a pirate of the seven seas, who has seen many ships. " * 4
    other = Intervention((Cap(1, ALONG, 2.5),))
    with_all = [None, CAP_OF_RESPONSES, CAP, CAP, other, CAP_OF_RESPONSES, None]
    found: list[int] = []
    for number, intervention in enumerate(with_all):
        request = replace(requests_of(2, system_prompt=prompt)[1], seed=number, intervention=intervention)
        with cached_tokens(engine) as noted:
            rows = generate(engine, [request])
        assert_equal_to_edited(rows, plain)
        found.append(noted[0] // BLOCK)
    assert found == [0, 2, 0, 2, 0, 2, 2]


@pytest.mark.parametrize("intervention", [CAP_OF_RESPONSES, CAP], ids=["of responses", "of all"])
def test_what_is_read_under_an_intervention_is_shared_with_what_is_edited_alike(
    loaded: tuple[VllmEngine, PlainModel], intervention: Intervention
):
    engine, plain = loaded
    seed = len(intervention.of_prompt().edits)
    early = text_of(400, (10, 390), seed=seed)
    late = replace(early, responses=((300, 390),))
    turns = replace(early, responses=((140, 150), (270, 390)))
    blocks: list[list[int]] = []
    for text, edits in [
        (late, intervention),
        (early, intervention),
        (late, None),
        (early, intervention),
        (late, intervention),
        (turns, intervention),
    ]:
        with cached_tokens(engine) as noted:
            assert_read_as_plain(engine, plain, replace(text, intervention=edits))
        blocks.append([tokens // BLOCK for tokens in noted])
    # Of a text with a block too many in the cache, a response is read again without it.
    if intervention is CAP_OF_RESPONSES:
        assert blocks == [[0], [0], [2], [3, 0], [3, 0], [1, 2]]
    else:
        # The same edits act on every token, wherever the responses are.
        assert blocks == [[0], [3, 0], [0], [3, 0], [3, 0], [3, 0]]


def test_an_edited_response_in_the_prompt_of_the_next_turn_is_read_anew(loaded: tuple[VllmEngine, PlainModel]):
    engine, plain = loaded
    # The response begins in the first block of the cache and ends in the second.
    prompt = next(
        one
        for one in (requests_of(2, system_prompt="x" * n)[1] for n in range(40, 90))
        if (BLOCK - 6 < len(engine.model.renderer.render(one.messages)) < BLOCK)
    )
    (row,) = generate(engine, [replace(prompt, intervention=CAP_OF_RESPONSES)])
    ids = (*row.rollout.prompt_token_ids, *row.rollout.response_token_ids)
    assert len(ids) > BLOCK > len(row.rollout.prompt_token_ids), "choose another prompt"
    for intervention in (None, CAP_OF_RESPONSES):
        following = TokenisedText(
            "next turn", (*ids, *range(50, 90)), ((len(ids) + 5, len(ids) + 40),), (), intervention
        )
        assert_read_as_plain(engine, plain, following)


def test_workers_are_told_of_an_intervention_once_and_of_a_direction_once(
    loaded: tuple[VllmEngine, PlainModel], monkeypatch: pytest.MonkeyPatch
):
    engine, _ = loaded
    told = []
    call = engine.vllm.collective_rpc

    def note(method, *args, **kwargs):
        if method == "persona_atlas_write":
            told.extend(kwargs["args"])
        return call(method, *args, **kwargs)

    monkeypatch.setattr(engine.vllm, "collective_rpc", note)
    fresh = Direction.of(np.arange(D_MODEL))
    some = [Intervention((Cap(1, fresh, 7.0),)), Intervention((Cap(2, fresh, 7.0), Ablate(0, fresh)))]
    generate(engine, under(requests_of(18), some))
    assert [len(upload.directions) for upload in told] == [1, 0]
    assert [len(upload.settings) for upload in told] == [1, 1]
