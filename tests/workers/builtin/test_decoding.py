"""Decoding steps in static shapes, as GPUs run them, here on the CPU and so without graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import UnitError
from persona_atlas.jobs.interventions import AddVector, Cap, Direction, Intervention
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.workers.builtin.batching.admission import RunningRollout
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.generation import Generation
from persona_atlas.workers.builtin.passes import decoding, packed
from persona_atlas.workers.builtin.passes.attention import Lengths, Scoring, attention
from persona_atlas.workers.builtin.passes.decoding import padded_rows
from persona_atlas.workers.editing.edited_pass import EditedPass
from persona_atlas.workers.engine import CapturedRollout, EngineSettings

from requests_of import engine_settings, generate, requests_of, texts_of
from tiny_families import D_MODEL, save_tiny_family


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def settings(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> EngineSettings:
    directory = tmp_path_factory.mktemp("model")
    save_tiny_family(directory, request.param)
    return engine_settings(
        directory, layers=(0, 2, 3), batch_tokens=1000, hook_points=("resid_post", "mlp_out"), token_layers=(2,)
    )


@pytest.fixture(scope="module")
def engine(settings: EngineSettings) -> BuiltinEngine:
    return BuiltinEngine(settings)


def assert_same(rows: Sequence[CapturedRollout], expected: Sequence[CapturedRollout]) -> None:
    for row, other in zip(rows, expected, strict=True):
        assert row.rollout == other.rollout
        for found, wanted in ((row.vectors_LD, other.vectors_LD), (row.tokens_KTD, other.tokens_KTD)):
            assert found.keys() == wanted.keys()
            for array, values in wanted.items():
                np.testing.assert_allclose(found[array], values, rtol=2e-4, atol=2e-5)


def mixed(count: int) -> list[RolloutRequest]:
    """Requests without edits; then a few with one, and a few whose answer is one of two texts."""
    asked = requests_of(count, system_prompt="You are a pirate. " * 3)
    edit = Intervention((AddVector(1, Direction.of(np.linspace(-1, 1, D_MODEL))),))
    for index in range(0, count, 9):
        asked[index] = replace(asked[index], intervention=edit)
        asked[index + 1] = replace(asked[index + 1], choices=("Yes", "No, never"))
    return asked


def test_rollouts_are_those_of_passes_without_static_shapes(engine: BuiltinEngine, monkeypatch: pytest.MonkeyPatch):
    expected = generate(engine, mixed(40))
    monkeypatch.setattr(decoding, "DEVICES", {"cpu"})
    shapes: set[decoding.StepShape] = set()
    step = decoding.DecodingSteps.step

    def seen(self: decoding.DecodingSteps, layout: packed.PackedPass, shape: decoding.StepShape) -> EditedPass:
        shapes.add(shape)
        return step(self, layout, shape)

    monkeypatch.setattr(decoding.DecodingSteps, "step", seen)
    assert_same(generate(engine, mixed(40)), expected)
    assert len(shapes) > 1


def test_steps_with_edits_are_those_of_passes_without_static_shapes(
    engine: BuiltinEngine, monkeypatch: pytest.MonkeyPatch
):
    direction = Direction.of(np.linspace(-1, 1, D_MODEL))
    edits = Intervention(
        (AddVector(1, direction, positions="response"), Cap(2, direction, 0.5), Cap(3, -direction, -0.5))
    )
    asked = [replace(request, intervention=edits) for request in requests_of(20)]
    expected = generate(engine, asked)
    monkeypatch.setattr(decoding, "DEVICES", {"cpu"})
    edited: set[bool] = set()
    step = decoding.DecodingSteps.step

    def seen(self: decoding.DecodingSteps, layout: packed.PackedPass, shape: decoding.StepShape) -> EditedPass:
        edited.add(shape.edits is not None)
        return step(self, layout, shape)

    monkeypatch.setattr(decoding.DecodingSteps, "step", seen)
    rows = generate(engine, asked)
    assert edited == {True}
    for row, other in zip(rows, expected, strict=True):
        assert row.rollout.edits
        assert other.rollout.edits
        for record, wanted in zip(row.rollout.edits, other.rollout.edits, strict=True):
            assert record == replace(wanted, mean_correction=pytest.approx(wanted.mean_correction, rel=1e-4))
    assert_same(
        [replace(row, rollout=replace(row.rollout, edits=None)) for row in rows],
        [replace(row, rollout=replace(row.rollout, edits=None)) for row in expected],
    )


def test_rollouts_join_in_groups_where_steps_are_recorded(
    engine: BuiltinEngine, settings: EngineSettings, monkeypatch: pytest.MonkeyPatch
):
    def passes_with_joins() -> int:
        joined: list[int] = []
        next_pass = Generation.next_pass

        def counted(self: Generation, joining: Sequence[RunningRollout]) -> list[CapturedRollout]:
            joined.append(len(joining))
            return next_pass(self, joining)

        with monkeypatch.context() as patch:
            patch.setattr(Generation, "next_pass", counted)
            asked = iter(requests_of(90))
            stream = engine.generation(replace(settings, batch_tokens=4000))
            assert len(list(stream.run(lambda: next(asked, None)))) == 90
        return sum(count > 0 for count in joined)

    alone = passes_with_joins()
    monkeypatch.setattr(decoding, "DEVICES", {"cpu"})
    assert passes_with_joins() < alone


def test_logits_that_are_not_finite_name_the_layer(engine: BuiltinEngine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(decoding, "DEVICES", {"cpu"})
    passes = 0

    def damaged(_module: object, _args: object, output: Any) -> Any:
        nonlocal passes
        passes += 1
        factor = torch.nan if passes > 3 else 1.0
        return (output[0] * factor, *output[1:]) if isinstance(output, tuple) else output * factor

    handle = engine.loaded.decoder_layers[2].register_forward_hook(damaged)
    try:
        with pytest.raises(UnitError, match="layer 2: resid_post of a token is not finite"):
            generate(engine, requests_of(3))
    finally:
        handle.remove()


@pytest.mark.parametrize("count", [1, 7, 8, 9, 100, 129, 1000])
def test_padding_adds_at_most_half(count: int):
    assert count <= padded_rows(count) <= max(8, count * 3 // 2)
    assert sum(padded_rows(one) != padded_rows(one + 1) for one in range(1, 1000)) < 16


def naive_lengths(
    query_NHD: torch.Tensor, key_TKD: torch.Tensor, value_TKD: torch.Tensor, lengths: Lengths, scaling: float
) -> torch.Tensor:
    """What torch's kernel for texts of different lengths computes, one text after another."""
    outputs: list[torch.Tensor] = []
    groups = query_NHD.shape[1] // key_TKD.shape[1]
    for (first, last), (start, stop) in zip(
        pairwise(lengths.query_ends.tolist()), pairwise(lengths.key_ends.tolist()), strict=True
    ):
        assert last - first <= lengths.most_queries
        assert stop - start <= lengths.most_keys
        places_T = torch.arange(stop - start)
        mask_ST = torch.zeros(last - first, stop - start).masked_fill_(
            places_T[None] > places_T[stop - start - (last - first) :, None], -torch.inf
        )
        key_HTD, value_HTD = (
            part[start:stop].transpose(0, 1).repeat_interleave(groups, dim=0) for part in (key_TKD, value_TKD)
        )
        query_HSD = query_NHD[first:last].transpose(0, 1)
        outputs.append(attention(query_HSD, key_HTD, value_HTD, mask_ST, Scoring(scaling)).transpose(0, 1))
    return torch.cat(outputs)


