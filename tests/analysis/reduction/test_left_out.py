"""Personas without a vector after judging are named, with the reason, wherever vectors are listed or asked for."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.analysis.left_out import why_left_out
from persona_atlas.cluster.cli import main
from persona_atlas.storage.derived.reduction import Reduction

from command_line import Answered, Refused
from scored_runs import score_run
from stored_runs import small_run

FEW = "1 trait has no vector, because fewer than 3 pairs have scores that differ by more than 50: anxious."


def two_pairs(line: Mapping[str, Any]) -> float:
    """Roles play fully; the two pairs of one question pass, and no other."""
    if line["kind"] == "role":
        return 3.0
    return 90.0 if line["polarity"] == "pos" and line["question_index"] == 1 else 5.0


def test_a_trait_with_too_few_pairs_is_named_with_the_reason_and_the_cure(
    tmp_path: Path, answered: Answered, refused: Refused
):
    run = small_run(str(tmp_path / "run"))
    score_run(run, "strict", two_pairs)
    found = answered("reduce", run.url, "--min-count", "3")
    assert FEW in found["notes"]
    assert FEW in answered("show", run.url)["notes"]
    export = ("export", run.url, tmp_path / "out", "--format", "gguf", "--vector", "trait:anxious")
    error = refused(*export)
    assert "because fewer than 3 pairs have scores that differ by more than 50; it has 2" in error["error"]
    assert error["hint"] == (
        f"persona-atlas reduce {run.url} --judge strict --min-count 2 gives it one. "
        f"So does persona-atlas reduce {run.url} --judge none, which ignores scores."
    )
    answered("reduce", run.url, "--min-count", "2")
    assert answered("show", run.url)["notes"] == []
    assert len(answered(*export)["files"]) == 1


def test_what_a_judge_has_not_scored_is_counted_and_said(tmp_path: Path, answered: Answered):
    run = small_run(str(tmp_path / "run"))
    score_run(run, "half", lambda line: math.nan if line["kind"] == "trait" or line["question_index"] else 3.0)
    notes = answered("reduce", run.url, "--min-count", "1")["notes"]
    assert (
        "The judge half has scored 6 of 18 rollouts of roles; the others have no score and count under none." in notes
    )
    assert "The judge half has scored no rollout of a trait: every one of them counts." in notes
    score_run(run, "part", lambda line: math.nan if line["question_index"] == 2 else two_pairs(line))
    notes = answered("reduce", run.url, "--judge", "part", "--min-count", "1")["notes"]
    assert (
        "The judge part has scored 8 of 12 rollouts of traits; the others have no score and make no pair that passes."
    ) in notes
    score_run(run, "whole", two_pairs)
    assert answered("reduce", run.url, "--judge", "whole", "--min-count", "1")["notes"] == []
    assert answered("reduce", run.url, "--judge", "none")["notes"] == []


@pytest.mark.parametrize(
    ("least", "told", "offer"),
    [
        ("1", "Warning: 1 of 3 roles without a vector; each needs 1 rollout scored 3 by strict.", ""),
        (
            "3",
            "Warning: 2 of 3 roles without a vector; each needs 3 rollouts scored 3 by strict.",
            " --min-count 2 gives 2 of 3 roles.",
        ),
    ],
)
def test_only_a_least_count_that_gives_more_roles_is_offered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], least: str, told: str, offer: str
):
    run = small_run(str(tmp_path / "run"))
    scored = {"pirate": 3, "teacher": 1, "poet": 0}
    score_run(run, "strict", lambda line: 3.0 if line["question_index"] < scored.get(line["persona"], 3) else 0.0)
    with pytest.raises(SystemExit):
        main(["reduce", run.url, "--min-count", least])
    assert told + offer in capsys.readouterr().err.splitlines()


def test_a_role_without_a_rollout_that_counts_is_not_offered_a_lower_count(
    tmp_path: Path, answered: Answered, refused: Refused
):
    run = small_run(str(tmp_path / "run"))
    score_run(run, "strict", lambda line: 3.0 if line["persona"] != "poet" else 0.0)
    answered("reduce", run.url, "--min-count", "1")
    error = refused("export", run.url, tmp_path / "out", "--format", "gguf", "--vector", "role:poet")
    assert "'poet', because no rollout is scored 3." in error["error"]
    assert error["hint"] == f"persona-atlas reduce {run.url} --judge none, which ignores scores, gives it one."


def test_without_a_judge_too_few_rollouts_are_told_without_scores(tmp_path: Path, answered: Answered, refused: Refused):
    run = small_run(str(tmp_path / "run"), leave_out=["role.poet.pos.p1.b0"])
    found = answered("reduce", run.url, "--min-count", "4")
    assert "1 role has no vector, because fewer than 4 rollouts have a vector: poet." in found["notes"]
    error = refused("export", run.url, tmp_path / "out", "--format", "gguf", "--vector", "role:poet")
    assert error["hint"] == f"persona-atlas reduce {run.url} --min-count 3 gives it one."


def by_persona(line: Mapping[str, Any]) -> float:
    """Of the poet two rollouts are scored 2, the other roles play fully, and no pair of the trait passes."""
    if line["kind"] == "trait":
        return 5.0
    return 3.0 if line["persona"] != "poet" else 2.0 if line["question_index"] == 1 else 0.0


def commands(hint: str) -> list[list[str]]:
    """The arguments of the commands that a hint names."""
    parts = re.split(r"(?:^|So does )persona-atlas ", hint)[1:]
    return [shlex.split(re.split(r" gives it one|, which ignores", part)[0]) for part in parts]


def test_a_cure_asks_again_for_all_that_was_asked_and_works(tmp_path: Path, answered: Answered, refused: Refused):
    run = small_run(str(tmp_path / "a run"))
    score_run(run, "strict", by_persona)
    score_run(run, "kind", lambda _: 3.0)
    asked = ("--judge", "strict", "--min-score", "2", "--pooling", "response_mean", "--percentiles", "1,50")
    export = ("--format", "gguf", "--vector", "role:poet")
    answered("reduce", run.url, *asked, "--min-count", "4")
    found = commands(refused("export", run.url, tmp_path / "out", *export)["hint"])
    assert found == [
        ["reduce", run.url, "--judge", "strict", "--min-score", "2", "--min-count", "2", *asked[4:]],
        ["reduce", run.url, "--judge", "none", *asked[4:]],
    ]
    for place, command in enumerate(found):
        answered("reduce", run.url, *asked, "--min-count", "4")
        answered(*command)
        answered("export", run.url, tmp_path / f"out{place}", *export)


def test_a_judged_trait_without_its_opposite_has_that_reason_and_no_cure(
    tmp_path: Path, answered: Answered, refused: Refused
):
    run = small_run(str(tmp_path / "run"), leave_out=["trait.anxious.neg.p0.b0", "trait.anxious.neg.p1.b0"])
    score_run(run, "strict", two_pairs)
    notes = answered("reduce", run.url, "--min-count", "1")["notes"]
    assert "1 trait has no vector, because no rollout of the opposite has a vector: anxious." in notes
    reduction = run.refresh().reduction
    assert reduction is not None
    assert "traits_left_out" not in reduction.facts
    error = refused("export", run.url, tmp_path / "out", "--format", "gguf", "--vector", "trait:anxious")
    assert "because no rollout of the opposite has a vector." in error["error"]
    assert "needs rollouts of the trait and of its opposite" in error["hint"]
    assert "--" not in error["hint"]


def test_imported_vectors_have_no_run_to_reduce(tmp_path: Path, answered: Answered, refused: Refused):
    run = small_run(str(tmp_path / "run"))
    score_run(run, "strict", two_pairs)
    answered("reduce", run.url, "--min-count", "3")
    answered("export", run.url, tmp_path / "shared", "--format", "safetensors")
    answered("import", tmp_path / "shared", tmp_path / "vectors")
    error = refused("export", tmp_path / "vectors", tmp_path / "out", "--format", "gguf", "--vector", "trait:anxious")
    assert "differ by more than 50; it has 2." in error["error"]
    assert "persona-atlas" not in error.get("hint", "")


def test_of_an_older_reduction_no_lower_count_is_offered():
    facts = {"all_traits": ["shy"], "trait_kind": "pos_neg_50", "judge": "strict", "min_score": 3}
    for least in (1, 10):
        reduction = Reduction("id", (4,), (), (), facts | {"min_count": least})
        assert why_left_out(reduction, "trait", "shy", "runs/old") == (
            f"{'no pair has' if least == 1 else 'fewer than 10 pairs have'} scores that differ by more than 50",
            "persona-atlas reduce runs/old --judge none, which ignores scores, gives it one.",
        )


@pytest.mark.parametrize(
    ("scored", "score", "told", "advice"),
    [
        (0, 3.0, "no rollout of a role is scored 3 by strict, which has scored 0 of 18 rollouts of roles.", "Score th"),
        (1, 1.0, "no rollout of a role is scored 3 by strict, which has scored 6 of 18 rollouts of roles.", "Choose a"),
        (3, 1.0, "no rollout of a role is scored 3 by strict.", "Choose a lower --min-score"),
        (
            1,
            3.0,
            "no role has 10 rollouts that are scored 3 by strict, which has scored 6 of 18 rollouts of roles; the most "
            "that one has is 2.",
            "--min-count 2 gives 3 of 3 roles.",
        ),
        (3, 3.0, "no role has 10 rollouts that are scored 3 by strict; the most that one has is 6.", "--min-count 6"),
    ],
)
def test_a_refusal_says_how_much_of_the_roles_is_scored_where_that_is_not_all(
    tmp_path: Path, refused: Refused, scored: int, score: float, told: str, advice: str
):
    run = small_run(str(tmp_path / "run"))
    score_run(
        run,
        "strict",
        lambda line: math.nan if line["kind"] == "role" and line["question_index"] >= scored else score,
    )
    error = refused("reduce", run.url)
    assert (error["code"], error["error"]) == ("too_few_rollouts", told)
    assert error["hint"].startswith(advice)
