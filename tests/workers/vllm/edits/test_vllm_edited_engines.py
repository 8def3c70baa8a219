"""Engines inside of vLLM that are loaded to edit: compiled, with few rows for directions, at some layers only."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from persona_atlas.jobs.errors import InputError, UnitError
from persona_atlas.jobs.interventions import Ablate, AddVector, Cap, Direction, Intervention
from persona_atlas.workers.engine import TokenisedText
from persona_atlas.workers.vllm.arguments import VllmOptions
from persona_atlas.workers.vllm.vllm_engine import VllmEngine

from conformance import TOLERANCE
from edited_forward import assert_equal_to_edited, edited_model, interventions_of_every_kind, under
from plain_forward import relative_errors
from requests_of import engine_settings, generate, requests_of
from tiny_families import N_LAYERS
from vllm_engines import plain_model, vllm_engine
from vllm_families import D_MODEL, save_vllm_family

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

RNG = np.random.default_rng(1)
ALONG = Direction.of(RNG.standard_normal(D_MODEL))
CAP = Intervention((Cap(1, ALONG, 2.0), Cap(2, ALONG, 2.0)))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vllm_family(tmp_path_factory.mktemp("llama"), "llama")


def text_of(num_tokens: int, *responses: tuple[int, int], seed: int, intervention: Intervention | None = None):
    rng = random.Random(seed)
    ids = tuple(rng.randrange(40, 200) for _ in range(num_tokens))
    return TokenisedText("the text", ids, responses, (), intervention)


def test_a_cap_holds_at_every_captured_token(llama: Path):
    with vllm_engine(llama, poolings=(), token_layers=(1, 2)) as engine:
        rows = generate(engine, [replace(request, intervention=CAP) for request in requests_of(8)])
        plain = generate(engine, requests_of(8))
    along = [row.tokens_KTD["resid_post", "tokens"] @ ALONG.unit for row in rows]
    assert min(tokens.min(initial=np.inf) for tokens in along) > 2.0 - 1e-4
    assert min((row.tokens_KTD["resid_post", "tokens"] @ ALONG.unit).min(initial=np.inf) for row in plain) < 2.0


def test_interventions_that_find_no_room_beside_others_wait_for_it(llama: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("persona_atlas.workers.vllm.arguments.DIRECTIONS", 3)
    vectors = [Direction.of(RNG.standard_normal(D_MODEL)) for _ in range(8)]
    each = [Intervention((AddVector(0, one, 0.4), Ablate(2, two))) for one, two in itertools.pairwise(vectors)]
    with vllm_engine(llama, poolings=("response_mean",)) as engine:
        plain = plain_model(llama, engine)
        rows = generate(engine, under(requests_of(16), each))
        assert_equal_to_edited(rows, plain)
        texts = [text_of(60, (20, 50), seed=n, intervention=one) for n, one in enumerate(each)]
        for text, captured in zip(texts, engine.capture(texts), strict=True):
            with edited_model(plain, text.intervention, 20):
                expected_LD = plain.run(text.token_ids)[0][:, 20:50].mean(axis=1)
            assert relative_errors(captured.vectors_LD[0]["resid_post", "response_mean"], expected_LD).max() < TOLERANCE
        many = Intervention(
            tuple(Ablate(0, one) for one in vectors[:2]) + tuple(Ablate(1, one) for one in vectors[2:4])
        )
        with pytest.raises(UnitError, match="4 directions") as refused:
            generate(engine, under(requests_of(1), [many]))
        assert refused.value.code == "too_many_directions"


def test_compiled_layers_edit_as_eager_ones_do(llama: Path, monkeypatch: pytest.MonkeyPatch):
    # vLLM traces the model and runs the graph as it is: Inductor's kernels would take half a minute to compile.
    monkeypatch.setenv("VLLM_CPU_CI_ENV", "1")
    options = VllmOptions(max_num_seqs=8, max_num_batched_tokens=64, enforce_eager=False)
    with vllm_engine(llama, poolings=("response_mean", "prompt_last"), options=options) as engine:
        mode = engine.vllm.vllm_config.compilation_config.mode
        assert mode.name == "DYNAMO_TRACE_ONCE"
        rows = generate(engine, under(requests_of(18), interventions_of_every_kind(D_MODEL, N_LAYERS)))
        assert_equal_to_edited(rows, plain_model(llama, engine))


def test_a_layer_that_was_not_named_when_the_model_was_loaded_is_not_edited(llama: Path):
    wanted = engine_settings(llama, layers=[1], poolings=("response_mean",))
    options = VllmOptions(max_num_seqs=4, kv_cache_bytes=2**26)
    engine = VllmEngine(replace(wanted, edited_layers=(1,)), options)
    try:
        rows = generate(engine, under(requests_of(4), [Intervention((Cap(1, ALONG, 2.0),))]))
        assert len(rows) == 4
        with pytest.raises(UnitError, match="edits layer 2 1 times") as refused:
            generate(engine, under(requests_of(1), [CAP]))
        assert refused.value.code == "no_intervention"
        with pytest.raises(UnitError, match="edits layer 1 2 times"):
            engine.capture([text_of(30, (5, 9), seed=0, intervention=Intervention((Ablate(1, ALONG),) * 2))])
        with pytest.raises(UnitError, match="layers 0 to 3") as refused:
            generate(engine, under(requests_of(1), [Intervention((Ablate(4, ALONG),))]))
        assert refused.value.code == "bad_intervention"
    finally:
        engine.close()
    with pytest.raises(InputError, match="edit layer 4") as caught:
        VllmEngine(replace(wanted, edited_layers=(1, 4)), options)
    assert caught.value.code == "bad_intervention"
