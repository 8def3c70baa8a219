"""Settings and an axis give edits with the numbers of the axis; what does not fit is refused by its field."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from persona_atlas.analysis.axis_source import AxisModel, AxisSource
from persona_atlas.analysis.capping import ceiling_on_minus_axis
from persona_atlas.analysis.exchange.capping_file import read_experiment
from persona_atlas.analysis.intervening.resolve import resolve, resolve_released
from persona_atlas.analysis.intervening.section import EditedModel, resolve_section
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.interventions import Ablate, AddVector, Cap
from persona_atlas.jobs.specs.interventions_spec import EditSetting, InterventionSpec
from persona_atlas.jobs.specs.store_spec import StoreSpec
from persona_atlas.workers.editing.edits import edited

from fakes import FACTS
from planted_vectors import LAYERS, WIDTH, plant, planted_run
from stored_runs import small_run

REDUCTION = plant().reduction
NORM = 50.0
LABELS = ("p0.01", "p0.25", "p0.5", "p0.75")


def axis(*, has_norm: bool = True, layers: tuple[int, ...] | None = None, **facts: Any) -> AxisSource:
    """The planted axis; its one persona has two rollouts with a squared norm of 50^2 at every layer."""
    reduction = REDUCTION if layers is None else plant(layers).reduction
    reduction = replace(reduction, facts=reduction.facts | facts)
    if has_norm:
        mean_GLD = np.full((1, LAYERS, WIDTH), np.sqrt(NORM**2 / WIDTH), np.float32)
        moments = {"mean": mean_GLD, "variance": np.zeros_like(mean_GLD), "count": np.array([2])}
        reduction = replace(reduction, **moments)
    return AxisSource.of(reduction, AxisModel("some/model", LAYERS, WIDTH), "runs/planted")


def resolved(setting: dict[str, Any], source: AxisSource | None = None) -> tuple[Any, ...]:
    return resolve(EditSetting(**setting), source or axis(), LAYERS, WIDTH).edits


def test_a_label_gives_the_floors_of_the_axis_in_axis_sign():
    found = axis()
    edits = resolved({"cap": "p0.25", "layers": "1:3", "positions": "response"})
    assert [(type(edit), edit.layer, edit.positions) for edit in edits] == [(Cap, 1, "response"), (Cap, 2, "response")]
    assert [edit.floor for edit in edits] == [found.floor(1, "p0.25"), found.floor(2, "p0.25")]
    assert found.floor(1, "p0.25") > found.floor(1, "p0.5"), "p0.25 is the stricter floor"
    for edit in edits:
        np.testing.assert_allclose(edit.vector.unit, found.unit_D(edit.layer), atol=1e-7)
    assert [edit.floor for edit in resolved({"cap": -3.5, "layers": [0, 2]})] == [-3.5, -3.5]


def test_steering_adds_a_fraction_of_the_norm_or_an_absolute_length():
    (added,) = resolved({"steer": -0.3, "layers": "middle"})
    assert (type(added), added.layer) == (AddVector, LAYERS // 2)
    assert added.coefficient == pytest.approx(-0.3 * NORM, rel=1e-5)
    assert added.vector.norm == pytest.approx(1, rel=1e-6)
    (added,) = resolved({"steer": {"absolute": 12.5}}, axis(has_norm=False))
    assert (added.layer, added.coefficient) == (LAYERS // 2, 12.5)


def test_layers_that_are_not_named_are_the_window_the_middle_or_all():
    assert [edit.layer for edit in resolved({"cap": 1})] == [3]
    assert [edit.layer for edit in resolved({"steer": 1})] == [2]
    ablations = resolved({"ablate": "axis"})
    assert [(type(edit), edit.layer) for edit in ablations] == [(Ablate, layer) for layer in range(LAYERS)]


@pytest.mark.parametrize(
    ("setting", "changes", "field", "code"),
    [
        ({"cap": "p0.3"}, {}, "cap", "no_such_percentile"),
        ({"cap": "p0.25", "layers": "2:9"}, {}, "layers", "no_such_layer"),
        ({"cap": "p0.25", "layers": [1]}, {"layers": (0, 2)}, "layers", "no_such_layer"),
        ({"steer": 0.3}, {"has_norm": False}, "steer", "no_norm"),
        ({"steer": 10.1}, {}, "steer", "beyond_norm"),
        ({"steer": {"absolute": -11 * NORM}}, {}, "steer", "beyond_norm"),
        ({"ablate": "axis"}, {"hook_point": "resid_mid"}, "axis", "other_hook_point"),
    ],
)
def test_what_an_axis_does_not_have_is_refused_by_the_field(
    setting: dict[str, Any], changes: dict[str, Any], field: str, code: str
):
    made: dict[str, Any] = {"has_norm": "layers" not in changes} | changes
    source = axis(**made)
    with pytest.raises(InputError) as caught:
        resolve(EditSetting(**setting), source, LAYERS, WIDTH, prefix="interventions.1.")
    assert (caught.value.field, caught.value.code) == (f"interventions.1.{field}", code)
    assert caught.value.hint


def test_a_model_of_another_shape_is_refused():
    for shape in ((LAYERS + 1, WIDTH), (LAYERS, WIDTH + 1)):
        with pytest.raises(InputError) as caught:
            resolve(EditSetting(cap=1), axis(), *shape)
        assert (caught.value.field, caught.value.code) == ("axis", "other_width")
    # A control vector of another program tells the last layer that has a direction, and no more of its model.
    control = axis(imported="gguf")
    steered = resolve(
        EditSetting.model_validate({"steer": {"absolute": 2.0}, "layers": [1]}), control, LAYERS + 1, WIDTH
    )
    assert [edit.layer for edit in steered.edits] == [1]
    with pytest.raises(InputError):
        resolve(EditSetting(cap=1), control, LAYERS - 1, WIDTH)


@pytest.fixture(scope="module")
def capping_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A released file of a made-up model: vectors of any length and direction, caps of either sign."""
    torch.manual_seed(3)
    vectors = {f"layer_{layer}/v": {"vector": 3 * torch.randn(WIDTH), "layer": layer} for layer in (1, 2)}
    caps = [{"vector": "layer_1/v", "cap": 0.4}, {"vector": "layer_2/v", "cap": -0.7}]
    path = tmp_path_factory.mktemp("released") / "capping.pt"
    broken = {"id": "broken", "interventions": [{"vector": "layer_9/v", "cap": 1.0}]}
    torch.save({"vectors": vectors, "experiments": [{"id": "layers_1:3-p0.25", "interventions": caps}, broken]}, path)
    return path


