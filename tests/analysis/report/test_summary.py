"""The summary of a reduction at one layer: values against numpy, and what the terminal and ``--json`` show of it."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.analysis.summary import RankedRole, filter_note, standardise, summarise
from persona_atlas.cluster.cli.summary_text import print_summary
from persona_atlas.storage.derived.reductions import Reduction
from persona_atlas.storage.query.run import Run

from stored_runs import small_run

NOTE = "No scores are used: every rollout counts"


@pytest.fixture(scope="module")
def reduced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reduction]:
    run = small_run(str(tmp_path_factory.mktemp("store") / "run"))
    return run, reduce_run(run)


def test_a_summary_is_of_the_middle_layer_and_ranks_roles_from_the_assistants_end(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    found = summarise(run, reduction)
    assert found.layer == 2
    assert reduction.axis is not None
    assert reduction.role_vectors is not None
    assert reduction.default_vector is not None
    direction_D = reduction.axis[2] / np.linalg.norm(reduction.axis[2])
    by_hand = {
        name: float(vector_D @ direction_D)
        for name, vector_D in zip(reduction.role_names, reduction.role_vectors[:, 2], strict=True)
    }
    assert [name for name, *_ in found.roles] == sorted(by_hand, key=lambda name: -by_hand[name])
    values = np.array(list(by_hand.values()))
    for name, value, z, *_ in found.roles:
        assert value == pytest.approx(by_hand[name], rel=1e-4)
        assert z == pytest.approx((by_hand[name] - values.mean()) / values.std(), rel=1e-4, abs=1e-4)
    of_default = float(reduction.default_vector[2] @ direction_D)
    assert found.default_projection == pytest.approx(of_default, rel=1e-4)
    assert found.default_z == pytest.approx((of_default - values.mean()) / values.std(), rel=1e-3)
    assert found.default_z is not None
    assert found.default_z > 0


def test_a_summary_of_a_named_layer_takes_that_layers_numbers(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    for layer in run.layers:
        found = summarise(run, reduction, layer)
        assert found.layer == layer
        assert reduction.pca_variance_ratio is not None
        assert reduction.pc1_axis_cosine is not None
        assert reduction.floor_on_axis is not None
        first, second = reduction.pca_variance_ratio[layer]
        assert found.pc1_variance == pytest.approx(first)
        assert found.components_for_70 == (1 if first >= 0.7 else 2)
        assert first + second == pytest.approx(1, abs=1e-5)
        assert found.pc1_axis_cosine == pytest.approx(reduction.pc1_axis_cosine[layer])
        assert found.floors == pytest.approx(
            dict(zip(reduction.threshold_labels, reduction.floor_on_axis[:, layer], strict=True))
        )


def test_a_summary_is_plain_data_that_says_its_sign_and_its_filter(reduced: tuple[Run, Reduction]):
    run, reduction = reduced
    found = summarise(run, reduction)
    data = json.loads(json.dumps(found.as_dict()))
    assert data["roles"][0].keys() == {"role", "projection", "z_score", "rollouts", "interval"}
    assert "toward the Assistant" in data["direction"]
    assert (data["units_done"], data["units_planned"], data["rollouts"]) == (12, 12, 36)
    assert NOTE in found.filter_note


def test_the_ends_of_many_roles_do_not_overlap(reduced: tuple[Run, Reduction]):
    found = summarise(*reduced)
    for num_roles in (0, 3, 5, 7, 12):
        roles = tuple(RankedRole(f"role {i}", -float(i), 0.0) for i in range(num_roles))
        several = dataclasses.replace(found, roles=roles)
        near, far = several.assistant_end, several.far_end
        assert near == roles[:5]
        assert not set(near) & set(far)
        assert far[:1] == (roles[-1:] if num_roles > 5 else ())
        assert len(near) + len(far) == min(num_roles, 10)


def test_scores_of_values_without_spread_are_zero():
    assert standardise(np.array([3.0, 5.0]), np.array([3.0, 3.0])).tolist() == [0, 0]


def test_n_intervals_and_reliability_are_in_the_table_where_the_reduction_has_them(
    reduced: tuple[Run, Reduction], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    run, reduction = reduced
    num_layers, num_roles = len(reduction.layers), len(reduction.role_names)
    one = np.ones((num_roles, num_layers), np.float32)
    known = dataclasses.replace(
        reduction,
        axis_split_half=np.full(num_layers, 0.25, np.float32),
        axis_interval=np.stack([np.full(num_layers, 0.5), np.full(num_layers, 0.75)]).astype(np.float32),
        role_projection_interval=np.stack([-one, 2 * one]),
    )
    found = summarise(run, known)
    assert found.roles[0].interval == (-1, 2)
    assert found.roles[0].rollouts == 6
    assert json.loads(json.dumps(found.as_dict()))["axis_interval"] == [0.5, 0.75]
    print_summary(found)
    printed = capsys.readouterr().out
    assert "-1.00 to +2.00" in printed
    assert "+0.250" in printed
    assert "+0.500 to +0.750" in printed
    assert "..." not in printed, "every role is shown"
    bare = dataclasses.replace(known, axis_split_half=None, axis_interval=None, role_projection_interval=None)
    print_summary(summarise(run, bare))
    printed = capsys.readouterr().out
    assert "95 %" not in printed
    unknown = dataclasses.replace(known, axis_split_half=np.full(num_layers, np.nan, np.float32))
    assert summarise(run, unknown).split_half is None


def test_what_counts_is_said_whatever_the_judge():
    assert filter_note({"rollout_filter": "all"}).startswith(NOTE)
    assert "whatever the judge q gave it" in filter_note({"role_filter": "all", "judge": "q"})
    assert filter_note({"role_filter": "scored 3", "judge": "q"}).endswith("scored 3 by the judge q.")
    assert "not known" in filter_note({})
