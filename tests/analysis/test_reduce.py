"""The reduction of a committed run against numpy over the known activations of each rollout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.analysis.left_out import left_out_sentences
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.analysis.reduction import budget
from persona_atlas.analysis.report import render_report
from persona_atlas.analysis.summary import summarise
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.personas import DEFAULT_PERSONA
from persona_atlas.jobs.plan import Plan
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.jobs.work.units import RolloutRequest
from persona_atlas.storage.derived.reductions import Reduction
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.workers.engine import CapturedRollout

from fakes import FakeEngine, small_plan, small_spec, vector_of
from stored_runs import commit_units, small_run

ARRAY = ("resid_post", "response_mean")
ROLES = ("pirate", "poet", "teacher")


def exact_spec(url: Path, **changes: Any) -> JobSpec:
    """Without rounding, so that the stored numbers are vector_of's."""
    return small_spec(store={"url": str(url), "mantissa_bits": 23}, **changes)


def personas(**counts: object) -> dict[str, object]:
    nobody: dict[str, object] = {"roles": {"names": []}, "traits": {"names": []}, "default": {"prompts": 0}}
    return nobody | counts


def addresses_of(plan: Plan, kind: str, persona: str, polarity: str = "pos") -> list[RolloutAddress]:
    return [
        address
        for unit in plan.units
        if (unit.kind, unit.persona, unit.polarity) == (kind, persona, polarity)
        for address in unit.addresses()
    ]


def mean_of(addresses: list[RolloutAddress], array: tuple[str, str] = ARRAY) -> np.ndarray:
    return np.mean([vector_of(address, array, 4, 16).astype(np.float64) for address in addresses], axis=0)


def close(got: np.ndarray | None, expected: np.ndarray) -> None:
    assert got is not None
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reduction, Plan]:
    url = tmp_path_factory.mktemp("store") / "run"
    spec = exact_spec(url)
    run = small_run(str(url), spec)
    return run, reduce_run(run), small_plan(spec)


def test_means_and_axis_equal_numpy(whole: tuple[Run, Reduction, Plan]):
    _, reduction, plan = whole
    roles_PLD = np.stack([mean_of(addresses_of(plan, "role", role)) for role in ROLES])
    default_LD = mean_of(addresses_of(plan, "default", DEFAULT_PERSONA))
    assert reduction.role_names == ROLES
    assert reduction.layers == (0, 1, 2, 3)
    assert reduction.role_counts is not None
    assert reduction.role_counts.tolist() == [6, 6, 6]
    close(reduction.role_vectors, roles_PLD)
    close(reduction.default_vector, default_LD)
    close(reduction.axis, default_LD - roles_PLD.mean(axis=0))
    assert reduction.axis is not None
    assert reduction.axis.dtype == np.float32


def test_a_traits_vector_is_its_positive_mean_less_its_negative(whole: tuple[Run, Reduction, Plan]):
    _, reduction, plan = whole
    positive, negative = (mean_of(addresses_of(plan, "trait", "anxious", side)) for side in ("pos", "neg"))
    assert reduction.trait_names == ("anxious",)
    close(reduction.trait_vectors, (positive - negative)[None])


def test_every_rollouts_projection_stands_beside_its_row(whole: tuple[Run, Reduction, Plan]):
    run, reduction, plan = whole
    assert reduction.axis is not None
    assert reduction.projections is not None
    assert reduction.projection_rows is not None
    columns = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
    by_row = {line["row"]: RolloutAddress(*(line[name] for name in columns)) for line in run.index.to_pylist()}
    assert set(reduction.projection_rows.tolist()) == set(by_row)
    assert len(by_row) == plan.num_rollouts
    unit_LD = reduction.axis / np.linalg.norm(reduction.axis, axis=1, keepdims=True)
    for row, projected_L in zip(reduction.projection_rows.tolist(), reduction.projections, strict=True):
        close(projected_L, (vector_of(by_row[row], ARRAY, 4, 16) * unit_LD).sum(axis=1))


def test_thresholds_are_percentiles_over_all_rollouts_of_every_kind(whole: tuple[Run, Reduction, Plan]):
    _, reduction, plan = whole
    assert reduction.projections is not None
    assert reduction.projections.shape == (plan.num_rollouts, 4)
    assert reduction.threshold_labels == ("p0.01", "p0.25", "p0.5", "p0.75")
    close(reduction.cap_on_minus_axis, np.percentile(-reduction.projections, [1, 25, 50, 75], axis=0))
    close(reduction.floor_on_axis, np.percentile(reduction.projections, [99, 75, 50, 25], axis=0))


