"""Requests that are followed token by token inside of vLLM, each sampled and edited in its own way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.specs.spec_parts import SamplingSpec
from persona_atlas.workers.engine import StreamedRequest
from persona_atlas.workers.vllm.vllm_engine import VllmEngine

from edited_forward import assert_equal_to_edited, interventions_of_every_kind, under
from plain_forward import PlainModel
from requests_of import generate, requests_of
from tiny_families import N_LAYERS
from vllm_engines import plain_model, vllm_engine
from vllm_families import D_MODEL, save_vllm_family

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("ignore")]

GREEDY = SamplingSpec(temperature=0, max_new_tokens=20)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[VllmEngine, PlainModel]]:
    directory = save_vllm_family(tmp_path_factory.mktemp("llama"), "llama")
    with vllm_engine(directory, poolings=("response_mean", "prompt_last"), token_layers=(1,), temperature=0) as engine:
        yield engine, plain_model(directory, engine)


def streamed(engine: VllmEngine, asked: list[StreamedRequest]) -> list:
    to_ask = iter(asked)
    rows = {row.rollout.address: row for row in engine.stream(lambda: next(to_ask, None))}
    return [rows[one.request.address] for one in asked]


def test_tokens_come_as_they_are_sampled_and_whoever_is_told_may_end_the_response(
    loaded: tuple[VllmEngine, PlainModel],
):
    engine, plain = loaded
    requests = under(requests_of(12), interventions_of_every_kind(D_MODEL, N_LAYERS))
    whole = generate(engine, requests)
    told: list[list[int]] = [[] for _ in requests]

    def until(heard: list[int], most: int):
        def on_token(token: int) -> bool:
            heard.append(token)
            return len(heard) == most

        return on_token

    # Some end after a few tokens, some never by themselves, and to every fourth nobody listens.
    mosts = [None if n % 4 == 3 else (4 if n % 2 else 30) for n in range(12)]
    asked = [
        StreamedRequest(request, GREEDY, None if most is None else until(heard, most))
        for request, heard, most in zip(requests, told, mosts, strict=True)
    ]
    free = engine.num_free_slots
    rows = streamed(engine, asked)
    assert engine.num_free_slots == free
    for row, other, heard, most in zip(rows, whole, told, mosts, strict=True):
        content = list(other.rollout.response_token_ids[: other.rollout.num_content_tokens])
        got = list(row.rollout.response_token_ids[: row.rollout.num_content_tokens])
        assert got == content[:most]
        assert heard == ([] if most is None else got)
        is_cut = most is not None and len(content) >= most
        assert row.rollout.finish_reason == ("length" if is_cut else other.rollout.finish_reason)
    assert any(most == 4 and len(heard) == 4 for heard, most in zip(told, mosts, strict=True))
    # Of those that were ended, too.
    assert_equal_to_edited(rows, plain, (1,))


def test_each_request_is_sampled_and_limited_in_its_own_way(loaded: tuple[VllmEngine, PlainModel]):
    engine, plain = loaded
    heard: list[int] = []
    own = [SamplingSpec(temperature=1.0, max_new_tokens=n) for n in (1, 3, 9)]
    asked = [
        StreamedRequest(request, sampling, lambda token: bool(heard.append(token)))
        for request, sampling in zip(requests_of(3), own, strict=True)
    ]
    rows = streamed(engine, asked)
    assert_equal_to_edited(rows, plain, (1,))
    for row, sampling in zip(rows, own, strict=True):
        assert len(row.rollout.response_token_ids) <= sampling.max_new_tokens
    assert len(heard) == sum(row.rollout.num_content_tokens for row in rows)
    cold = StreamedRequest(requests_of(1)[0], SamplingSpec(temperature=0.005))
    with pytest.raises(UnitError, match=r"0\.005") as refused:
        streamed(engine, [cold])
    assert refused.value.code == "low_temperature"


def test_whoever_leaves_frees_the_place_of_his_request(loaded: tuple[VllmEngine, PlainModel]):
    engine, plain = loaded
    free = engine.num_free_slots
    asked = iter([StreamedRequest(request, GREEDY, lambda _: True) for request in requests_of(30)])
    rows = list(engine.stream(lambda: next(asked, None)))
    assert len(rows) == 30
    assert {row.rollout.num_content_tokens for row in rows} <= {0, 1}
    assert engine.num_free_slots == free
    assert_equal_to_edited(rows[:4], plain, (1,))
