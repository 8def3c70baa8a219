"""A query's answer in a file: each format holds the same numbers, with the rollouts they belong to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.export_file import FORMATS, write_activations
from persona_atlas.storage.query import Activations, Run, open_run
from safetensors import safe_open

from fakes import small_plan
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
    found = run.activations(persona=persona, layer=layer)
    written = write_activations(found, tmp_path / f"out{suffix}")
    assert sorted(written) == sorted(tmp_path.iterdir())
    values, rollouts = read_back(written, found.values.shape)
    assert values.dtype == np.float32
    assert np.array_equal(values, found.values)
    assert values.shape == found.values.shape
    assert rollouts.to_pydict() == found.rollouts.to_pydict()


def test_four_formats_are_known():
    assert set(FORMATS) == {".npy", ".npz", ".safetensors", ".parquet"}


def test_the_layers_stand_in_the_file_where_the_format_has_room(tmp_path: Path, run: Run):
    found = run.activations(layer="1,3")
    write_activations(found, tmp_path / "out.safetensors")
    write_activations(found, tmp_path / "out.npz")
    with safe_open(tmp_path / "out.safetensors", "numpy") as held:
        assert held.metadata() == {"layers": "1,3"}
    with np.load(tmp_path / "out.npz") as held:
        assert held["layers"].tolist() == [1, 3]


@pytest.mark.parametrize(
    ("name", "code"), [("out.csv", "unknown_format"), ("out", "unknown_format"), ("no/out.npy", "no_folder")]
)
def test_what_cannot_be_written_is_refused_before_a_file_appears(tmp_path: Path, run: Run, name: str, code: str):
    found: Activations = run.activations(persona="poet")
    with pytest.raises(InputError) as caught:
        write_activations(found, tmp_path / name)
    assert (caught.value.code, caught.value.field) == (code, "--out")
    assert list(tmp_path.iterdir()) == []
