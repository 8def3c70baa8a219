"""Personas without a vector after judging are named, with the reason, wherever vectors are listed or asked for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.cluster.cli import main

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
    assert "--min-count 2 or --judge none" in error["hint"]
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
    assert error["hint"] == "persona-atlas reduce with --judge none, which ignores scores, gives it one."


def test_without_a_judge_too_few_rollouts_are_told_without_scores(tmp_path: Path, answered: Answered, refused: Refused):
    run = small_run(str(tmp_path / "run"), leave_out=["role.poet.pos.p1.b0"])
    found = answered("reduce", run.url, "--min-count", "4")
    assert "1 role has no vector, because fewer than 4 rollouts have a vector: poet." in found["notes"]
    error = refused("export", run.url, tmp_path / "out", "--format", "gguf", "--vector", "role:poet")
    assert error["hint"] == "persona-atlas reduce with --min-count 3 gives it one."
