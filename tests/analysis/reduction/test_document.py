"""The figures at every layer that ``reduce --json`` prints."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from persona_atlas.analysis.reduction.document import VARIANCE_RATIOS, as_document
from persona_atlas.storage.derived.reductions import Reduction

from full_reduction import full_reduction

PLACES = {
    "pc1_axis_cosine": ("axis", "pc1_cosine"),
    "pc1_axis_cosine_interval": ("axis", "pc1_cosine_interval"),
    "pc1_z_axis_cosine": ("axis", "pc1_z_cosine"),
    "axis_split_half": ("axis", "split_half"),
    "axis_interval": ("axis", "interval"),
    "pca_variance_ratio": ("pca", "variance_ratio"),
    "pca_default_distance": ("pca", "default_distance"),
    "trait_pca_variance_ratio": ("trait_pca", "variance_ratio"),
    "trait_pc1_axis_cosine": ("trait_pca", "pc1_cosine"),
    "trait_pc1_z_axis_cosine": ("trait_pca", "pc1_z_cosine"),
    "category_pca_variance_ratio": ("category_pca", "variance_ratio"),
    "category_pc1_axis_cosine": ("category_pca", "pc1_cosine"),
    "category_pc1_z_axis_cosine": ("category_pca", "pc1_z_cosine"),
}


@pytest.fixture(scope="module")
def reduction() -> Reduction:
    return full_reduction(num_roles=9, num_traits=4, num_layers=4, d_model=8, num_rollouts=30)


@pytest.mark.parametrize(("name", "place"), PLACES.items(), ids=list(PLACES))
def test_an_array_is_given_at_every_layer_and_null_where_it_is_undefined(
    reduction: Reduction, name: str, place: tuple[str, str]
):
    part, key = place
    values = np.array(getattr(reduction, name))
    expected = values[:, :VARIANCE_RATIOS] if name.endswith("variance_ratio") else values
    np.testing.assert_array_equal(as_document(reduction)[part][key], expected)
    first = (0,) * values.ndim
    values[first] = np.nan
    found = as_document(dataclasses.replace(reduction, **{name: values}))
    text = json.dumps(found, allow_nan=False)
    given = np.array(json.loads(text)[part][key], dtype=float)
    assert np.isnan(given[first])
    assert np.isnan(given).sum() == 1
    assert as_document(dataclasses.replace(reduction, **{name: None}))[part][key] is None


def test_shares_of_the_variance_are_those_of_the_first_components(reduction: Reduction):
    assert reduction.pca_variance_ratio is not None
    assert reduction.pca_variance_ratio.shape[1] > VARIANCE_RATIOS
    assert np.shape(as_document(reduction)["pca"]["variance_ratio"]) == (4, VARIANCE_RATIOS)
