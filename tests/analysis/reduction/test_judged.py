"""Reductions by a judge's scores: which rollouts count, which vectors there are, and what stays as it is without."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from persona_atlas.analysis.reduce import reduce_again, reduce_run
from persona_atlas.analysis.reduction.settings import asked_again, make_settings
from persona_atlas.analysis.report.samples import samples_of
from persona_atlas.analysis.summary import summarise
from persona_atlas.cluster.cli.summary_text import print_summary
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.specs.spec import JobSpec
from persona_atlas.jobs.work.addresses import RolloutAddress
from persona_atlas.storage.derived.reduction import ARRAYS
from persona_atlas.storage.derived.reductions import Reduction
from persona_atlas.storage.query.run import Run, open_run

from fakes import small_plan, small_spec, vector_of
from scored_runs import score_run
from stored_runs import commit_units, small_run

ARRAY = ("resid_post", "response_mean")


def exact_spec(url: Path, **changes: Any) -> JobSpec:
    return small_spec(store={"url": str(url), "mantissa_bits": 23}, **changes)


def by_question(line: Mapping[str, Any]) -> float:
    """Roles get their question's index and one more, but for the poet; of traits the first two questions pass."""
    if line["kind"] == "role":
        return 0.0 if line["persona"] == "poet" else float(line["question_index"] + 1)
    if line["polarity"] == "neg":
        return 5.0 if line["question_index"] else float("nan")
    return [90.0, 60.0, 40.0][line["question_index"]]


def vectors(run: Run, **where: object) -> np.ndarray:
    """Vectors of the rollouts whose address has these values, float64 (N, 4, 16)."""
    names = ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index")
    lines = [line for line in run.index.to_pylist() if all(line[name] == value for name, value in where.items())]
    return np.stack([vector_of(RolloutAddress(*(line[n] for n in names)), ARRAY, 4, 16) for line in lines]).astype(
        float
    )


def close(found: np.ndarray | None, expected: np.ndarray) -> None:
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Reduction, Reduction]:
    """A judged run, its reduction without scores, and that with them."""
    url = tmp_path_factory.mktemp("judged") / "run"
    run = small_run(str(url), exact_spec(url))
    plain = reduce_run(run)
    score_run(run, "strict", by_question)
    return run, plain, reduce_run(run, min_count=2)


def test_role_vectors_are_means_of_what_is_scored_3(judged: tuple[Run, Reduction, Reduction]):
    run, _, found = judged
    assert found.role_names == ("pirate", "teacher")
    assert found.role_counts is not None
    assert found.role_counts.tolist() == [2, 2]
    roles = [vectors(run, kind="role", persona=name, question_index=2).mean(axis=0) for name in found.role_names]
    close(found.role_vectors, np.stack(roles))
    close(found.axis, vectors(run, kind="default").mean(axis=0) - np.mean(roles, axis=0))
    assert found.facts["role_filter"] == found.facts["rollout_filter"] == "scored 3"
    assert (found.facts["judge"], found.facts["min_count"], found.facts["min_score"]) == ("strict", 2, 3)
    assert found.facts["roles_left_out"] == {"poet": 0}
    assert "1 role has no vector, because fewer than 2 rollouts are scored 3: poet." in " ".join(
        summarise(run, found).notes
    )


def test_means_by_score_have_counts_and_nan_where_there_is_none(judged: tuple[Run, Reduction, Reduction]):
    run, _, found = judged
    assert found.mean_fully is not None
    assert found.mean_somewhat is not None
    assert found.count_fully is not None
    at = {name: place for place, (kind, name, _) in enumerate(found.personas) if kind == "role"}
    close(found.mean_fully[at["pirate"]], vectors(run, persona="pirate", question_index=2).mean(axis=0))
    close(found.mean_somewhat[at["pirate"]], vectors(run, persona="pirate", question_index=1).mean(axis=0))
    assert np.isnan(found.mean_fully[at["poet"]]).all()
    assert found.count_fully[at["poet"]] == 0
    assert found.mean is not None
    close(found.mean[at["poet"]], vectors(run, persona="poet").mean(axis=0))


