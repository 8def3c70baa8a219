"""Conversations that grow: the values of a whole pass, at the cost of the new tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from persona_atlas.jobs.errors import UnitError
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine
from persona_atlas.workers.builtin.kept_reading import MOST_KEPT, KeptReader
from persona_atlas.workers.engine import TokenisedText

from other_families import ALONE_FAMILIES
from requests_of import engine_settings
from tiny_families import N_LAYERS, save_tiny_family, save_tiny_model

SPANS = ((5, 40), (52, 60), (61, 90))


@pytest.fixture(scope="module", params=["llama", "gemma2", "bloom"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> BuiltinEngine:
    directory, family = tmp_path_factory.mktemp("model"), request.param
    if family in ALONE_FAMILIES:
        save_tiny_model(directory, ALONE_FAMILIES[family]())
    else:
        save_tiny_family(directory, family)
    return BuiltinEngine(engine_settings(directory, layers=range(N_LAYERS), poolings=("response_mean",)))


def ids_of(seed: int, length: int = 90) -> list[int]:
    return np.random.default_rng(seed).integers(3, 250, length).tolist()


def whole(engine: BuiltinEngine, ids: Sequence[int], spans: Sequence[tuple[int, int]]) -> list[Any]:
    (found,) = engine.capture([TokenisedText("whole", tuple(ids), tuple(spans))])
    return [vectors["resid_post", "response_mean"] for vectors in found.vectors_LD]


def assert_as_whole(engine: BuiltinEngine, reader: KeptReader, ids: Sequence[int], num_spans: int) -> int:
    """Read up to a span, compare with a pass over the whole, and return how many tokens that took."""
    before = reader.tokens_fed
    spans = SPANS[:num_spans]
    for got, expected in zip(reader.read("talk", ids, spans), whole(engine, ids, spans), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    return reader.tokens_fed - before


def test_each_call_costs_the_new_tokens(engine: BuiltinEngine):
    reader = engine.kept_reader()
    ids = ids_of(1)
    shares = engine.loaded.sharing.up_to > 0
    # A template writes a little after the last response, which the next call has again; nothing of it is fed before.
    assert assert_as_whole(engine, reader, [*ids[:40], 7, 8], 1) == 40
    assert assert_as_whole(engine, reader, ids[:60], 2) == (20 if shares else 60)
    assert assert_as_whole(engine, reader, ids, 3) == (30 if shares else 90)
    assert assert_as_whole(engine, reader, ids, 3) == (0 if shares else 90)


def test_a_changed_history_and_interleaved_conversations_are_read_from_their_start(engine: BuiltinEngine):
    reader = engine.kept_reader()
    shares = engine.loaded.sharing.up_to > 0
    one, other = ids_of(1), ids_of(2)
    assert assert_as_whole(engine, reader, one[:40], 1) == 40
    assert assert_as_whole(engine, reader, other[:40], 1) == 40
    changed = [*one[:10], 99 if one[10] != 99 else 98, *one[11:]]
    assert assert_as_whole(engine, reader, changed[:60], 2) == 60
    # All of them are kept meanwhile.
    assert assert_as_whole(engine, reader, one[:60], 2) == (20 if shares else 60)
    assert assert_as_whole(engine, reader, other[:60], 2) == (20 if shares else 60)
    assert assert_as_whole(engine, reader, changed, 3) == (30 if shares else 90)


def test_another_span_of_what_was_read_is_computed_from_where_it_begins(engine: BuiltinEngine):
    reader = engine.kept_reader()
    ids = ids_of(3)
    reader.read("talk", ids, [SPANS[2]])
    before = reader.tokens_fed
    (got,) = reader.read("talk", ids, [(70, 90)])
    (expected,) = whole(engine, ids, [(70, 90)])
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())
    assert reader.tokens_fed - before == (20 if engine.loaded.sharing.up_to else 90)
    # Beside one that was read: both are computed from where the first begins.
    assert_as_whole(engine, reader, ids, 3)


def test_the_oldest_conversation_is_forgotten_and_a_long_one_refused(engine: BuiltinEngine):
    reader = engine.kept_reader()
    for seed in range(MOST_KEPT + 1):
        reader.read("talk", ids_of(seed, 20), [(5, 20)])
    before = reader.tokens_fed
    reader.read("talk", ids_of(1, 20), [(5, 20)])
    assert reader.tokens_fed - before == (0 if engine.loaded.sharing.up_to else 20)
    reader.read("talk", ids_of(0, 20), [(5, 20)])
    assert reader.tokens_fed - before == (20 if engine.loaded.sharing.up_to else 40)
    length = engine.loaded.max_context + 1
    if length < 10_000:
        with pytest.raises(UnitError, match=r"talk: .* exceed"):
            reader.read("talk", ids_of(0, length), [(5, length)])


def test_a_conversation_without_spans_takes_no_place(engine: BuiltinEngine):
    reader = engine.kept_reader()
    first = reader.read("talk", ids_of(1), SPANS)
    fed = reader.tokens_fed
    for seed in range(MOST_KEPT):
        assert reader.read("nothing", ids_of(seed), ()) == []
    shares = engine.loaded.sharing.up_to > 0
    again = reader.read("talk", ids_of(1), SPANS)
    assert reader.tokens_fed - fed == (0 if shares else 90)
    np.testing.assert_allclose(again[0], first[0], rtol=1e-5)
