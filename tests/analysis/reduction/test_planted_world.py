"""A world that is known: an axis, a low rank of roles, and a spread of rollouts come back from the store."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.storage.derived.reduction import ARRAYS, LAYER_AXIS
from persona_atlas.storage.derived.reductions import Reduction
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.workers.engine import CapturedRollout

from fakes import FakeEngine, small_plan, small_spec
from stored_runs import small_run, store_run

D, LAYERS, RANK = 16, 4, 3
NUM_ROLES, QUESTIONS = 30, 6
TRAITS = ("anxious", "calm", "patient", "curious", "assertive")


@dataclass
class PlantedEngine(FakeEngine):
    """Roles lie in three directions about a common mean, the default a known way off; rollouts spread evenly.

    Attributes:
        bases_LKD: Orthonormal directions at each layer: three of the roles, then the axis.
        loadings: Where each role lies along the three.
        scale_L: What everything is multiplied with at each layer.
    """

    bases_LKD: np.ndarray = field(default_factory=lambda: np.zeros(0))
    loadings: dict[str, np.ndarray] = field(default_factory=dict)
    scale_L: np.ndarray = field(default_factory=lambda: np.ones(LAYERS))

    def _answer(self, request: RolloutRequest) -> CapturedRollout:
        answer = super()._answer(request)
        address = request.address
        loading = np.zeros(RANK + 1)
        if address.kind == "role":
            loading[:RANK] = self.loadings[address.persona]
            loading[RANK] = -5
        elif address.kind == "default":
            loading[RANK] = 5
        noise_LD = answer.vectors_LD["resid_post", "response_mean"] * 0.1
        vector_LD = 50 + np.einsum("k,lkd->ld", loading, self.bases_LKD) + noise_LD
        scaled_LD = (self.scale_L[:, None] * vector_LD).astype(np.float32)
        return replace(answer, vectors_LD={("resid_post", "response_mean"): scaled_LD})


def planted() -> PlantedEngine:
    rng = np.random.default_rng(7)
    bases = np.stack([np.linalg.qr(rng.standard_normal((D, RANK + 1)))[0].T for _ in range(LAYERS)])
    names = sorted(load_catalog().names("role"))[:NUM_ROLES]
    loadings = rng.standard_normal((NUM_ROLES, RANK)) * [9, 6, 4]
    loadings -= loadings.mean(axis=0)
    return PlantedEngine(bases_LKD=bases, loadings=dict(zip(names, loadings, strict=True)))


def planted_spec(url: Path) -> JobSpec:
    counts = {"prompts": 1, "questions": QUESTIONS}
    personas = {
        "roles": {"names": sorted(planted().loadings), **counts},
        "traits": {"names": list(TRAITS), **counts},
        "default": {"prompts": 2, "questions": QUESTIONS},
    }
    return small_spec(personas=personas, store={"url": str(url), "mantissa_bits": 23})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reduction, PlantedEngine]:
    url = tmp_path_factory.mktemp("planted") / "run"
    engine = planted()
    run = small_run(str(url), planted_spec(url), engine)
    return run, reduce_run(run), engine


def test_axis_and_components_are_those_that_were_planted(world: tuple[Run, Reduction, PlantedEngine]):
    _, found, engine = world
    assert found.axis is not None
    assert found.pca_components is not None
    assert found.pca_variance_ratio is not None
    loadings = np.stack([engine.loadings[name] for name in found.role_names])
    variance = np.linalg.eigvalsh(np.cov(loadings.T))[::-1]
    for layer in range(LAYERS):
        bases_KD = engine.bases_LKD[layer]
        axis_D = found.axis[layer] / np.linalg.norm(found.axis[layer])
        # A persona's own noise is 0.3 of each coordinate, and the axis is 10 long.
        assert axis_D @ bases_KD[RANK] > 0.98
        assert np.linalg.norm(found.axis[layer]) == pytest.approx(10, rel=0.05)
        inside = np.linalg.norm(found.pca_components[layer, :RANK] @ bases_KD[:RANK].T, axis=1)
        assert (inside > 0.99).all()
        np.testing.assert_allclose(found.pca_variance_ratio[layer, :RANK], variance / variance.sum(), atol=0.02)
    assert found.axis_split_half is not None
    assert (found.axis_split_half > 0.99).all()
    assert found.axis_interval is not None
    assert ((found.axis_interval > 0.9) & (found.axis_interval <= 1)).all()


def test_projections_thresholds_and_spread_equal_numpy_over_every_rollout(world: tuple[Run, Reduction, PlantedEngine]):
    run, found, _ = world
    activations = run.activations(layer="all")
    values_NLD = activations.values.astype(np.float64)
    assert found.axis is not None
    assert found.projections is not None
    unit_LD = found.axis / np.linalg.norm(found.axis, axis=1, keepdims=True)
    expected_NL = np.einsum("nld,ld->nl", values_NLD, unit_LD)
    np.testing.assert_allclose(found.projections, expected_NL, rtol=1e-5)
    assert found.floor_on_axis is not None
    np.testing.assert_allclose(found.floor_on_axis, np.percentile(expected_NL, [99, 75, 50, 25], axis=0), rtol=1e-5)
    kinds = activations.rollouts["kind"].to_pylist()
    roles_NLD = values_NLD[[kind == "role" for kind in kinds]]
    assert found.pca_components is not None
    along_NLK = np.einsum("nld,lkd->nlk", roles_NLD, found.pca_components)
    total_L = roles_NLD.var(axis=0, ddof=1).sum(axis=1)
    expected_LK = along_NLK.var(axis=0, ddof=1) / total_L[:, None]
    assert found.pca_rollout_variance is not None
    np.testing.assert_allclose(found.pca_rollout_variance, expected_LK, rtol=1e-3, atol=1e-6)
    assert found.variance is not None
    np.testing.assert_allclose(
        found.variance[0], values_NLD[[kind == "default" for kind in kinds]].var(axis=0, ddof=1), rtol=1e-4
    )


@pytest.mark.parametrize(("prefix", "vectors"), [("", "role_vectors"), ("trait_", "trait_vectors")])
def test_both_variants_of_the_components_equal_the_singular_vectors(
    world: tuple[Run, Reduction, PlantedEngine], prefix: str, vectors: str
):
    _, found, _ = world
    vectors_PLD = getattr(found, vectors).astype(np.float64)
    mean_LD, scale_LD = vectors_PLD.mean(axis=0), vectors_PLD.std(axis=0, ddof=1)
    assert found.axis is not None
    axis_LD = found.axis.astype(np.float64)
    np.testing.assert_allclose(getattr(found, f"{prefix}pca_mean"), mean_LD, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(getattr(found, f"{prefix}pca_z_scale"), scale_LD, rtol=1e-5)
    for z, divisor_LD in (("", np.ones_like(scale_LD)), ("z_", scale_LD)):
        components_LKD = getattr(found, f"{prefix}pca_{z}components")
        for layer in range(LAYERS):
            centred_PD = (vectors_PLD[:, layer] - mean_LD[layer]) / divisor_LD[layer]
            _, singular_M, right_MD = np.linalg.svd(centred_PD, full_matrices=False)
            num_components = min(len(vectors_PLD) - 1, D)
            # A component and a singular vector agree but for their sign.
            agreement_K = (components_LKD[layer] * right_MD[:num_components]).sum(axis=1)
            np.testing.assert_allclose(np.abs(agreement_K), 1, atol=1e-4)
            share_M = singular_M[:num_components] ** 2 / (singular_M**2).sum()
            ratio_LM = getattr(found, f"{prefix}pca_{z}variance_ratio")
            np.testing.assert_allclose(ratio_LM[layer], share_M, rtol=1e-4, atol=1e-6)
            along_D = axis_LD[layer] / divisor_LD[layer]
            expected = abs(right_MD[0] @ along_D) / np.linalg.norm(along_D)
            cosine_L = getattr(found, f"{prefix}pc1_{z}axis_cosine")
            assert cosine_L[layer] == pytest.approx(expected, abs=1e-4)


def test_neither_the_places_of_rows_nor_the_order_of_work_changes_anything(
    world: tuple[Run, Reduction, PlantedEngine], tmp_path: Path
):
    _, expected, engine = world

    def backwards(function: Any, location: Any, works: Any, num_threads: int) -> Iterator[tuple[int, Any]]:
        assert num_threads > 0
        for number in reversed(range(len(works))):
            yield number, function(location, works[number])

    url = str(tmp_path / "run")
    store_run(url, small_plan(planted_spec(tmp_path / "run")), engine=engine)
    found = reduce_run(open_run(url), mapper=backwards)
    for name in ARRAYS:
        if name != "projection_rows" and getattr(expected, name) is not None:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)


def test_a_layer_beyond_the_range_of_float32_spoils_itself_alone(
    world: tuple[Run, Reduction, PlantedEngine], tmp_path: Path
):
    _, sound, engine = world
    # Squares of what differs by 1e20 or so are beyond float32, and sums of values of 2e38 are.
    huge = replace(engine, scale_L=np.array([1, 1e21, 1, 5e36]))
    spec = planted_spec(tmp_path / "run")
    found = reduce_run(small_run(str(tmp_path / "run"), spec, huge))
    assert list(found.undefined("variance")) == [1, 3]
    assert "float32" in found.undefined("variance")[1]
    for name in ("mean", "axis", "pca_components", "projections", "floor_on_axis", "pca_variance_ratio"):
        axis = LAYER_AXIS[name]
        a, b = (np.take(getattr(each, name), [0, 2], axis=axis) for each in (found, sound))
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert found.mean is not None
    assert sound.mean is not None
    np.testing.assert_allclose(found.mean[:, 1] / 1e21, sound.mean[:, 1], rtol=1e-5)
    assert found.pca_variance_ratio is not None
    assert sound.pca_variance_ratio is not None
    np.testing.assert_allclose(found.pca_variance_ratio[1], sound.pca_variance_ratio[1], rtol=1e-3, atol=1e-5)
