"""Requests that are each sampled in a way of their own and followed token by token, in one running batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.specs.spec_parts import SamplingSpec
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.passes import decoding
from persona_atlas.workers.engine import CapturedRollout, StreamedRequest

from other_families import ALONE_FAMILIES
from plain_forward import PlainModel, conversation_ids, pool, relative_errors
from requests_of import engine_settings, generate, requests_of
from tiny_families import FAMILIES, N_LAYERS, save_tiny_family, save_tiny_model

WAYS = (
    SamplingSpec(temperature=0, top_p=1, max_new_tokens=12),
    SamplingSpec(temperature=0.7, top_p=0.9, max_new_tokens=30),
    SamplingSpec(temperature=1.3, top_p=1, max_new_tokens=5),
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="module")
def engine(directory: Path) -> BuiltinEngine:
    return BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS)))


def streamed(engine: BuiltinEngine, requests: Sequence[StreamedRequest]) -> list[CapturedRollout]:
    to_ask = iter(requests)
    rows = {row.rollout.address: row for row in engine.stream(lambda: next(to_ask, None))}
    return [rows[asked.request.address] for asked in requests]


def test_requests_of_one_batch_are_sampled_each_in_its_own_way(engine: BuiltinEngine):
    asked = [StreamedRequest(request, WAYS[index % 3]) for index, request in enumerate(requests_of(12))]
    together = streamed(engine, asked)
    for one, row in zip(asked, together, strict=True):
        (alone,) = streamed(engine, [one])
        assert row.rollout == alone.rollout
        assert len(row.rollout.response_token_ids) <= one.sampling.max_new_tokens
    assert {row.rollout.finish_reason for row in together} == {"stop", "length"}


def test_recorded_steps_sample_each_in_its_own_way(
    directory: Path, engine: BuiltinEngine, monkeypatch: pytest.MonkeyPatch
):
    asked = [StreamedRequest(request, WAYS[index % 3]) for index, request in enumerate(requests_of(12))]
    expected = streamed(engine, asked)
    monkeypatch.setattr(decoding, "DEVICES", {"cpu"})
    steps = 0
    run = decoding.DecodingSteps.run

    def counted(self: decoding.DecodingSteps, *given: Any) -> Any:
        nonlocal steps
        steps += 1
        return run(self, *given)

    monkeypatch.setattr(decoding.DecodingSteps, "run", counted)
    # Greedy steps leave the logits, from which all can be sampled; other steps have sampled already.
    greedy = BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS), temperature=0))
    for other, is_used in ((greedy, True), (engine, False)):
        steps = 0
        assert [row.rollout for row in streamed(other, asked)] == [row.rollout for row in expected]
        assert (steps > 10) == is_used


def test_a_job_and_a_stream_sample_the_same_tokens(directory: Path, engine: BuiltinEngine):
    way = SamplingSpec(temperature=1, top_p=1, max_new_tokens=20)
    requests = requests_of(6)
    rows = streamed(engine, [StreamedRequest(request, way) for request in requests])
    assert [row.rollout for row in rows] == [row.rollout for row in generate(engine, requests)]


def test_every_content_token_is_told_as_it_is_sampled(engine: BuiltinEngine):
    told: list[list[int]] = [[] for _ in range(5)]
    asked = [
        StreamedRequest(request, WAYS[1], lambda token, heard=heard: heard.append(token) is not None)
        for request, heard in zip(requests_of(5), told, strict=True)
    ]
    for row, heard in zip(streamed(engine, asked), told, strict=True):
        assert heard == list(row.rollout.response_token_ids[: row.rollout.num_content_tokens])


@pytest.mark.parametrize("family", ["llama", "gptj"], ids=["in a batch", "alone"])
def test_a_response_that_is_ended_keeps_the_values_of_all_its_tokens(tmp_path: Path, family: str):
    directory = save_tiny_model(tmp_path, (FAMILIES | ALONE_FAMILIES)[family]())
    engine = BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS)))
    requests = requests_of(6)
    whole = streamed(engine, [StreamedRequest(request, WAYS[1]) for request in requests])

    def ending_after(count: int) -> Iterator[bool]:
        return iter([*[False] * (count - 1), True])

    asked = []
    for index, request in enumerate(requests):
        ends = ending_after(1 + index)
        asked.append(StreamedRequest(request, WAYS[1], lambda _, ends=ends: next(ends)))
    plain = PlainModel(directory)
    for index, (row, long) in enumerate(zip(streamed(engine, asked), whole, strict=True)):
        content = long.rollout.response_token_ids[: long.rollout.num_content_tokens]
        got = row.rollout.response_token_ids[: row.rollout.num_content_tokens]
        assert got == content[: 1 + index]
        if not got:
            continue
        states_LTD = plain.outputs(conversation_ids(row.rollout))
        expected_LD = pool(states_LTD, row.rollout)["response_mean"]
        assert relative_errors(row.vectors_LD["resid_post", "response_mean"], expected_LD).max() < 1e-4


def test_what_has_ended_leaves_its_slot_to_the_next(directory: Path):
    engine = BuiltinEngine(engine_settings(directory, layers=(1,), batch_tokens=260))
    first, second = requests_of(2)
    # There is room for one of them at a time, and the first would go on for long.
    order: list[str] = []

    def leave(_: int) -> bool:
        order.append("first")
        return len(order) == 3

    long = SamplingSpec(temperature=0.9, top_p=1, max_new_tokens=200)
    rows = streamed(engine, [StreamedRequest(first, long, leave), StreamedRequest(second, long, None)])
    assert order == ["first"] * 3
    assert rows[0].rollout.num_content_tokens == 3
    (alone,) = streamed(engine, [StreamedRequest(second, long)])
    assert rows[1].rollout == alone.rollout