def test_pca_is_that_of_the_role_vectors_turned_toward_the_axis(whole: tuple[Run, Reduction, Plan]):
    _, reduction, _ = whole
    assert reduction.role_vectors is not None
    assert reduction.pca_components is not None
    assert reduction.pc1_axis_cosine is not None
    assert reduction.axis is not None
    close(reduction.pca_mean, reduction.role_vectors.mean(axis=0))
    assert reduction.pca_components.shape == (4, 2, 16)
    for layer in range(4):
        centred_PD = reduction.role_vectors[:, layer] - reduction.role_vectors[:, layer].mean(axis=0)
        values, vectors = np.linalg.eigh((centred_PD.T @ centred_PD).astype(np.float64))
        assert reduction.pca_variance_ratio is not None
        close(reduction.pca_variance_ratio[layer], values[::-1][:2] / values.sum())
        assert abs(reduction.pca_components[layer, 0] @ vectors[:, -1]) == pytest.approx(1, abs=1e-4)
        axis_D = reduction.axis[layer] / np.linalg.norm(reduction.axis[layer])
        assert reduction.pc1_axis_cosine[layer] == pytest.approx(reduction.pca_components[layer, 0] @ axis_D, abs=1e-5)
        assert reduction.pc1_axis_cosine[layer] >= 0


def test_what_was_stored_is_what_was_returned(whole: tuple[Run, Reduction, Plan]):
    run, reduction, _ = whole
    stored = run.reduction
    assert stored is not None
    assert_same(stored, reduction)
    assert stored.facts == {
        "hook_point": "resid_post",
        "pooling": "response_mean",
        "role_filter": "all",
        "rollout_filter": "all",
        "judge": None,
        "min_score": None,
        "min_count": 1,
        "trait_kind": "pos_neg",
        "all_traits": ["anxious"],
        "percentiles": [1, 25, 50, 75],
        "massive": [[], [], [], []],
        "halves": "questions with even and with odd index",
        "units": 12,
        "units_planned": 12,
        "rollouts": 36,
    }


def assert_same(a: Reduction, b: Reduction) -> None:
    for name in Reduction.__dataclass_fields__:
        left, right = getattr(a, name), getattr(b, name)
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right, err_msg=name)
        else:
            assert left == right, name


