"""Two reductions side by side: the same world seen through another basis, width, depth and with other roles."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from persona_atlas.analysis.axis import assistant_axis, cosine_or_nan
from persona_atlas.analysis.comparison.compare import compare, match_layers
from persona_atlas.analysis.comparison.one_layer import Side
from persona_atlas.analysis.comparison.sides import refuse_same, side_of
from persona_atlas.analysis.components.pca import fit_pca
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.cluster.cli import cli, main
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.derived.reductions import Reduction, reduction_ids
from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.query.run import Run, open_run

from planted_world import World
from stored_runs import small_run


def side(
    roles_PLD: np.ndarray,
    default_LD: np.ndarray | None,
    names: list[str],
    *,
    n_layers: int | None = None,
    layers: tuple[int, ...] | None = None,
    model: str = "one",
    store: str = "here",
    **facts: Any,
) -> Side:
    axis_LD = None if default_LD is None else assistant_axis(default_LD, roles_PLD)
    pca = fit_pca(roles_PLD, axis_LD)
    num_layers = roles_PLD.shape[1]
    reduction = Reduction(
        reduction_id=store,
        layers=layers or tuple(range(num_layers)),
        role_names=tuple(names),
        trait_names=(),
        facts=facts,
        role_vectors=roles_PLD.astype(np.float32),
        default_vector=None if default_LD is None else default_LD.astype(np.float32),
        axis=None if axis_LD is None else axis_LD.astype(np.float32),
        pca_mean=pca.mean_LD.astype(np.float32),
        pca_components=pca.components_LKD.astype(np.float32),
        pca_variance_ratio=pca.variance_ratio_LM.astype(np.float32),
    )
    return Side(reduction, n_layers or num_layers, model, store)


WORLD = World(num_roles=30)
ROLES_PLD = WORLD.mean + np.einsum("pk,lkd->pld", WORLD.scores, WORLD.components)
DEFAULT_LD = WORLD.mean + WORLD.axis


def test_the_same_world_in_another_basis_is_the_same_map():
    turn_DD = np.linalg.qr(np.random.default_rng(5).standard_normal((60, 48)))[0].T
    order = np.random.default_rng(6).permutation(30)
    a = side(ROLES_PLD, DEFAULT_LD, WORLD.roles)
    b = side((ROLES_PLD @ turn_DD)[order], DEFAULT_LD @ turn_DD, [WORLD.roles[i] for i in order], store="there")
    found = compare(a, b)
    assert found.roles == tuple(WORLD.roles)
    assert (found.at.layer_a, found.at.layer_b) == (1, 1)
    assert found.at.axis_cosine is None  # 48 and 60 coordinates
    assert found.at.projection_correlation == pytest.approx(1)
    assert found.at.pc1_correlation == pytest.approx(1)
    assert found.at.similarity_correlation == pytest.approx(1, abs=1e-5)
    assert (found.at.role_cosine, found.at.component_cosines, found.at.subspace_overlap) == (None, None, None)
    assert all(component.cosine is None for component in found.components)
    assert [(c.component_a, c.component_b) for c in found.components] == [(k, k) for k in range(1, 5)]
    assert all(component.correlation == pytest.approx(1, abs=1e-3) for component in found.components)
    assert max(abs(role.change) for role in found.moved) < 1e-3
    assert found.default_z is not None
    assert found.default_z[0] == pytest.approx(found.default_z[1], rel=1e-3)
    assert found.notes == ()


def test_the_role_that_moved_is_named_and_a_turned_axis_is_measured():
    moved_PLD = ROLES_PLD.copy()
    moved_PLD[7] += 15 * WORLD.basis[:, 0]
    found = compare(side(ROLES_PLD, DEFAULT_LD, WORLD.roles), side(moved_PLD, DEFAULT_LD, WORLD.roles), layer=0)
    assert found.moved[0].role == WORLD.roles[7]
    assert found.moved[0].change > 1
    assert [abs(role.change) for role in found.moved] == sorted((abs(r.change) for r in found.moved), reverse=True)
    assert len(found.moved) == 30
    turned_LD = DEFAULT_LD + WORLD.basis[:, 8] * 20
    found = compare(side(ROLES_PLD, DEFAULT_LD, WORLD.roles), side(ROLES_PLD, turned_LD, WORLD.roles), layer=0)
    assert found.at.axis_cosine == pytest.approx(np.sqrt(0.5), abs=1e-4)
    assert found.at.projection_correlation is not None
    # No role differs along the new direction, so the order is the same.
    assert found.at.projection_correlation == pytest.approx(1, abs=1e-4)


def test_what_moved_along_the_axis_of_the_first_is_measured_in_its_units():
    """As by steering: every activation of the second is moved along the axis, which no z-score shows."""
    unit_D = assistant_axis(DEFAULT_LD, ROLES_PLD)[0] / np.linalg.norm(assistant_axis(DEFAULT_LD, ROLES_PLD)[0])
    a = side(ROLES_PLD, DEFAULT_LD, WORLD.roles)
    steered = side(ROLES_PLD - 7 * unit_D, DEFAULT_LD - 3 * unit_D, WORLD.roles)
    at = compare(a, steered, layer=0).at
    assert at.roles_on_a is not None
    assert at.default_on_a is not None
    assert at.roles_on_a[0] == pytest.approx(float(ROLES_PLD[:, 0].mean(axis=0) @ unit_D), abs=1e-3)
    assert np.diff([at.roles_on_a, at.default_on_a])[:, 0].tolist() == pytest.approx([-7, -3], abs=1e-3)
    assert at.axis_cosine == pytest.approx(1, abs=1e-3)
    narrower = side(ROLES_PLD[..., :40], DEFAULT_LD[..., :40], WORLD.roles)
    assert compare(a, narrower, layer=0).at.roles_on_a is None


def test_directions_that_were_turned_by_a_known_angle_are_measured():
    """Of four planted components two are kept, one is flipped and one is turned by 60 degrees out of their span."""
    planted_LKD = WORLD.components
    outside_D = np.linalg.svd(np.concatenate([planted_LKD[0], DEFAULT_LD[:1]]))[2][-1]
    turned_LKD = planted_LKD.copy()
    turned_LKD[:, 0] *= -1
    turned_LKD[:, 1] = 0.5 * planted_LKD[:, 1] + np.sqrt(0.75) * outside_D
    scores = WORLD.scores.copy()
    scores[:, 0] *= -1
    b_PLD = WORLD.mean + np.einsum("pk,lkd->pld", scores, turned_LKD)
    same = compare(side(ROLES_PLD, DEFAULT_LD, WORLD.roles), side(ROLES_PLD, DEFAULT_LD, WORLD.roles), layer=0).at
    assert same.axis_cosine == pytest.approx(1, abs=1e-5)
    assert (same.role_cosine, same.lowest_role_cosine) == pytest.approx((1, 1), abs=1e-5)
    assert same.subspace_overlap == pytest.approx(1, abs=1e-5)
    assert same.component_cosines == pytest.approx([1] * len(same.component_cosines or ()), abs=1e-5)
    found = compare(side(ROLES_PLD, DEFAULT_LD, WORLD.roles), side(b_PLD, DEFAULT_LD, WORLD.roles), layer=0)
    assert found.at.principal_angles is not None
    turned = max(found.at.principal_angles[:4])
    assert turned == pytest.approx(60, abs=0.5)
    assert sum(angle > 1 for angle in found.at.principal_angles[:4]) == 1
    assert found.at.similarity_correlation == pytest.approx(1, abs=1e-4)
    cosines = [c.cosine for c in found.components if c.component_a <= 4 and c.cosine is not None]
    assert sorted(cosines) == pytest.approx([0.5, 1, 1, 1], abs=1e-2)
    centred_PD = ROLES_PLD[:, 0] - ROLES_PLD[:, 0].mean(axis=0), b_PLD[:, 0] - b_PLD[:, 0].mean(axis=0)
    expected = cosine_or_nan(*centred_PD)
    assert found.at.role_cosine == pytest.approx(expected.mean(), abs=1e-4)
    assert found.at.lowest_role_cosine == pytest.approx(expected.min(), abs=1e-4)


def test_roles_that_are_no_longer_alike_are_told_by_their_similarities():
    other_PLD = WORLD.mean + np.einsum("pk,lkd->pld", WORLD.scores[::-1], WORLD.components)
    found = compare(side(ROLES_PLD, DEFAULT_LD, WORLD.roles), side(other_PLD, DEFAULT_LD, WORLD.roles)).at
    assert found.similarity_correlation is not None
    assert abs(found.similarity_correlation) < 0.4
    assert found.subspace_overlap == pytest.approx(1, abs=1e-3)


def test_components_in_another_order_and_sign_find_their_partners():
    swapped_PK = WORLD.scores[:, [1, 0, 2, 3]] * np.array([6 / 4, 4 / 6, 1, 1])
    directions_LKD = np.concatenate([WORLD.components[:, :1], -WORLD.components[:, 1:]], axis=1)
    swapped_PLD = WORLD.mean + np.einsum("pk,lkd->pld", swapped_PK, directions_LKD)
    found = compare(side(ROLES_PLD, None, WORLD.roles), side(swapped_PLD, None, WORLD.roles))
    partners = {component.component_a: component.component_b for component in found.components}
    assert {1: 2, 2: 1, 3: 3, 4: 4}.items() <= partners.items()
    assert all(0 <= component.correlation <= 1 for component in found.components)
    # Without a default there is no axis, and what needs one is not there.
    assert found.moved == ()
    assert found.default_z is None
    assert (found.at.axis_cosine, found.at.projection_correlation) == (None, None)
    assert found.at.pc1_correlation == pytest.approx(0, abs=1e-3)


def test_a_layer_without_an_axis_has_no_number_and_the_others_have():
    default_LD = DEFAULT_LD.copy()
    b = side(ROLES_PLD, default_LD, WORLD.roles)
    assert b.reduction.axis is not None
    b.reduction.axis[0] = np.nan
    found = compare(side(ROLES_PLD, DEFAULT_LD, WORLD.roles), b, layer=1)
    assert found.layers[0].axis_cosine is None
    assert found.layers[0].projection_correlation is None
    assert found.layers[0].pc1_correlation is not None
    assert found.layers[1].axis_cosine == pytest.approx(1)
    json.dumps(found.as_dict(), allow_nan=False)
    at_0 = compare(side(ROLES_PLD, DEFAULT_LD, WORLD.roles), b, layer=0)
    assert at_0.moved == ()
    assert at_0.default_z is None


def test_layers_are_matched_by_depth():
    assert match_layers(range(0, 64, 8), 64, range(80), 80) == [
        (layer, round((layer + 1) * 80 / 64 - 1)) for layer in range(0, 64, 8)
    ]
    assert match_layers([31], 32, [29], 30) == [(31, 29)]  # the last of both
    assert match_layers([0], 32, [29], 30) == []
    # Models of one depth have the same layers or none.
    assert match_layers([3, 5], 32, [4, 5], 32) == [(5, 5)]
    assert match_layers([], 4, [1], 4) == []


def test_models_of_other_depth_are_compared_at_the_same_depth():
    deep_PLD = np.repeat(ROLES_PLD, 2, axis=1)
    b = side(deep_PLD, np.repeat(DEFAULT_LD, 2, axis=0), WORLD.roles, model="two")
    found = compare(side(ROLES_PLD, DEFAULT_LD, WORLD.roles), b)
    assert [(layer.layer_a, layer.layer_b) for layer in found.layers] == [(0, 1), (1, 3)]
    assert "models differ" in found.notes[0].lower()


def test_what_else_differs_is_said():
    a = side(ROLES_PLD, DEFAULT_LD, WORLD.roles, judge=None, role_filter="all", pooling="response_mean")
    b = side(ROLES_PLD[:20], DEFAULT_LD, WORLD.roles[:20], judge="small", role_filter="scored 3", store="there")
    notes = compare(a, b).notes
    assert notes[0] == "The rollouts that count differ: all and scored 3."
    assert notes[1] == "Judges differ: none and small."
    assert "Only in here" in notes[2]
    assert "and 2 more" in notes[2]
    assert len(notes) == 3


@pytest.mark.parametrize(("num_roles", "is_warned"), [(3, True), (9, True), (10, False)])
def test_correlations_over_few_roles_are_warned_of(num_roles: int, is_warned: bool):
    few = WORLD.roles[:num_roles]
    notes = compare(side(ROLES_PLD[:num_roles], DEFAULT_LD, few), side(ROLES_PLD[:num_roles], DEFAULT_LD, few)).notes
    assert any(note.startswith(f"Only {num_roles} roles are common") for note in notes) == is_warned


@pytest.mark.parametrize(
    ("b", "layer", "code"),
    [
        (side(ROLES_PLD, DEFAULT_LD, [f"other{n}" for n in range(30)]), None, "few_common_roles"),
        (side(ROLES_PLD, DEFAULT_LD, WORLD.roles, n_layers=8, layers=(6, 7)), None, "no_common_layer"),
        (side(ROLES_PLD, DEFAULT_LD, WORLD.roles), 5, "no_common_layer"),
        (
            replace(side(ROLES_PLD, None, WORLD.roles), reduction=Reduction("x", (0,), (), (), {})),
            None,
            "nothing_to_compare",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused_by_name(b: Side, layer: int | None, code: str):
    # Captured at the first layers, where the other was captured at the last.
    places: dict[str, Any] = {"n_layers": 8, "layers": (1, 2)} if b.n_layers == 8 else {}
    a = side(ROLES_PLD, DEFAULT_LD, WORLD.roles, **places)
    with pytest.raises(InputError) as caught:
        compare(a, b, layer)
    assert caught.value.code == code


def test_a_layer_that_is_not_there_is_told_from_one_without_a_counterpart():
    early = side(ROLES_PLD, DEFAULT_LD, WORLD.roles, n_layers=8, layers=(1, 2))
    late = side(ROLES_PLD, DEFAULT_LD, WORLD.roles, n_layers=8, layers=(2, 3))
    with pytest.raises(InputError, match="layer 1 of the first has no layer of the second") as caught:
        compare(early, late, 1)
    assert caught.value.hint == "Choose one of 2."
    with pytest.raises(InputError, match="the first has no layer 30; it has 1 to 2"):
        compare(early, late, 30)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str, str]:
    """A run with two reductions, without a judge and with one."""
    run = small_run(str(tmp_path_factory.mktemp("store") / "run"))
    plain = reduce_run(run).reduction_id
    for unit_id in run.index["unit_id"].unique().to_pylist():
        lines = run.index.filter([unit == unit_id for unit in run.index["unit_id"].to_pylist()])
        if lines["kind"][0].as_py() == "role":
            rows = lines["row"].to_pylist()
            write_scores(run.location, "small", unit_id, rows, [3.0 if row % 3 else 1.0 for row in rows])
    run = open_run(run.url)
    return run, plain, reduce_run(run, judge="small", min_count=1).reduction_id


def test_the_command_compares_two_judges_of_one_store(judged: tuple[Run, str, str]):
    run, plain, scored = judged
    arguments = ["compare", run.url, run.url, "--reduction-a", plain, "--json"]
    done = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    found = json.loads(done.stdout)
    assert found["a"]["reduction"] == plain
    assert found["b"]["reduction"] == scored
    assert found["roles"] == 3
    a, b = side_of(run, plain).reduction.axis, side_of(run, scored).reduction.axis
    assert a is not None
    assert b is not None
    assert found["axis_cosine"] == pytest.approx(float(cosine_or_nan(a[found["layer_a"]], b[found["layer_a"]])))
    assert "Judges differ: none and small." in found["notes"]
    printed = CliRunner().invoke(cli, arguments[:-1], catch_exceptions=False, standalone_mode=False).stdout
    for told in (
        "3 common roles",
        "over 3 roles",
        "Only 3 roles are common",
        "cosine of the axes",
        "cosine of role vectors",
        "overlap of the first components",
        "PC1",
        "pirate",
        "Judges differ",
    ):
        assert told in printed


def test_only_reductions_are_listed_as_stored(judged: tuple[Run, str, str]):
    run, plain, scored = judged
    assert reduction_ids(run.location) == sorted([plain, scored])


def test_the_command_refuses_what_is_not_there_and_changes_nothing(
    judged: tuple[Run, str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run, _, _ = judged
    small_run(str(tmp_path / "new"))
    before = run.location.sizes("")
    for arguments, code in (
        ([run.url, run.url], "same_reduction"),
        ([run.url, run.url, "--reduction-b", "0123"], "no_such_reduction"),
        ([run.url, run.url, "--reduction-b", "zarr"], "no_such_reduction"),
        ([run.url, str(tmp_path / "new")], "no_reduction"),
        ([run.url, str(tmp_path / "none")], "no_run"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["compare", *arguments, "--json"])
        assert ended.value.code == 2
        told = json.loads(capsys.readouterr().err.splitlines()[-1])
        assert told["code"] == code
    assert run.location.sizes("") == before


def test_two_runs_of_one_job_are_compared_although_their_reductions_have_one_id(
    judged: tuple[Run, str, str], tmp_path: Path
):
    run, _, scored = judged
    shutil.copytree(run.url, tmp_path / "again")
    a, b = side_of(run), side_of(open_run(tmp_path / "again"))
    assert (a.reduction.reduction_id, b.reduction.reduction_id) == (scored, scored)
    refuse_same(a, b, "")
    with pytest.raises(InputError, match="nothing differs"):
        refuse_same(a, a, "")
