"""An axis opened from a run, from imported vectors and from published files: one meaning, and every refusal by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.analysis.axis import project
from persona_atlas.analysis.axis_source import AxisModel, AxisSource, open_axis
from persona_atlas.analysis.exchange.export import export_vectors
from persona_atlas.analysis.exchange.read_directory import import_directory
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import Run

from fakes import FACTS
from planted_vectors import LAYERS, WIDTH, Planted, plant, planted_run
from stored_runs import small_run


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, planted: Planted) -> Run:
    return planted_run(str(tmp_path_factory.mktemp("store") / "run"), planted.reduction)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory, run: Run) -> Path:
    return export_vectors(run, tmp_path_factory.mktemp("released") / "files", "assistant-axis").folder


def axis_of(reduction: object, **model: object) -> AxisSource:
    sizes = {"source": "some/model", "n_layers": LAYERS, "d_model": WIDTH} | model
    return AxisSource.of(reduction, AxisModel(**sizes), "made")  # pyright: ignore[reportArgumentType]


def test_a_run_gives_the_axis_its_model_and_its_own_projections(run: Run, planted: Planted):
    axis = open_axis(run.url)
    assert (axis.layers, axis.middle, axis.hook_point, axis.pooling) == ((0, 1, 2, 3), 2, "resid_post", "response_mean")
    assert (axis.model.fingerprint, axis.model.spec) == (FACTS.fingerprint, run.record.spec.model)
    for layer in axis.layers:
        np.testing.assert_allclose(axis.unit_D(layer), planted.direction_LD[layer], atol=0.05)
        assert abs(np.linalg.norm(axis.unit_D(layer)) - 1) < 1e-12
    projections_N = project(planted.rollouts_NLD, planted.reduction.axis)[:, 1]  # pyright: ignore[reportArgumentType]
    found = axis.distribution(1)
    assert (found.of, len(found.sorted_N)) == ("rollouts", 200)
    np.testing.assert_allclose([found.mean, found.std], [projections_N.mean(), projections_N.std(ddof=1)], rtol=1e-5)
    np.testing.assert_allclose(axis.projection_std_L[1], found.std)
    np.testing.assert_allclose(axis.projection_mean_L[1], found.mean)
    # The label counts percentiles on -axis, so a quarter of the rollouts is above the floor.
    assert axis.floor(1, "p0.25") == pytest.approx(np.percentile(projections_N, 75), rel=1e-5)
    assert found.percentile(axis.floor(1, "p0.25")) == pytest.approx(75, abs=0.5)


def test_norms_are_those_of_the_rollouts(tmp_path: Path):
    run = small_run(str(tmp_path / "run"))
    with pytest.raises(InputError) as caught:
        open_axis(run.url)
    assert (caught.value.code, "persona-atlas reduce" in str(caught.value)) == ("not_reduced", True)
    first = reduce_run(run)
    axis = open_axis(run)
    values_NLD = run.refresh().activations(layer="all").values.astype(np.float64)
    np.testing.assert_allclose(axis.norm_L, np.sqrt((values_NLD**2).sum(axis=2).mean(axis=0)), rtol=1e-5)
    reduce_run(run, percentiles=(10,))
    assert open_axis(run.url).labels == ("p0.1",)
    assert open_axis(run.url, reduction=first.reduction_id).labels == ("p0.01", "p0.25", "p0.5", "p0.75")
    with pytest.raises(InputError, match="has no reduction 'other'"):
        open_axis(run.url, reduction="other")


def test_files_and_imported_vectors_give_the_same_directions(run: Run, released: Path, tmp_path: Path):
    import_directory(released, open_location(tmp_path / "set"), "some/model", print)
    of_run, of_files, of_set = open_axis(run.url), open_axis(released), open_axis(tmp_path / "set")
    assert (of_files.model.source, of_set.model.source) == (None, "some/model")
    for axis in (of_files, of_set):
        assert (axis.layers, axis.middle, axis.model.n_layers, axis.model.d_model) == ((0, 1, 2, 3), 2, LAYERS, WIDTH)
        np.testing.assert_allclose(axis.unit_D(2), of_run.unit_D(2), atol=2**-7)
        assert axis.floor(2, "p0.25") == pytest.approx(of_run.floor(2, "p0.25"), rel=1e-6)
        # Without rollouts, a value is compared with the role vectors, and nothing tells how long activations are.
        assert (axis.distribution(2).of, len(axis.distribution(2).sorted_N)) == ("role vectors", 4)
        assert np.isnan(axis.norm_L).all()


def test_a_control_vector_has_a_direction_and_nothing_to_compare_with(run: Run, tmp_path: Path):
    folder = export_vectors(run, tmp_path / "files", "gguf", wanted=("axis",)).folder
    axis = open_axis(folder)
    # llama.cpp has no vector for layer 0.
    assert (axis.layers, axis.labels, axis.distribution(2).of) == ((1, 2, 3), (), "nothing")
    assert np.isnan([axis.distribution(2).z_score(1.0), axis.distribution(2).percentile(1.0)]).all()
    with pytest.raises(InputError) as caught:
        axis.floor(2, "p0.25")
    assert (caught.value.code, caught.value.hint) == ("no_such_percentile", "It has no thresholds.")
    trait = export_vectors(run, tmp_path / "trait", "gguf", wanted=("trait:stoic",)).folder
    with pytest.raises(InputError, match="has no axis"):
        open_axis(trait)


def test_layers_are_named_as_queries_name_them(run: Run):
    axis = open_axis(run)
    assert [axis.chosen(asked) for asked in ("middle", "all", "1:3", "0,3,0", 2, [3, 1])] == [
        [2],
        [0, 1, 2, 3],
        [1, 2],
        [0, 3],
        [2],
        [3, 1],
    ]
    for asked in ("2:9", 4, "-1", [1, 40]):
        with pytest.raises(InputError) as caught:
            axis.chosen(asked)
        assert (caught.value.code, "4 layers, 0 to 3" in str(caught.value)) == ("no_such_layer", True), asked
    with pytest.raises(InputError, match="'high' is not a layer"):
        axis.chosen("high")


def test_a_layer_without_an_axis_or_a_threshold_is_named(planted: Planted):
    values_LD = np.array(planted.reduction.axis)
    values_LD[1] = np.nan
    floor_QL = np.array(planted.reduction.floor_on_axis)
    floor_QL[:, 3] = np.nan
    facts = planted.reduction.facts | {"undefined": {"axis": {"1": "all vectors are the same"}}}
    axis = axis_of(replace(planted.reduction, axis=values_LD, floor_on_axis=floor_QL, facts=facts))
    assert axis.layers == (0, 2, 3)
    with pytest.raises(InputError, match="layer 1 has no axis in made: all vectors are the same"):
        axis.unit_D(1)
    with pytest.raises(InputError) as caught:
        axis.floor(0, "p0.9")
    assert caught.value.hint == "It has p0.01, p0.25, p0.5, p0.75. A run gets others by reduce --percentiles."
    with pytest.raises(InputError) as caught:
        axis.floor(3, "p0.25")
    assert (caught.value.code, caught.value.hint) == ("no_such_percentile", "It has one at layers 0, 2.")


def test_another_model_is_refused_unless_it_is_meant(run: Run, released: Path):
    axis = open_axis(run)
    own: dict[str, Any] = {"n_layers": LAYERS, "d_model": WIDTH, "source": "elsewhere/fine-tune"}
    assert axis.require_model(**own, fingerprint=FACTS.fingerprint) is None
    with pytest.raises(InputError) as caught:
        axis.require_model(**own, fingerprint="0" * 64)
    assert (caught.value.code, caught.value.field, "--transfer" in str(caught.value)) == (
        "other_model",
        "--model",
        True,
    )
    said = axis.require_model(**own, fingerprint="0" * 64, transfer=True)
    assert said == f"Transferred: the axis is of {axis.model.source}, and the projections are of elsewhere/fine-tune."
    others: list[dict[str, Any]] = [{"d_model": 32}, {"n_layers": 5}]
    for sizes in others:
        with pytest.raises(InputError) as caught:
            axis.require_model(**own | sizes, fingerprint=FACTS.fingerprint, transfer=True)
        assert caught.value.code == "other_width", sizes
    # Files that do not name their model fit every model of that shape; a name without a fingerprint is compared.
    assert open_axis(released).require_model(**own) is None
    named = axis_of(axis.reduction)
    assert named.require_model(n_layers=LAYERS, d_model=WIDTH, source="/models/Model") is None
    with pytest.raises(InputError, match="is not the model of the axis"):
        named.require_model(**own)


def test_what_holds_no_axis_is_refused(tmp_path: Path, released: Path):
    for place, code in ((tmp_path / "away", "no_vectors"), (tmp_path, "no_vectors"), (released, "no_such_reduction")):
        with pytest.raises(InputError) as caught:
            open_axis(place, reduction="r" if place == released else None)
        assert caught.value.code == code, place
    torch.save(torch.zeros(4, 16), tmp_path / "assistant_axis.pt")
    with pytest.raises(InputError, match="length zero"):
        open_axis(tmp_path)
