"""Reading rows: any rows and layers in any order, with the fewest bytes, and no damaged number ever."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import StoreError
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.storage.arrays.codec import round_mantissa
from persona_atlas.storage.format import layout
from persona_atlas.storage.query.reader import ActivationReader
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.run.commits import read_commit

from counted import Counted
from fakes import FACTS, FakeEngine, small_plan, small_spec, vector_of
from stored_runs import store_run

NUM_LAYERS = 6
ARRAY = ("resid_post", "response_mean")
UNIT = "role.pirate.pos.p0.b0"
EMPTY = RolloutAddress("role", "pirate", "pos", 1, 2, 0)
ADDRESS_COLUMNS = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")


@pytest.fixture(scope="module")
def plan() -> Plan:
    # Six of eight layers: the places of layers in the store are not their numbers.
    return small_plan(small_spec(capture={"layers": [1, 2, 3, 4, 5, 7]}), facts=replace(FACTS, n_layers=8))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Run:
    url = str(tmp_path_factory.mktemp("store") / "run")
    store_run(url, plan, engine=FakeEngine(layers=(1, 2, 3, 4, 5, 7), empty=frozenset({EMPTY})))
    return open_run(url)


@pytest.fixture(scope="module")
def truth(stored: Run) -> np.ndarray:
    """What each line of the index holds: (36, 6, 16), as rounding leaves it."""
    vectors = [
        vector_of(RolloutAddress(*(line[name] for name in ADDRESS_COLUMNS)), ARRAY, NUM_LAYERS, 16)
        for line in stored.index.to_pylist()
    ]
    return round_mantissa(np.stack(vectors), 10)


def watched(run: Run) -> tuple[ActivationReader, Counted]:
    """A reader of the run that has looked at the commits already, and what it asks from now on."""
    counted = Counted(run.location)
    reader = Run(counted, run.record).reader(*ARRAY)
    counted.asked.clear()
    return reader, counted


lines_asked = st.lists(st.integers(0, 35), max_size=40)
places_asked = st.lists(st.integers(0, NUM_LAYERS - 1), max_size=8)


@given(lines=lines_asked, places=places_asked)
@settings(max_examples=60, deadline=None)
def test_any_rows_in_any_order_at_any_layers_are_the_truth(
    stored: Run, truth: np.ndarray, lines: list[int], places: list[int]
):
    table = stored.index
    lines = [line for line in lines if table["has_vector"][line].as_py()]
    reader, _ = watched(stored)
    rows = table["row"].to_numpy()[lines]
    values = reader.read(rows, [table["unit_id"][line].as_py() for line in lines], places)
    assert values.dtype == np.float32
    assert values.shape == (len(lines), len(places), 16)
    assert np.array_equal(values, truth[lines][:, places])


@given(lines=lines_asked, places=st.lists(st.integers(0, NUM_LAYERS - 1), min_size=1, unique=True))
@settings(max_examples=40, deadline=None)
def test_each_run_of_adjoining_layers_of_a_row_block_is_one_request_for_their_bytes_alone(
    stored: Run, lines: list[int], places: list[int]
):
    table = stored.index
    lines = [line for line in lines if table["has_vector"][line].as_py()]
    reader, counted = watched(stored)
    rows, units = table["row"].to_numpy()[lines], [table["unit_id"][line].as_py() for line in lines]
    reader.read(rows, units, places)
    ordered = sorted(places)
    runs = 1 + sum(b != a + 1 for a, b in pairwise(ordered))
    expected: dict[str, int] = {}
    for unit_id in set(units):
        manifest = read_commit(stored.location, unit_id).manifest
        expected[layout.shard_path(*ARRAY, manifest.row_block)] = sum(
            manifest.blocks[0].chunk_bytes[place] for place in places
        )
    asked = counted.of("read_range")
    assert len(asked) == runs * len(expected)
    got: dict[str, int] = {}
    for one in asked:
        got[one.path] = got.get(one.path, 0) + one.num_bytes
    assert got == expected
    assert len(counted.asked) == len(asked), "where the layers lie is known since the run was opened"


def test_one_layer_of_a_whole_run_costs_one_request_a_unit_and_its_bytes(stored: Run, plan: Plan):
    counted = Counted(stored.location)
    run = Run(counted, stored.record)
    run.activations(layer=3)
    one_layer = sum(asked.num_bytes for asked in counted.of("read_range"))
    assert len(counted.of("read_range")) == len(plan.units)
    counted.asked.clear()
    run.activations(layer="all")
    assert len(counted.of("read_range")) == len(plan.units)
    assert one_layer < sum(asked.num_bytes for asked in counted.of("read_range")) / (NUM_LAYERS - 1)


def test_a_row_without_numbers_is_an_error_and_not_nan(stored: Run):
    (line,) = [line for line in stored.index.to_pylist() if not line["has_vector"]]
    reader, _ = watched(stored)
    with pytest.raises(StoreError, match=line["unit_id"]) as caught:
        reader.read(np.array([line["row"]]), [line["unit_id"]], [0])
    assert caught.value.code == "missing_object"


class Broken:
    """A copy of a run, and its object of one unit to break."""

    def __init__(self, root: Path) -> None:
        self.run = open_run(str(root))
        (block,) = read_commit(self.run.location, UNIT).manifest.blocks
        self.shard = root / block.path
        self.data = self.shard.read_bytes()
        self.layers_end = sum(block.chunk_bytes)
        lines = self.run.index.filter(pc.field("unit_id") == UNIT)
        self._rows, self._units = lines["row"].to_numpy(), lines["unit_id"].to_pylist()
        self._reader = self.run.reader(*ARRAY)

    def read(self, places: Sequence[int] = range(NUM_LAYERS)) -> np.ndarray:
        """Read the unit."""
        return self._reader.read(self._rows, self._units, places)


@pytest.fixture
def broken(tmp_path: Path, stored: Run) -> Broken:
    shutil.copytree(stored.url, tmp_path / "run")
    return Broken(tmp_path / "run")


def test_a_missing_object_is_an_error_with_its_path(broken: Broken):
    broken.shard.unlink()
    with pytest.raises(StoreError, match="missing") as caught:
        broken.read()
    assert (caught.value.code, caught.value.file) == ("missing_object", str(broken.shard))
    assert broken.run.activations(persona="teacher").rollouts.num_rows == 6


def test_an_object_cut_anywhere_in_its_layers_is_an_error_with_its_path(broken: Broken):
    before = broken.read()
    for length in range(len(broken.data)):
        broken.shard.write_bytes(broken.data[:length])
        if length >= broken.layers_end:
            # Only the shard's own index is cut, and that is not asked.
            assert np.array_equal(broken.read(), before)
            continue
        with pytest.raises(StoreError) as caught:
            broken.read()
        assert (caught.value.code, caught.value.file) == ("bad_object", str(broken.shard))


def test_a_flipped_bit_is_an_error_with_the_path_unless_no_number_depends_on_it(broken: Broken):
    before, data = broken.read(), broken.data
    assert 0 < broken.layers_end < len(data)
    for place in range(len(data)):
        broken.shard.write_bytes(data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :])
        if place >= broken.layers_end:
            # In the shard's own index: the commits say where layers lie.
            assert np.array_equal(broken.read(), before)
            continue
        with pytest.raises(StoreError, match="damaged") as caught:
            broken.read()
        assert (caught.value.code, caught.value.file) == ("bad_object", str(broken.shard))


def test_damage_at_one_layer_leaves_the_others_to_be_read(broken: Broken):
    before = broken.read([1, 2, 3, 4, 5])
    broken.shard.write_bytes(bytes([broken.data[0] ^ 1]) + broken.data[1:])
    assert np.array_equal(broken.read([1, 2, 3, 4, 5]), before)
    with pytest.raises(StoreError):
        broken.read([0])
