"""Thresholds of any percentiles and masks, capping settings, and what a cap does, in both signs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.analysis.axis import project
from persona_atlas.analysis.capping import (
    CappingSetting,
    capping_settings,
    ceiling_on_minus_axis,
    floor_on_axis,
    recommended_window,
    windows,
)
from persona_atlas.analysis.thresholds import label_of, thresholds


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_percentiles_are_numpys_linear_ones_on_the_minus_axis():
    projections_NL = drawn(37, 2)
    found = thresholds(projections_NL, (0, 0.1, 33, 100))
    assert found.labels == ("p0", "p0.001", "p0.33", "p1")
    np.testing.assert_allclose(found.cap_on_minus_axis_QL, np.percentile(-projections_NL, (0, 0.1, 33, 100), axis=0))
    assert label_of(2.5) == "p0.025"


@settings(max_examples=30, deadline=None)
@given(mask=st.lists(st.booleans(), min_size=12, max_size=12).filter(any), seed=st.integers(0, 99))
def test_a_mask_leaves_out_whatever_it_leaves_out(mask: list[bool], seed: int):
    projections_NL, mask_N1 = drawn(12, 2, seed=seed), np.array(mask)[:, None]
    only = thresholds(projections_NL[mask_N1[:, 0]])
    # What does not count may be anything.
    hidden_NL = np.where(mask_N1, projections_NL, np.nan)
    for masked in (thresholds(projections_NL, mask_NL=mask_N1), thresholds(hidden_NL, mask_NL=mask_N1)):
        np.testing.assert_array_equal(masked.cap_on_minus_axis_QL, only.cap_on_minus_axis_QL)


def test_a_layer_without_an_axis_has_no_threshold_and_one_bad_projection_is_an_error():
    projections_NL = drawn(9, 2)
    projections_NL[:, 0] = np.nan
    found = thresholds(projections_NL)
    assert np.isnan(found.floor_on_axis_QL[:, 0]).all()
    assert np.isfinite(found.floor_on_axis_QL[:, 1]).all()
    projections_NL[3, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        thresholds(projections_NL)
    with pytest.raises(ValueError, match="no projections"):
        thresholds(drawn(3, 1), mask_NL=np.zeros((3, 1), dtype=bool))


@pytest.mark.parametrize("percentiles", [(25, 25), (-1,), (101,), (float("nan"),)])
def test_percentiles_that_are_none_are_refused(percentiles: tuple[float, ...]):
    with pytest.raises(ValueError, match="from 0 to 100"):
        thresholds(drawn(4, 1), percentiles)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), floor=st.floats(-5, 5), length=st.floats(0.01, 100))
def test_the_floor_of_this_project_and_the_released_ceiling_are_one_operation(seed: int, floor: float, length: float):
    resid_TD, axis_D = 3 * drawn(20, 6, seed=seed), length * drawn(6, seed=seed + 1)
    floored = floor_on_axis(resid_TD, axis_D, floor)
    np.testing.assert_allclose(ceiling_on_minus_axis(resid_TD, -axis_D, -floor), floored, atol=1e-12)
    before, after = (project(values[:, None], axis_D[None])[:, 0] for values in (resid_TD, floored))
    np.testing.assert_allclose(after, np.maximum(before, floor), atol=1e-9)
    # Nothing but the projection changes, and where it was above the floor, nothing at all.
    np.testing.assert_allclose(floored[before >= floor], resid_TD[before >= floor], atol=1e-9)
    across = floored - np.outer(after, axis_D / np.linalg.norm(axis_D))
    np.testing.assert_allclose(across, resid_TD - np.outer(before, axis_D / np.linalg.norm(axis_D)), atol=1e-9)


def test_the_recommended_windows_of_the_papers_models_are_those_found_best():
    assert recommended_window(64) == range(46, 54)
    assert recommended_window(80) == range(56, 72)


@pytest.mark.parametrize("n_layers", [1, 2, 3, 12, 30, 46, 70, 126])
def test_every_model_has_a_recommended_window_in_its_later_half(n_layers: int):
    window = recommended_window(n_layers)
    assert 1 <= len(window) <= max(1, n_layers // 4)
    assert n_layers * 0.6 <= window.start + 1
    assert window.stop <= n_layers


def test_windows_have_their_width_and_begin_half_of_it_apart():
    found = list(windows(20, widths=(8, 16)))
    assert found == [range(0, 8), range(4, 12), range(8, 16), range(12, 20), range(0, 16)]
    assert list(windows(5, widths=(3,), step=1)) == [range(0, 3), range(1, 4), range(2, 5)]
    assert list(windows(3)) == []


def named(n_layers: int, axis_LD: np.ndarray, layers: range | tuple[int, ...]) -> dict[str, CappingSetting]:
    found = thresholds(project(drawn(50, len(layers), 6, seed=4), np.nan_to_num(axis_LD, nan=1.0)), (25, 50))
    return {setting.name: setting for setting in capping_settings(axis_LD, layers, found, n_layers)}


def test_a_setting_has_unit_vectors_away_from_the_assistant_and_the_caps_of_its_own_layers():
    axis_LD, values_NLD = drawn(64, 6, seed=1) * 9, drawn(50, 64, 6, seed=2)
    projections_NL = project(values_NLD, axis_LD)
    found = thresholds(projections_NL, (25, 50))
    settings_found = capping_settings(axis_LD, range(64), found, 64)
    best = settings_found[0]
    assert best.name == "layers_46:54-p0.25"
    assert best.layers == tuple(range(46, 54))
    assert best.label == "p0.25"
    assert best.is_recommended
    assert best.basis is not None
    assert "No evaluation" in best.basis
    assert [setting.name for setting in settings_found if setting.is_recommended] == ["layers_46:54-p0.25"]
    assert len({setting.name for setting in settings_found}) == len(settings_found)
    for setting in settings_found:
        rows = list(setting.layers)
        np.testing.assert_allclose(np.linalg.norm(setting.vectors_LD, axis=1), 1)
        np.testing.assert_allclose(np.einsum("ld,ld->l", setting.vectors_LD, axis_LD[rows]) < 0, True)
        percentile = 25 if setting.label == "p0.25" else 50
        np.testing.assert_allclose(setting.caps_L, np.percentile(-projections_NL[:, rows], percentile, axis=0))


def test_a_window_needs_every_layer_captured_and_an_axis():
    axis_LD = drawn(12, 6)
    assert "layers_4:8-p0.5" in named(12, axis_LD, range(12))
    axis_LD[5] = np.nan
    assert {name.split("-")[0] for name in named(12, axis_LD, range(12))} == {
        "layers_0:4",
        "layers_6:10",
        "layers_8:12",
    } | {"layers_9:10"}
    assert not named(12, drawn(3, 6), (0, 5, 11))
