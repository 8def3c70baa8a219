"""A reader that loads weights layer by layer goes on where the memory is exhausted, and lets go of what it held."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec_parts import CanarySpec
from persona_atlas.workers.builtin import reading
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.reading_pass import RanPass, ReadingPass
from persona_atlas.workers.builtin.streaming import pace, plain_texts
from persona_atlas.workers.builtin.streaming.plain_texts import PlainTexts
from persona_atlas.workers.builtin.streaming.reader import StreamedReader
from persona_atlas.workers.builtin.streaming.walking import Walker

from captured_texts import assert_same, rollout_of, texts
from other_families import ALONE_FAMILIES
from requests_of import engine_settings
from tiny_families import FAMILIES, N_LAYERS, save_tiny_family, save_tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_family(tmp_path_factory.mktemp("llama"), "llama")


def hold_at_most(tokens: int, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Let walks of more tokens end as torch ends them; returns the tokens of each pass of every walk, as they come."""
    walked: list[list[int]] = []
    walk = Walker.walk

    def checked(self: Walker, passes: Sequence[ReadingPass], walks_left: int) -> Iterator[RanPass]:
        lengths = [len(one.token_ids) for one in passes if one.token_ids]
        walked.extend([lengths] if lengths else [])
        if sum(lengths) > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        yield from walk(self, passes, walks_left)

    monkeypatch.setattr(Walker, "walk", checked)
    return walked


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_walks_are_halved_down_to_one_pass_before_passes_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str
):
    directory = save_tiny_model(tmp_path, (FAMILIES | ALONE_FAMILIES)[family]())
    settings = engine_settings(directory, layers=range(N_LAYERS))
    # No pass can be smaller: each has one text, of up to 85 tokens.
    monkeypatch.setitem(reading.PASS_TOKENS, "cpu", 90)
    expected = BuiltinEngine(settings).capture(texts())
    reader = StreamedReader(settings)
    walked = hold_at_most(90, monkeypatch)
    got = reader.capture(texts())
    assert len(walked[0]) == len(texts())
    assert len(walked[-1]) == 1
    before = len(walked)
    # What was learnt is kept for the next call.
    reader.capture(texts())
    assert max(map(sum, walked[before:])) <= 90
    hold_at_most(40, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        reader.capture(texts())
    reader.close()
    assert_same(got, expected)


def test_passes_are_halved_where_one_is_too_large_for_a_walk(llama: Path, monkeypatch: pytest.MonkeyPatch):
    settings = engine_settings(llama, layers=range(N_LAYERS))
    expected = BuiltinEngine(settings).capture(texts(9))
    reader = StreamedReader(settings)
    walked = hold_at_most(600, monkeypatch)
    got = reader.capture(texts(9))
    reader.close()
    assert len(walked[0]) == 1
    assert sum(walked[0]) > 600
    for one, other in zip(got, expected, strict=True):
        for values, same in zip(one.vectors_LD, other.vectors_LD, strict=True):
            for array in same:
                np.testing.assert_allclose(values[array], same[array], rtol=2e-4, atol=2e-5)


def test_all_that_a_call_recomputes_is_kept_and_equal_texts_are_counted(llama: Path, monkeypatch: pytest.MonkeyPatch):
    # There is room for nothing, so what earlier calls left is dropped.
    monkeypatch.setattr(plain_texts, "_MOST_BYTES", 0)
    shares: list[int] = []
    begin = PlainTexts.begin

    def counted(self: Any, top: int, walks_left: int) -> None:
        begin(self, top, walks_left)
        shares.append(len(self._walking))

    monkeypatch.setattr(PlainTexts, "begin", counted)
    settings = engine_settings(llama, layers=range(N_LAYERS), batch_tokens=150)
    reader = StreamedReader(settings, rule=CanarySpec(one_in=1))
    asked = [replace(text, draws=(0.9, 0.5)) for text in texts(6)]
    earlier, later = asked[:2], [*asked[2:], asked[2]]
    rows = [rollout_of(text, got) for text, got in zip(earlier, reader.capture(earlier), strict=True)]
    before = len(shares)
    rows += [rollout_of(text, got) for text, got in zip(later, reader.capture(later), strict=True)]
    loads = reader.stream.loads
    loaded = loads.layers
    assert all(reader.canary(row) is not None for row in rows[2:])
    # The next layer may have been on its way.
    assert loads.layers - loaded <= 1
    assert reader.canary(rows[0]) is not None
    assert loads.layers - loaded >= N_LAYERS - 1
    reader.close()
    # They are spread over the walks, and the text that comes twice is recomputed once.
    assert sum(shares[before:]) == 2 * 4
    assert max(shares[before:]) < 2 * 4


def test_a_call_brings_as_many_tokens_as_the_main_memory_has_room_for(llama: Path, monkeypatch: pytest.MonkeyPatch):
    settings = engine_settings(llama, layers=range(N_LAYERS), batch_tokens=50_000)
    kept: dict[str, Any] = {"layers": range(N_LAYERS), "token_layers": range(N_LAYERS), "poolings": []}
    keeping = engine_settings(llama, **kept, batch_tokens=50_000)
    monkeypatch.setattr(pace, "free_bytes", lambda _: 40 * 2**20)
    found: list[int] = []
    for one in (settings, keeping, replace(keeping, batch_tokens=None)):
        reader = StreamedReader(one)
        reader.close()
        found.append(reader.tokens_per_capture)
    # 20 MB for 3 copies of 4 layers of 32 numbers a token.
    assert found[:2] == [50_000, 20 * 2**20 // (3 * 4 * 32 * 4)]
    assert found[2] <= found[1]


def test_nothing_of_a_reader_that_is_closed_or_fails_is_held(llama: Path, monkeypatch: pytest.MonkeyPatch):
    def loading() -> int:
        return sum(thread.name.startswith("layer-") for thread in threading.enumerate())

    before = loading()
    reader = StreamedReader(engine_settings(llama, layers=range(N_LAYERS)))
    assert loading() > before
    reader.close()
    assert loading() == before
    assert all(parameter.is_meta for layer in reader.loaded.decoder_layers for parameter in layer.parameters())

    def fails(*_: object) -> None:
        raise InputError("fails", code="not_streamed")

    monkeypatch.setattr(StreamedReader, "_require_walkable", fails)
    with pytest.raises(InputError, match="fails"):
        StreamedReader(engine_settings(llama, layers=range(N_LAYERS)))
    assert loading() == before
