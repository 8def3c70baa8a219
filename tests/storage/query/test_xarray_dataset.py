"""Labelled activations: indexing by place and by label gives what numpy gives, and reads no more than that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.query.run import Run, open_run

from counted import Counted
from fakes import FakeEngine, small_plan, small_spec
from stored_runs import store_run

LAYERS = (0, 1, 3)
ARRAYS = (("resid_post", "response_mean"), ("resid_post", "prompt_last"))
EMPTY = RolloutAddress("role", "pirate", "pos", 1, 2, 0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    url = str(tmp_path_factory.mktemp("store") / "run")
    spec = small_spec(capture={"layers": list(LAYERS), "poolings": ["response_mean", "prompt_last"]})
    store_run(url, small_plan(spec), engine=FakeEngine(layers=LAYERS, arrays=ARRAYS))
    return open_run(url)


@pytest.fixture(scope="module")
def dataset(run: Run) -> xarray.Dataset:
    return run.to_xarray()


@pytest.fixture(scope="module")
def values(run: Run) -> dict[str, np.ndarray]:
    return {pooling: run.activations(layer="all", pooling=pooling).values for _, pooling in ARRAYS}


def keys(length: int) -> st.SearchStrategy[Any]:
    """A number, a slice or a list of numbers that index an axis."""
    numbers = st.integers(-length, length - 1)
    return numbers | st.slices(length).filter(lambda s: s.step is None or s.step > 0) | st.lists(numbers, max_size=5)


@given(rollout=keys(36), layer=keys(3), d_model=keys(16), pooling=st.sampled_from([pooling for _, pooling in ARRAYS]))
@settings(max_examples=80, deadline=None)
def test_any_indexing_by_place_gives_what_numpy_gives(
    dataset: xarray.Dataset, values: dict[str, np.ndarray], rollout: Any, layer: Any, d_model: Any, pooling: str
):
    found = dataset[pooling].isel(rollout=rollout, layer=layer, d_model=d_model).values
    # From the last axis, so that a number does not move those that are still to be indexed.
    expected = values[pooling][:, :, d_model][:, layer][rollout]
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("asked", [3, [3, 0], [1], slice(1, 3)])
def test_layers_are_found_by_the_models_numbers(dataset: xarray.Dataset, run: Run, asked: Any):
    numbers = [1, 3] if isinstance(asked, slice) else asked
    assert np.array_equal(dataset.response_mean.sel(layer=asked).values, run.activations(layer=numbers).values)
    with pytest.raises(KeyError):
        dataset.response_mean.sel(layer=2)


def test_rollouts_are_labelled_with_their_addresses(dataset: xarray.Dataset, run: Run):
    assert dataset.sizes == {"rollout": 36, "layer": 3, "d_model": 16}
    assert dataset.layer.values.tolist() == list(LAYERS)
    for name in ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index", "row"):
        assert dataset[name].values.tolist() == run.index[name].to_pylist()
    pirates = dataset.where(dataset.persona == "pirate", drop=True)
    assert np.array_equal(
        pirates.response_mean.values, run.activations(persona="pirate", layer="all").values.astype(np.float32)
    )


def test_filters_choose_and_empty_responses_are_left_out(tmp_path: Path):
    store_run(str(tmp_path / "run"), small_plan(), engine=FakeEngine(empty=frozenset({EMPTY})))
    run = open_run(str(tmp_path / "run"))
    (first, *_) = run.index.filter(run.index["persona"].combine_chunks().to_numpy(False) == "poet").to_pylist()
    write_scores(run.location, "judge", first["unit_id"], [first["row"]], [70.0])
    assert run.to_xarray().sizes["rollout"] == 35
    pirates = run.to_xarray(persona="pirate")
    assert pirates.sizes["rollout"] == 5
    assert np.array_equal(pirates.response_mean.values, run.activations(persona="pirate", layer="all").values)
    scored = run.to_xarray(min_score=50, kind=["role", "trait"])
    assert scored.score.values.tolist() == [70.0]
    nobody = run.to_xarray(persona="nobody")
    assert nobody.response_mean.values.shape == (0, 4, 16)


def test_nothing_is_read_before_values_are_asked_for_and_then_only_theirs(run: Run):
    counted = Counted(run.location)
    watched = Run(counted, run.record)
    assert watched.index.num_rows == 36
    whole = sum(num_bytes for path, num_bytes in run.location.sizes("activations").items() if "/c/" in path)
    counted.asked.clear()
    dataset = watched.to_xarray()
    one_layer = dataset.response_mean.sel(layer=3)
    some = one_layer.isel(rollout=slice(3))
    assert "response_mean" in repr(dataset)
    assert counted.asked == []
    assert one_layer.values.shape == (36, 16)
    read = counted.of("read_range")
    assert len(read) == 12
    assert sum(asked.num_bytes for asked in read) < whole / (2 * len(LAYERS))
    counted.asked.clear()
    assert some.values.shape == (3, 16)
    assert len(counted.of("read_range")) == 1
    assert counted.of("read") == counted.of("zarr") == []


def test_a_hook_point_that_was_not_captured_is_refused(run: Run):
    with pytest.raises(InputError, match="mlp_out/response_mean was not captured") as caught:
        run.to_xarray("mlp_out")
    assert caught.value.code == "not_captured"