def test_fully_and_somewhat_played_roles_are_points_of_one_pca(judged: tuple[Run, Reduction, Reduction]):
    run, plain, found = judged
    assert found.facts["category_roles"] == {"fully": ["pirate", "teacher"], "somewhat": ["pirate", "teacher"]}
    points_PLD = np.stack(
        [
            vectors(run, persona=name, question_index=question).mean(axis=0)
            for question in (2, 1)
            for name in ("pirate", "teacher")
        ]
    )
    close(found.category_pca_mean, points_PLD.mean(axis=0))
    assert found.category_pca_components is not None
    assert found.axis is not None
    for layer in range(4):
        centred_PD = points_PLD[:, layer] - points_PLD[:, layer].mean(axis=0)
        _, singular, directions = np.linalg.svd(centred_PD, full_matrices=False)
        assert found.category_pca_variance_ratio is not None
        close(found.category_pca_variance_ratio[layer], singular[:3] ** 2 / (singular**2).sum())
        first_D = found.category_pca_components[layer, 0]
        assert abs(first_D @ directions[0]) == pytest.approx(1, abs=1e-4)
        cosine = first_D @ found.axis[layer] / np.linalg.norm(found.axis[layer])
        assert found.category_pc1_axis_cosine is not None
        assert found.category_pc1_axis_cosine[layer] == pytest.approx(cosine, abs=1e-5)
        assert cosine >= 0
        deviation_D = centred_PD.std(axis=0, ddof=1)
        _, singular, directions = np.linalg.svd(centred_PD / deviation_D, full_matrices=False)
        assert found.category_pca_z_scale is not None
        close(found.category_pca_z_scale[layer], deviation_D)
        assert found.category_pca_z_variance_ratio is not None
        close(found.category_pca_z_variance_ratio[layer], singular[:3] ** 2 / (singular**2).sum())
        assert found.category_pca_z_components is not None
        first_D = found.category_pca_z_components[layer, 0]
        assert abs(first_D @ directions[0]) == pytest.approx(1, abs=1e-4)
        scaled_D = found.axis[layer] / deviation_D
        assert found.category_pc1_z_axis_cosine is not None
        cosine = first_D @ scaled_D / np.linalg.norm(scaled_D)
        assert found.category_pc1_z_axis_cosine[layer] == pytest.approx(cosine, abs=1e-4)
    assert plain.category_pca_components is None
    assert "category_roles" not in plain.facts