def test_a_released_setting_acts_as_the_released_formula(capping_file: Path):
    caps = read_experiment(str(capping_file), "layers_1:3-p0.25")
    edits = resolve_released(caps, LAYERS, WIDTH, source="x").edits
    assert [edit.layer for edit in edits] == [1, 2]
    resid_TD = torch.randn(200, WIDTH) * 2
    for edit, (vector, cap) in zip(edits, [("layer_1/v", 0.4), ("layer_2/v", -0.7)], strict=True):
        raw = torch.load(capping_file, weights_only=True)["vectors"][vector]["vector"]
        unit_D = raw / raw.norm()
        expected = resid_TD - (resid_TD @ unit_D - cap).clamp_min(0)[:, None] * unit_D
        got, change_T = edited(resid_TD, torch.tensor(edit.vector.unit), *edit.terms)
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got, ceiling_on_minus_axis(resid_TD.numpy(), raw.numpy(), cap), atol=1e-5)
        assert 0 < int((change_T > 0).sum()) < 200, "some tokens are capped and others are not"


def test_a_released_file_is_refused_by_name(capping_file: Path, tmp_path: Path):
    model = EditedModel("some/model", LAYERS, WIDTH)

    def refused(target: Path, experiment: str, model: EditedModel = model) -> InputError:
        with pytest.raises(InputError) as caught:
            resolve_section([InterventionSpec(axis=str(target), experiment=experiment)], model, StoreSpec(url="runs/x"))
        return caught.value

    other = refused(capping_file, "layers_1:3-p0.5")
    assert (other.field, other.code) == ("interventions.0.experiment", "no_such_experiment")
    assert "layers_1:3-p0.25" in str(other)
    assert refused(capping_file, "broken").code == "bad_capping_config"
    assert refused(tmp_path / "none.pt", "x").code == "missing_file"
    assert refused(capping_file, "layers_1:3-p0.25", replace(model, d_model=WIDTH + 1)).code == "other_width"
    (tmp_path / "text.pt").write_text("no tensors")
    assert refused(tmp_path / "text.pt", "x").code == "unreadable_file"
    with pytest.raises(InputError, match="add experiment"):
        resolve_section([InterventionSpec(axis=str(capping_file), cap=1)], model, StoreSpec(url="runs/x"))


def test_an_axis_of_another_model_is_refused_unless_it_is_meant(tmp_path: Path):
    store = planted_run(str(tmp_path / "run"), REDUCTION).url
    model = EditedModel("their/other-model", LAYERS, WIDTH, "another fingerprint")
    entry = InterventionSpec(axis=store, cap="p0.25")
    with pytest.raises(InputError, match="transfer: true") as caught:
        resolve_section([entry], model, StoreSpec(url="runs/x"))
    assert (caught.value.field, caught.value.code) == ("interventions.0.axis", "other_model")
    said: list[str] = []
    found = resolve_section([entry.model_copy(update={"transfer": True})], model, StoreSpec(url="runs/x"), said.append)
    assert [found.entries[0].note] == said
    assert "not of their/other-model" in found.lines[0]
    assert found.entries[0].reduction == "planted"


def test_a_store_that_was_not_reduced_or_is_not_there_is_refused(tmp_path: Path):
    model = EditedModel("none", LAYERS, WIDTH, FACTS.fingerprint)
    for axis, reduction, field, code in (
        (small_run(str(tmp_path / "run")).url, None, "axis", "not_reduced"),
        (str(tmp_path / "nowhere"), None, "axis", "no_vectors"),
        (planted_run(str(tmp_path / "planted"), REDUCTION).url, "0badc0de", "reduction", "no_such_reduction"),
    ):
        entry = InterventionSpec(axis=axis, cap="p0.25", reduction=reduction)
        with pytest.raises(InputError) as caught:
            resolve_section([entry], model, StoreSpec(url="runs/x"))
        assert (caught.value.field, caught.value.code) == (f"interventions.0.{field}", code)