def test_the_texts_of_a_pass_are_attended_to_in_one_call(engine: BuiltinEngine, monkeypatch: pytest.MonkeyPatch):
    asked = requests_of(24, system_prompt="You are a pirate. " * 3)
    rows = generate(engine, asked)
    expected = engine.capture(texts_of(rows))
    calls = 0

    def counted(*args: object) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return naive_lengths(*args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(packed, "has_kernel_for_lengths", lambda query, value: True)
    monkeypatch.setattr(packed, "attention_of_lengths", counted)
    found = engine.capture(texts_of(rows))
    # Gemma 2 has a soft cap, which the kernel has not.
    assert (calls > 0) == (engine.model.config.model_type == "llama")
    for text, other in zip(found, expected, strict=True):
        for array, values in other.vectors_LD[0].items():
            np.testing.assert_allclose(text.vectors_LD[0][array], values, rtol=2e-4, atol=2e-5)
    assert_same(generate(engine, asked), rows)


def test_lengths_say_where_each_text_begins_and_ends():
    lengths = Lengths.of([3, 1, 4], [5, 1, 4], "cpu")
    assert lengths.query_ends.tolist() == [0, *accumulate([3, 1, 4])]
    assert lengths.key_ends.tolist() == [0, *accumulate([5, 1, 4])]
    assert (lengths.query_ends.dtype, lengths.most_queries, lengths.most_keys) == (torch.int32, 4, 5)