def test_a_category_with_too_few_rollouts_of_a_role_is_no_point(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = small_run(str(tmp_path / "run"))
    fully = {"pirate": 6, "poet": 4, "teacher": 2}
    scored = dict.fromkeys(fully, 0)

    def rule(line: Mapping[str, Any]) -> float:
        if line["kind"] != "role":
            return 50.0
        scored[line["persona"]] += 1
        return 3.0 if scored[line["persona"]] <= fully[line["persona"]] else 2.0

    score_run(run, "strict", rule)
    found = reduce_run(run, min_count=4)
    # The poet has two rollouts that play it somewhat, and the teacher as many that play it fully.
    assert found.facts["category_roles"] == {"fully": ["pirate", "poet"], "somewhat": ["teacher"]}
    assert found.category_pca_variance_ratio is not None
    assert found.category_pca_variance_ratio.shape == (4, 2)
    summary = summarise(run, found)
    first = found.category_pca_variance_ratio[summary.layer, 0]
    assert summary.components_for_70_by_category == (1 if first >= 0.7 else 2)
    print_summary(summary)
    assert "2 fully and 1 somewhat played roles together" in capsys.readouterr().out

    at = {"category_pca": {str(summary.layer): "of a reason"}}
    undefined = dataclasses.replace(found, facts=found.facts | {"undefined": at})
    assert summarise(run, undefined).components_for_70_by_category is None
    assert any("somewhat played roles at layer" in note for note in summarise(run, undefined).notes)
    print_summary(summarise(run, undefined))
    assert "played roles together" not in capsys.readouterr().out

    # Of one category alone they are no more than the role vectors.
    score_run(run, "kind", lambda line: 3.0 if line["kind"] == "role" else 50.0)
    alone = summarise(run, reduce_run(run, judge="kind", min_count=4))
    assert alone.category_vectors == {"fully": 3, "somewhat": 0}
    assert alone.components_for_70_by_category is None


def test_trait_vectors_are_of_pairs_that_differ_by_more_than_50(judged: tuple[Run, Reduction, Reduction]):
    run, _, found = judged
    # 90 has no partner, 60 - 5 passes, 40 - 5 does not.
    pairs = [vectors(run, kind="trait", polarity=side, question_index=1).mean(axis=0) for side in ("pos", "neg")]
    assert found.trait_names == ("anxious",)
    assert found.facts["trait_kind"] == "pos_neg_50"
    close(found.trait_vectors, (pairs[0] - pairs[1])[None])
    close(found.trait_vectors_pos_neg_50, (pairs[0] - pairs[1])[None])
    whole = [vectors(run, kind="trait", polarity=side).mean(axis=0) for side in ("pos", "neg")]
    close(found.trait_vectors_pos_neg, (whole[0] - whole[1])[None])
    default = vectors(run, kind="default").mean(axis=0)
    close(found.trait_vectors_pos_default, (whole[0] - default)[None])
    close(found.trait_vectors_pos_70, vectors(run, kind="trait", polarity="pos", question_index=0).mean(axis=0)[None])
    assert found.trait_counts_pos_neg_50 is not None
    assert (found.trait_counts_pos_neg_50.tolist(), found.facts["all_traits"]) == ([2], ["anxious"])


def test_a_judge_changes_only_what_depends_on_scores(judged: tuple[Run, Reduction, Reduction]):
    run, plain, found = judged
    for name in ("mean", "variance", "count", "default_vector", "trait_vectors_pos_neg", "projection_rows"):
        close(getattr(found, name), np.asarray(getattr(plain, name)))
    assert not np.array_equal(np.asarray(found.axis), np.asarray(plain.axis))
    assert found.projections is not None
    assert len(found.projections) == run.index.num_rows
    without = reduce_run(run, judge="none")
    close(without.axis, np.asarray(plain.axis))


def test_a_lower_score_and_another_count_let_more_in(judged: tuple[Run, Reduction, Reduction]):
    run, plain, _ = judged
    found = reduce_run(run, min_score=0, min_count=1)
    assert found.facts["role_filter"] == "scored 0 or more"
    assert found.role_names == plain.role_names
    close(found.role_vectors, np.asarray(plain.role_vectors))
    close(found.axis, np.asarray(plain.axis))
    assert found.pca_components is not None


@pytest.mark.parametrize(
    ("least", "averages", "counted"),
    [(3, (2.4, 2.5, 2.6, 3.0), (2, 3)), (2, (0.5, 1.4, 1.5, 1.6), (2, 3)), (1, (0.6, 0.4, 1.0, 0.5), (0, 2))],
)
def test_of_averaged_scores_the_samples_are_the_rollouts_that_count(
    tmp_path: Path, least: float, averages: tuple[float, ...], counted: tuple[int, int]
):
    counts = {"prompts": 1, "questions": 4}
    personas = {"roles": {"names": ["pirate", "poet"], **counts}, "default": counts}
    run = small_run(str(tmp_path), exact_spec(tmp_path, personas=personas))
    score_run(run, "mean", lambda line: averages[line["question_index"]])
    found = reduce_run(run, min_score=least, min_count=1)
    assert found.role_counts is not None
    assert found.role_counts.tolist() == [2, 2]
    # Of two rollouts of a unit that count, both are shown.
    samples = samples_of(run, found)
    shown = [{sample.row for sample in samples["role", name]} for name in found.role_names]
    question_of = {line["row"]: line["question_index"] for line in run.index.to_pylist()}
    assert [sorted(question_of[row] for row in rows) for rows in shown] == [list(counted)] * 2
    of_shown = [
        [vectors(run, persona=name, question_index=question) for question in counted] for name in found.role_names
    ]
    close(found.role_vectors, np.stack([np.concatenate(of_role).mean(axis=0) for of_role in of_shown]))
    assert len(samples["default", "assistant_default"]) == 2, "the default is not filtered"


def test_reducing_again_asks_for_the_same(judged: tuple[Run, Reduction, Reduction]):
    run, _, found = judged
    reduce_run(run, min_count=2)
    assert reduce_again(run).reduction_id == found.reduction_id


@pytest.mark.parametrize(
    "given", [{"judge": "none"}, {"judge": "none", "min_count": 1}, {"percentiles": [1, 25, 50, 75]}]
)
def test_what_was_asked_for_is_asked_again_though_it_changed_nothing_then(tmp_path: Path, given: dict[str, Any]):
    run = small_run(str(tmp_path))
    plain = reduce_run(run)
    asked = reduce_run(run, **given)
    close(asked.axis, np.asarray(plain.axis))
    assert asked.facts["asked"] == given
    score_run(run, "strict", by_question)
    if "judge" in given:
        assert reduce_again(run).reduction_id == asked.reduction_id
    else:
        # The judge is asked for what roles need by default, 10 rollouts, and no role has them.
        with pytest.raises(InputError, match="10 rollouts"):
            reduce_again(run)
    assert reduce_run(run, min_count=2).facts["judge"] == "strict"


def test_a_least_count_that_changed_nothing_without_a_judge_holds_with_one(tmp_path: Path):
    run = small_run(str(tmp_path))
    reduce_run(run)
    reduce_run(run, min_count=1)
    score_run(run, "strict", by_question)
    assert reduce_again(run).facts["min_count"] == 1


def test_too_few_rollouts_are_refused_with_the_counts_that_would_do(judged: tuple[Run, Reduction, Reduction]):
    run, _, found = judged
    reduce_run(run, min_count=2)
    with pytest.raises(InputError, match="no role has 10 rollouts that are scored 3 by strict") as no:
        reduce_run(run)
    assert (no.value.code, no.value.field) == ("too_few_rollouts", "min_count")
    assert no.value.hint is not None
    assert "--min-count 2 gives 2 of 3 roles" in no.value.hint
    current = run.refresh().reduction
    assert current is not None
    assert current.reduction_id == found.reduction_id


def test_wrong_settings_are_refused(judged: tuple[Run, Reduction, Reduction]):
    run, _, _ = judged
    settings: tuple[tuple[dict[str, Any], str], ...] = (
        ({"judge": "strikt"}, "no_such_judge"),
        ({"min_score": 4}, "out_of_range"),
        ({"min_score": 2.5}, "not_whole"),
        ({"min_count": 0}, "out_of_range"),
        ({"percentiles": [1, 101]}, "out_of_range"),
        ({"percentiles": [5, 5]}, "out_of_range"),
        ({"percentiles": []}, "out_of_range"),
        ({"judge": "none", "min_score": 2}, "no_scores"),
    )
    for wrong, code in settings:
        with pytest.raises(InputError) as refused:
            reduce_run(run, **wrong)
        assert refused.value.code == code


def test_a_least_score_that_is_not_whole_is_refused_with_those_that_are(judged: tuple[Run, Reduction, Reduction]):
    run, _, _ = judged
    with pytest.raises(InputError, match="whole number") as refused:
        reduce_run(run, min_score=2.5)
    assert refused.value.field == "min_score"
    assert refused.value.hint == "Choose 0, 1, 2 or 3; with 3 a rollout scored 2.6 counts."


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_score": "2"},
        {"min_score": True},
        {"min_count": 2.0},
        {"min_count": True},
        {"min_count": "3"},
        {"percentiles": "1,5"},
        {"percentiles": 5},
        {"percentiles": [1, "5"]},
    ],
)
def test_what_is_no_number_is_refused_by_the_name_of_its_argument(
    judged: tuple[Run, Reduction, Reduction], wrong: dict[str, Any]
):
    run, _, _ = judged
    for ask in (reduce_run, make_settings):
        with pytest.raises(InputError) as refused:
            ask(run, **wrong)
        assert (refused.value.code, refused.value.field) == ("not_a_number", *wrong)


