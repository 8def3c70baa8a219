"""A query's answer in a file: each format holds the same numbers, with the rollouts they belong to."""

from __future__ import annotations

import math
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.format import layout
from persona_atlas.storage.query.export_file import FORMATS, check_target, write_query
from persona_atlas.storage.query.run import Query, Run, open_run
from safetensors import safe_open

from fakes import FACTS, FakeEngine, small_plan
from stored_runs import store_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    url = str(tmp_path_factory.mktemp("store") / "run")
    store_run(url, small_plan())
    return open_run(url)


def read_back(written: list[Path], shape: tuple[int, ...]) -> tuple[np.ndarray, pa.Table]:
    """Numbers and rollouts of a file, read with its format's own library."""
    path = written[0]
    if path.suffix == ".npy":
        return np.load(path), pq.read_table(written[1])
    if path.suffix == ".npz":
        with np.load(path) as held:
            columns = {name: held[name] for name in held.files if name not in ("activations", "layers")}
            return held["activations"], pa.table({name: column.tolist() for name, column in columns.items()})
    if path.suffix == ".safetensors":
        with safe_open(path, "numpy") as held:
            return held.get_tensor("activations"), pq.read_table(written[1])
    table = pq.read_table(path)
    lists = np.array(table["activations"].to_pylist(), dtype=np.float32)
    return lists.reshape(shape), table.drop_columns(["activations"])


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize(("persona", "layer"), [("p*", 1), ("p*", "all"), ("nobody", 1), ("nobody", "all")])
def test_every_format_is_read_back_the_same(tmp_path: Path, run: Run, suffix: str, persona: str, layer: int | str):
    asked = run.query(persona=persona, layer=layer)
    found = asked.read()
    written = write_query(asked, tmp_path / f"out{suffix}")
    assert sorted(written) == sorted(tmp_path.iterdir())
    values, rollouts = read_back(written, found.values.shape)
    assert values.dtype == np.float32
    assert np.array_equal(values, found.values)
    assert values.shape == found.values.shape
    assert rollouts.to_pydict() == found.rollouts.to_pydict()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_written_a_block_at_a_time_is_the_same(
    tmp_path: Path, run: Run, suffix: str, monkeypatch: pytest.MonkeyPatch
):
    asked = run.query(layer="all")
    found = asked.read()
    monkeypatch.setattr(Query.blocks, "__defaults__", (1,))
    assert len(list(asked.blocks())) == 12
    values, rollouts = read_back(write_query(asked, tmp_path / f"out{suffix}"), asked.shape)
    assert np.array_equal(values, found.values)
    assert rollouts.to_pydict() == found.rollouts.to_pydict()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_larger_than_memory_is_written_in_little(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch):
    plan = small_plan(facts=replace(FACTS, n_layers=8, d_model=4096))
    store_run(str(tmp_path / "run"), plan, engine=FakeEngine(layers=tuple(range(8)), d_model=4096))
    asked = open_run(str(tmp_path / "run")).query(layer="all")
    unit_bytes = 4 * math.prod(asked.shape) // len(plan.units)
    monkeypatch.setattr(Query.blocks, "__defaults__", (unit_bytes,))
    tracemalloc.start()
    pool = pa.default_memory_pool()
    before = pool.bytes_allocated()
    try:
        write_query(asked, tmp_path / f"out{suffix}")
        # A block as numbers, as bytes and encoded; not the twelve of them.
        assert tracemalloc.get_traced_memory()[1] < 5 * unit_bytes
    finally:
        tracemalloc.stop()
    assert pool.bytes_allocated() - before < unit_bytes


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_cannot_be_finished_leaves_nothing_new_behind(tmp_path: Path, suffix: str):
    store_run(str(tmp_path / "run"), small_plan())
    broken = open_run(str(tmp_path / "run"))
    asked = broken.query(layer="all")
    last = asked.rollouts["row"].to_pylist()[-1] // broken.record.rows_per_block
    (tmp_path / "run" / layout.shard_path("resid_post", "response_mean", last)).unlink()
    (tmp_path / "out").mkdir()
    earlier = tmp_path / "out" / f"x{suffix}"
    earlier.write_bytes(b"of an earlier query")
    with pytest.raises(StoreError):
        write_query(asked, earlier)
    assert [path.name for path in earlier.parent.iterdir()] == [earlier.name]
    assert earlier.read_bytes() == b"of an earlier query"


def test_scores_go_along(tmp_path: Path):
    location = store_run(str(tmp_path / "run"), small_plan())
    run = open_run(location.url)
    rows = run.index["row"].to_pylist()
    unit_ids = run.index["unit_id"].to_pylist()
    write_scores(location, "judge", unit_ids[0], rows[:2], [1.5, float("nan")])
    asked = run.query(judge="judge", persona=run.index["persona"].to_pylist()[0], prompt=0)
    for suffix in FORMATS:
        _, rollouts = read_back(write_query(asked, tmp_path / f"out{suffix}"), asked.shape)
        first, second, *_ = rollouts["score"].to_pylist()
        assert first == 1.5
        assert second is None or np.isnan(second)


def test_four_formats_are_known():
    assert set(FORMATS) == {".npy", ".npz", ".safetensors", ".parquet"}


def test_the_layers_stand_in_the_file_where_the_format_has_room(tmp_path: Path, run: Run):
    asked = run.query(layer="1,3")
    write_query(asked, tmp_path / "out.safetensors")
    write_query(asked, tmp_path / "out.npz")
    with safe_open(tmp_path / "out.safetensors", "numpy") as held:
        assert held.metadata() == {"layers": "1,3"}
    with np.load(tmp_path / "out.npz") as held:
        assert held["layers"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("name", "code"), [("out.csv", "unknown_format"), ("out", "unknown_format"), ("no/out.npy", "no_folder")]
)
def test_what_cannot_be_written_is_refused_before_a_file_appears(tmp_path: Path, run: Run, name: str, code: str):
    asked = run.query(persona="poet")
    for act in (lambda: check_target(tmp_path / name, asked.pooling), lambda: write_query(asked, tmp_path / name)):
        with pytest.raises(InputError) as caught:
            act()
        assert (caught.value.code, caught.value.field) == (code, "--out")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_refused_by_name(run: Run):
    with pytest.raises(InputError, match=r"/proc/out\.npy") as caught:
        write_query(run.query(persona="poet"), Path("/proc/out.npy"))
    assert caught.value.code == "not_writable"