def test_a_layer_at_a_time_gives_the_same_as_all_at_once(
    whole: tuple[Run, Reduction, Plan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _, at_once, _ = whole
    for limit in ("VECTOR_BYTES", "PROJECTION_BYTES", "_THREAD_BYTES"):
        monkeypatch.setattr(budget, limit, 1)
    said: list[str] = []
    run = small_run(str(tmp_path / "run"), exact_spec(tmp_path / "run"))
    by_layer = reduce_run(run, say=said.append)
    assert said == [
        "Averaging 6 personas.",
        "Computing vectors, axis and PCA at 4 layers, 1 at a time.",
        "Projecting 6 personas.",
        "Computing thresholds and intervals at 4 layers, 1 at a time.",
    ]
    assert_same(by_layer, at_once)


def test_an_empty_response_counts_in_no_mean(tmp_path: Path):
    spec = exact_spec(tmp_path / "run")
    plan = small_plan(spec)
    pirates = addresses_of(plan, "role", "pirate")
    silent = frozenset(pirates[:2])
    reduction = reduce_run(small_run(str(tmp_path / "run"), spec, FakeEngine(empty=silent)))
    assert reduction.role_vectors is not None
    assert reduction.role_counts is not None
    assert reduction.projections is not None
    close(reduction.role_vectors[0], mean_of(pirates[2:]))
    assert reduction.role_counts.tolist() == [4, 6, 6]
    assert len(reduction.projections) == plan.num_rollouts - 2


def test_empty_responses_amid_the_rows_of_a_large_unit_count_in_no_mean(tmp_path: Path):
    counts = {"prompts": 1, "questions": 36}
    spec = exact_spec(tmp_path / "run", personas=personas(roles={"names": list(ROLES), **counts}, default=counts))
    plan = small_plan(spec)
    pirates = addresses_of(plan, "role", "pirate")
    silent = frozenset(pirates[number] for number in (3, 4, 20))
    reduction = reduce_run(small_run(str(tmp_path / "run"), spec, FakeEngine(empty=silent)))
    assert reduction.role_vectors is not None
    close(reduction.role_vectors[0], mean_of([address for address in pirates if address not in silent]))


def test_a_persona_that_never_answered_has_no_vector_rather_than_a_zero_one(tmp_path: Path):
    spec = exact_spec(tmp_path / "run")
    plan = small_plan(spec)
    silent = frozenset(addresses_of(plan, "role", "poet") + addresses_of(plan, "trait", "anxious", "neg"))
    reduction = reduce_run(small_run(str(tmp_path / "run"), spec, FakeEngine(empty=silent)))
    assert reduction.role_names == ("pirate", "teacher")
    assert reduction.trait_names == ()
    assert reduction.trait_vectors is None


def test_without_the_default_there_are_vectors_and_pca_but_no_axis(tmp_path: Path):
    roles = {"names": list(ROLES), "prompts": 1, "questions": 2}
    spec = exact_spec(tmp_path / "run", personas=personas(roles=roles))
    reduction = reduce_run(small_run(str(tmp_path / "run"), spec))
    close(
        reduction.role_vectors,
        np.stack([mean_of(addresses_of(small_plan(spec), "role", role)) for role in ROLES]),
    )
    assert reduction.pca_components is not None
    for nothing in ("axis", "default_vector", "projections", "floor_on_axis", "pc1_axis_cosine"):
        assert getattr(reduction, nothing) is None
    assert reduction.threshold_labels == ()


def test_with_two_roles_there_is_an_axis_but_no_pca(tmp_path: Path):
    counts = {"prompts": 1, "questions": 2}
    spec = exact_spec(
        tmp_path / "run", personas=personas(roles={"names": ["pirate", "poet"], **counts}, default=counts)
    )
    reduction = reduce_run(small_run(str(tmp_path / "run"), spec))
    assert reduction.axis is not None
    assert reduction.projections is not None
    for nothing in ("pca_components", "pca_mean", "pca_variance_ratio", "pc1_axis_cosine"):
        assert getattr(reduction, nothing) is None


def test_without_roles_there_is_the_default_alone(tmp_path: Path):
    spec = exact_spec(tmp_path / "run", personas=personas(default={"prompts": 1, "questions": 2}))
    reduction = reduce_run(small_run(str(tmp_path / "run"), spec))
    assert reduction.default_vector is not None
    assert reduction.role_vectors is None
    assert reduction.axis is None


def test_another_pooling_can_be_reduced_and_one_not_captured_is_refused(tmp_path: Path):
    spec = exact_spec(tmp_path / "run", capture={"poolings": ["prompt_last", "response_last"]})
    arrays = (("resid_post", "prompt_last"), ("resid_post", "response_last"))
    run = small_run(str(tmp_path / "run"), spec, FakeEngine(arrays=arrays))
    pirates = addresses_of(small_plan(spec), "role", "pirate")
    for pooling, asked in (("prompt_last", None), ("response_last", "response_last")):
        reduction = reduce_run(run, pooling=asked)
        assert reduction.facts["pooling"] == pooling
        assert reduction.role_vectors is not None
        close(reduction.role_vectors[0], mean_of(pirates, ("resid_post", pooling)))
    with pytest.raises(InputError, match="response_mean was not captured"):
        reduce_run(run, pooling="response_mean")


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_second_call_returns_the_same_and_writes_nothing(tmp_path: Path):
    run = small_run(str(tmp_path / "run"))
    first = reduce_run(run)
    before = contents(tmp_path)
    assert_same(reduce_run(open_run(run.url)), first)
    assert contents(tmp_path) == before


def test_a_newly_committed_unit_makes_a_new_reduction_and_leaves_the_old_group_as_it_was(tmp_path: Path):
    url = str(tmp_path / "run")
    spec = small_spec(url)
    late = "role.teacher.pos.p1.b0"
    run = small_run(url, spec, leave_out=[late])
    old = reduce_run(run)
    old_group = contents(tmp_path / "run" / "analysis" / old.reduction_id)
    assert old.facts["units"] == 11
    assert old.facts["units_planned"] == 12
    commit_units(url, small_plan(spec), [late])
    new = reduce_run(run.refresh())
    assert new.reduction_id != old.reduction_id
    assert new.facts["units"] == 12
    assert new.role_counts is not None
    assert new.role_counts.tolist() == [6, 6, 6]
    assert contents(tmp_path / "run" / "analysis" / old.reduction_id) == old_group
    current = open_run(url).reduction
    assert current is not None
    assert current.reduction_id == new.reduction_id


def test_a_run_without_a_committed_unit_is_refused(tmp_path: Path):
    spec = small_spec(str(tmp_path / "run"))
    run = small_run(str(tmp_path / "run"), spec, leave_out=[unit.unit_id for unit in small_plan(spec).units])
    with pytest.raises(InputError, match="nothing is committed"):
        reduce_run(run)
    assert run.reduction is None


def test_a_reduction_is_made_wherever_the_store_is(store_url: str):
    run = small_run(store_url)
    reduction = reduce_run(run)
    stored = open_run(store_url).reduction
    assert stored is not None
    assert_same(stored, reduction)


class SameAt(FakeEngine):
    """All rollouts of the given kinds have the same vector at layer 0, as where one template token is pooled."""

    kinds: tuple[str, ...] = ()

    def _answer(self, request: RolloutRequest) -> CapturedRollout:
        answer = super()._answer(request)
        if request.address.kind not in self.kinds:
            return answer
        vectors = {name: vector_LD.copy() for name, vector_LD in answer.vectors_LD.items()}
        for vector_LD in vectors.values():
            vector_LD[0] = np.linspace(-1, 7, vector_LD.shape[1])
        return replace(answer, vectors_LD=vectors)


def same_at(*kinds: str) -> FakeEngine:
    engine = SameAt()
    engine.kinds = kinds
    return engine


def test_a_layer_where_every_rollout_has_the_same_vector_has_no_axis_and_no_components(
    tmp_path: Path, whole: tuple[Run, Reduction, Plan]
):
    run = small_run(str(tmp_path / "run"), exact_spec(tmp_path / "run"), engine=same_at("role", "default", "trait"))
    reduction = reduce_run(run)
    assert list(reduction.undefined("axis")) == list(reduction.undefined("pca")) == [0]
    assert "same vector" in reduction.undefined("axis")[0]
    for name, axis in {
        "axis": 0,
        "pca_components": 0,
        "pc1_axis_cosine": 0,
        "projections": 1,
        "floor_on_axis": 1,
    }.items():
        values, sound = (np.moveaxis(getattr(one, name), axis, 0) for one in (reduction, whole[1]))
        assert np.isnan(values[0]).all(), name
        np.testing.assert_array_equal(values[1:], sound[1:])
    with pytest.raises(InputError, match="no axis at layer 0: the default Assistant and the mean") as refused:
        reduction.axis_at(0)
    assert (refused.value.code, refused.value.field) == ("no_axis", "layer")
    np.testing.assert_array_equal(reduction.axis_at(2), reduction.axis[2] if reduction.axis is not None else None)
    with pytest.raises(InputError, match="layer 9 is not in the reduction"):
        reduction.axis_at(9)
    # Means are what they are, and the reduction can be read again: a chunk of NaN has the digest of its values.
    assert reduction.role_vectors is not None
    assert np.isfinite(reduction.role_vectors).all()
    stored = open_run(run.url).reduction
    assert stored is not None
    assert_same(stored, reduction)
    assert reduce_run(open_run(run.url)).undefined("axis") == reduction.undefined("axis")


def test_a_layer_where_the_traits_are_all_the_same_has_no_components_of_traits(tmp_path: Path):
    counts = {"prompts": 1, "questions": 2}
    chosen = personas(
        roles={"names": list(ROLES), **counts},
        traits={"names": ["anxious", "calm", "patient"], **counts},
        default=counts,
    )
    run = small_run(str(tmp_path / "run"), exact_spec(tmp_path / "run", personas=chosen), engine=same_at("trait"))
    reduction = reduce_run(run)
    assert reduction.undefined("pca") == {}
    assert reduction.undefined("trait_pca") == {0: "the trait vectors are all the same"}
    for name in (
        "trait_pca_components",
        "trait_pca_variance_ratio",
        "trait_pc1_axis_cosine",
        "trait_pca_z_components",
        "trait_pca_z_variance_ratio",
        "trait_pc1_z_axis_cosine",
    ):
        values = getattr(reduction, name)
        assert np.isnan(values[0]).all(), name
        assert np.isfinite(values[1:]).all(), name
    note = "There are no principal components of traits at layer 0: the trait vectors are all the same."
    assert note in summarise(run, reduction).notes
    render_report(run, reduction)


def test_the_report_and_the_summary_of_such_a_layer_say_so(tmp_path: Path):
    run = small_run(str(tmp_path / "run"), engine=same_at("role", "default", "trait"))
    reduction = reduce_run(run)
    at_0, at_2 = summarise(run, reduction, 0), summarise(run, reduction, 2)
    assert (at_0.roles, at_0.floors, at_0.pc1_variance, at_0.pc1_axis_cosine) == ((), {}, None, None)
    json.dumps(at_0.as_dict(), allow_nan=False)
    assert at_0.notes == at_2.notes
    assert at_2.notes == (
        "There is no axis at layer 0: the default Assistant and the mean of the roles have the same vector.",
        "There are no principal components at layer 0: the role vectors are all the same.",
    )
    assert len(at_2.roles) == 3
    page = render_report(run, reduction)
    assert "There is no axis at layer 0" in page
    assert "The persona map" in page


def test_a_run_of_one_degenerate_layer_has_a_report_too(tmp_path: Path):
    spec = small_spec(str(tmp_path / "run"), capture={"layers": [0]})
    engine = same_at("role", "default", "trait")
    engine.layers = (0,)
    run = small_run(str(tmp_path / "run"), spec, engine=engine)
    page = render_report(run, reduce_run(run))
    assert "There is no axis at layer 0" in page
    assert "The persona map" not in page


def test_roles_that_are_all_the_same_have_an_axis_but_no_components(tmp_path: Path):
    run = small_run(str(tmp_path / "run"), engine=same_at("role"))
    reduction = reduce_run(run)
    assert (reduction.undefined("axis"), list(reduction.undefined("pca"))) == ({}, [0])
    assert reduction.axis is not None
    assert np.isfinite(reduction.axis).all()
    assert reduction.pc1_axis_cosine is not None
    assert np.isfinite(reduction.pc1_axis_cosine).tolist() == [False, True, True, True]
    found = summarise(run, reduction, 0)
    assert len(found.roles) == 3
    render_report(run, reduction)


def test_personas_that_never_answered_are_named(tmp_path: Path):
    spec = small_spec(str(tmp_path / "run"))
    plan = small_plan(spec)
    silent = [*addresses_of(plan, "role", "poet"), *addresses_of(plan, "trait", "anxious", "neg")]
    run = small_run(str(tmp_path / "run"), spec, engine=FakeEngine(empty=frozenset(silent)))
    reduction = reduce_run(run)
    assert reduction.without_vector == {"role": ["poet"], "trait": ["anxious"]}
    assert reduction.role_names == ("pirate", "teacher")
    assert "poet" in " ".join(summarise(run, reduction).notes)
    assert "1 role has no vector, because every response is empty: poet." in render_report(run, reduction)


def test_a_default_and_conversations_that_never_answered_are_named_and_so_is_the_lack_of_an_axis(tmp_path: Path):
    spec = small_spec(str(tmp_path / "run"))
    silent = addresses_of(small_plan(spec), "default", "assistant_default")
    run = small_run(str(tmp_path / "run"), spec, engine=FakeEngine(empty=frozenset(silent)))
    reduction = reduce_run(run)
    assert reduction.axis is None
    assert summarise(run, reduction).notes == (
        "The default Assistant has no vector, because every response is empty: assistant_default.",
        "Without the default Assistant there is no axis.",
    )
    talks = replace(reduction, facts={"without_vector": {"conversation": ["talks"]}})
    assert left_out_sentences(talks) == ["Given conversations have no vector, because every response is empty: talks."]


@pytest.mark.parametrize(
    ("silent", "reason"),
    [
        (("neg",), "no rollout of the opposite has a vector"),
        (("pos",), "no rollout that shows it has a vector"),
        (("pos", "neg"), "every response is empty"),
    ],
)
def test_a_trait_of_which_one_polarity_never_answered_is_told_apart_from_one_that_never_did(
    tmp_path: Path, silent: tuple[str, ...], reason: str
):
    spec = small_spec(str(tmp_path / "run"))
    plan = small_plan(spec)
    empty = frozenset(address for polarity in silent for address in addresses_of(plan, "trait", "anxious", polarity))
    reduction = reduce_run(small_run(str(tmp_path / "run"), spec, engine=FakeEngine(empty=empty)))
    assert left_out_sentences(reduction) == [f"1 trait has no vector, because {reason}: anxious."]