def test_an_earlier_version_s_numbers_that_were_none_are_asked_again_as_what_they_meant(
    judged: tuple[Run, Reduction, Reduction],
):
    run, _, _ = judged
    stored = {"judge": "strict", "min_score": "2", "min_count": 2.0, "percentiles": ["1", "5"]}
    made = make_settings(run, **asked_again(run, {"asked": stored}))
    assert (made.min_score, made.min_count, made.percentiles) == (2, 2, (1, 5))


@pytest.mark.parametrize(("stored", "least"), [(1.5, 2), (2.0, 2), (2.5, 3)])
def test_an_earlier_version_s_least_score_is_asked_again_as_what_it_meant(
    judged: tuple[Run, Reduction, Reduction], stored: float, least: float
):
    run, _, _ = judged
    asked = asked_again(run, {"asked": {"judge": "strict", "min_score": stored}})
    assert make_settings(run, **asked).min_score == least


def test_a_least_score_without_a_judge_is_refused(tmp_path: Path):
    run = small_run(str(tmp_path))
    with pytest.raises(InputError, match="no judge has scored the run") as refused:
        reduce_run(run, min_score=3)
    assert (refused.value.code, refused.value.field) == ("no_scores", "min_score")
    assert run.refresh().reduction is None


def test_of_two_judges_one_has_to_be_named(tmp_path: Path):
    run = small_run(str(tmp_path))
    score_run(run, "a", lambda _: 3)
    score_run(run, "b", lambda line: 3 if line["persona"] == "pirate" else 0)
    with pytest.raises(InputError, match="several judges"):
        reduce_run(run)
    assert reduce_run(run, judge="b", min_count=1).role_names == ("pirate",)
    # What is said of a single role says so, and a report can be brought up to date without naming the judge again.
    assert reduce_again(run).facts["judge"] == "b"


