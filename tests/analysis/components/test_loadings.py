"""Loadings of stored reductions against vectors and components, and what is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.analysis.components.loadings import loadings
from persona_atlas.analysis.components.pca import fit_pca
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.derived.reductions import Reduction

from scored_runs import score_run
from stored_runs import small_run


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Reduction:
    run = small_run(str(tmp_path_factory.mktemp("store") / "run"))
    score_run(run, "strict", lambda line: float(line["question_index"] + 1) if line["kind"] == "role" else 50.0)
    return reduce_run(run, min_count=1)


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("kind", ["role", "category"])
def test_loadings_are_scores_of_the_vectors_that_pca_was_fitted_to(judged: Reduction, kind: Any, standardised: bool):
    found = loadings(judged, kind, standardised=standardised)
    if kind == "role":
        assert found.names == judged.role_names == ("pirate", "poet", "teacher")
        vectors_PLD = np.asarray(judged.role_vectors)
    else:
        assert found.names[2:4] == ("teacher:fully", "pirate:somewhat")
        of = [place for place, (kind, *_) in enumerate(judged.personas) if kind == "role"]
        assert judged.mean_fully is not None
        assert judged.mean_somewhat is not None
        vectors_PLD = np.concatenate([judged.mean_fully[of], judged.mean_somewhat[of]])
    # The names are sorted, and so are the personas.
    pca = fit_pca(vectors_PLD, np.asarray(judged.axis, np.float64), standardised=standardised)
    # In a mean of three or six vectors a few digits of float32 cancel.
    np.testing.assert_allclose(found.values_PLK, pca.scores(vectors_PLD), rtol=1e-3, atol=2e-4)


def test_a_pca_that_is_not_there_is_refused_by_name(judged: Reduction, tmp_path: Path):
    with pytest.raises(InputError, match="no PCA of trait vectors") as raised:
        loadings(judged, "trait")
    assert "three vectors" in str(raised.value.hint)
    plain = reduce_run(small_run(str(tmp_path / "run")))
    with pytest.raises(InputError, match="no z-scored PCA of category vectors") as raised:
        loadings(plain, "category", standardised=True)
    assert "a judge" in str(raised.value.hint)


def test_a_component_that_is_undefined_has_no_loadings(judged: Reduction):
    components = np.array(judged.pca_components)
    components[1, 1] = np.nan
    found = loadings(dataclasses.replace(judged, pca_components=components)).values_PLK
    assert np.isnan(found[:, 1, 1]).all()
    assert np.isfinite(np.delete(found, 1, axis=1)).all()