def test_scores_of_another_judge_leave_a_reduction_as_it_is(tmp_path: Path, units_read: list[str]):
    run = small_run(str(tmp_path))
    score_run(run, "a", by_question)
    first = reduce_run(run, judge="a", min_count=2)
    arrays = {name: getattr(first, name) for name in ARRAYS}
    arrays = {name: None if values is None else np.array(values) for name, values in arrays.items()}
    units_read.clear()
    score_run(run, "b", lambda line: 3 - by_question(line) if line["kind"] == "role" else 50)
    again = reduce_run(open_run(tmp_path), judge="a", min_count=2)
    assert again.reduction_id == first.reduction_id
    for name, values in arrays.items():
        np.testing.assert_array_equal(getattr(again, name), values, err_msg=name)
    # Without a judge named, it goes on with the one that it was made by.
    assert reduce_again(open_run(tmp_path)).reduction_id == first.reduction_id
    assert units_read == []


def test_new_scores_and_new_units_together_are_as_from_scratch(tmp_path: Path):
    late = "role.pirate.pos.p1.b0"
    spec = exact_spec(tmp_path / "run")
    run = small_run(str(tmp_path / "run"), spec, leave_out=[late])
    score_run(run, "judge", by_question)
    reduce_run(run, min_count=1)
    commit_units(str(tmp_path / "run"), small_plan(spec), [late])
    run.refresh()
    score_run(run, "judge", lambda line: 3 - by_question(line) if line["kind"] == "role" else by_question(line))
    found = reduce_run(run, min_count=1)
    other = small_run(str(tmp_path / "other"), exact_spec(tmp_path / "other"))
    score_run(other, "judge", lambda line: 3 - by_question(line) if line["kind"] == "role" else by_question(line))
    expected = reduce_run(other, min_count=1)
    assert found.role_names == expected.role_names
    for name in ("mean", "variance", "role_vectors", "axis", "projections", "floor_on_axis", "trait_vectors"):
        close(getattr(found, name), np.asarray(getattr(expected, name)))


def test_a_reduction_that_ignored_scores_once_takes_them_as_soon_as_they_leave_a_role(tmp_path: Path):
    run = small_run(str(tmp_path / "run"), exact_spec(tmp_path / "run"))
    reduce_run(run, percentiles=[5], min_count=2)
    score_run(run, "strict", lambda line: 0)
    with pytest.raises(InputError):
        reduce_again(run)
    once = reduce_again(run, ignore_scores=True)
    assert (once.facts["judge"], once.facts["percentiles"], len(once.role_names)) == (None, [5], 3)
    score_run(run, "strict", lambda line: 3 if line["kind"] == "role" else 0)
    again = reduce_again(run)
    assert (again.facts["judge"], again.facts["percentiles"]) == ("strict", [5])
