"""Judges' scores: bounds on them, several judges side by side, and rollouts that nobody judged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.jobs.judging.outcomes import Outcome
from persona_atlas.storage.derived.scores import (
    judges,
    read_judge_record,
    read_outcomes,
    with_scores,
    write_judge_record,
    write_outcomes,
    write_scores,
)
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.judge_record import JudgeRecord
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import Run, open_run
from persona_atlas.storage.query.selection import Filters

from counted import Counted
from fakes import small_plan
from stored_runs import store_run

NONE = float("nan")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Complete, and judged by nobody."""
    url = str(tmp_path_factory.mktemp("store") / "run")
    store_run(url, small_plan())
    return open_run(url)


@pytest.fixture
def run(tmp_path: Path, stored: Run) -> Run:
    shutil.copytree(stored.url, tmp_path / "run")
    return open_run(str(tmp_path / "run"))


def judge_all(run: Run, name: str, scores: list[float | None]) -> dict[int, float]:
    """Write a judge's scores of the index's lines, in order; None leaves a rollout out. Gives the scores by row."""
    by_unit: dict[str, tuple[list[int], list[float]]] = {}
    for line, score in zip(run.index.to_pylist(), scores, strict=False):
        if score is not None:
            rows, values = by_unit.setdefault(line["unit_id"], ([], []))
            rows.append(line["row"])
            values.append(score)
    for unit_id, (rows, values) in by_unit.items():
        write_scores(run.location, name, unit_id, rows, values)
    rows_of = {line["row"]: score for line, score in zip(run.index.to_pylist(), scores, strict=False)}
    return {row: score for row, score in rows_of.items() if score is not None and not np.isnan(score)}


some_score = st.none() | st.just(NONE) | st.sampled_from([0.0, 25.0, 49.5, 50.0, 75.0, 100.0])
some_bound = st.none() | st.sampled_from([0.0, 25.0, 50.0, 74.9, 100.0])


@given(scores=st.lists(some_score, min_size=1, max_size=36), least=some_bound, most=some_bound)
@settings(max_examples=25, deadline=None)
def test_bounds_keep_what_was_judged_within_them_and_the_default_and_nothing_else(
    tmp_path_factory: pytest.TempPathFactory,
    stored: Run,
    scores: list[float | None],
    least: float | None,
    most: float | None,
):
    assume(least is None or most is None or least <= most)
    url = tmp_path_factory.mktemp("judged") / "run"
    shutil.copytree(stored.url, url)
    run = open_run(str(url))
    score_of = judge_all(run, "strict", scores)
    if all(score is None for score in scores):
        return
    within = {
        row
        for row, kind in zip(run.index["row"].to_pylist(), run.index["kind"].to_pylist(), strict=True)
        if (least is None and most is None)
        or kind == "default"
        or (row in score_of and (least is None or score_of[row] >= least) and (most is None or score_of[row] <= most))
    }
    found = run.query(min_score=least, max_score=most, judge="strict")
    assert set(found.rollouts["row"].to_pylist()) == within
    given_scores = dict(zip(found.rollouts["row"].to_pylist(), found.rollouts["score"].to_pylist(), strict=True))
    assert given_scores == {row: score_of.get(row) for row in within}
    assert found.read().values.shape == (len(within), 16)
    texts = run.rollouts(min_score=least, max_score=most, judge="strict")
    assert dict(zip(texts["row"].to_pylist(), texts["score"].to_pylist(), strict=True)) == given_scores


def test_of_several_judges_one_must_be_named_and_is_believed(run: Run):
    judge_all(run, "strict", [10.0] * 36)
    assert run.query(min_score=50, kind="role").shape[0] == 0, "one judge alone need not be named"
    judge_all(run, "kind", [90.0] * 36)
    assert judges(run.location) == ["kind", "strict"]
    with pytest.raises(InputError, match="Name kind, strict") as caught:
        run.query(min_score=50)
    assert (caught.value.code, caught.value.field) == ("which_judge", "judge")
    assert run.query(min_score=50, judge="kind").shape[0] == 36
    assert set(run.query(min_score=50, judge="strict").rollouts["kind"].to_pylist()) == {"default"}
    assert set(run.query(judge="strict").rollouts["score"].to_pylist()) == {10.0}


def test_scores_that_nobody_gave_cannot_be_asked_for(run: Run):
    questions: list[dict[str, Any]] = [{"min_score": 1.0}, {"max_score": 1.0}, {"judge": "kind"}]
    for asked in questions:
        with pytest.raises(InputError) as caught:
            run.query(**asked)
        assert (caught.value.code, caught.value.field) == ("no_scores", *asked)
    judge_all(run, "kind", [1.0])
    with pytest.raises(InputError, match="Did you mean 'kind'") as caught:
        run.query(judge="kin")
    assert caught.value.code == "no_such_judge"


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".", "..", "a b", "a*", "a\n", "none"])
def test_a_name_that_no_folder_of_its_own_could_have_is_refused(run: Run, name: str):
    before = run.location.sizes("")
    with pytest.raises(InputError) as caught:
        write_scores(run.location, name, "u", [1], [1.0])
    assert caught.value.code == "bad_judge"
    assert run.location.sizes("") == before


def test_only_the_scores_of_the_units_in_question_are_read(run: Run):
    judge_all(run, "kind", [1.0] * 36)
    counted = Counted(run.location)
    watched = Run(counted, run.record)
    assert watched.index.num_rows == 36
    counted.asked.clear()
    assert watched.query(persona="pirate", min_score=0).shape[0] == 6
    assert sorted(asked.path for asked in counted.of("read")) == [
        layout.scores_path("kind", f"role.pirate.pos.p{prompt}.b0") for prompt in range(2)
    ]


def test_a_second_judgement_of_a_unit_replaces_the_first(run: Run):
    judge_all(run, "kind", [1.0] * 36)
    judge_all(run, "kind", [2.0] * 9)
    assert run.query(min_score=1.5, kind="role").shape[0] == 3, "six of the nine are of the default"


def test_the_default_is_never_filtered_by_scores_and_unjudged_personas_are(run: Run):
    lines = run.index.filter(run.index["kind"].combine_chunks().to_numpy(False) == "role").to_pylist()
    write_scores(run.location, "kind", lines[0]["unit_id"], [lines[0]["row"]], [3.0])
    found = run.query(min_score=3).rollouts
    assert found["kind"].to_pylist() == ["default"] * 6 + ["role"]
    assert found["score"].to_pylist() == [None] * 6 + [3.0]
    assert run.query(min_score=3, kind="role").shape[0] == 1


def test_a_range_that_leaves_only_the_default_says_so(run: Run):
    judge_all(run, "kind", [1.0] * 36)
    assert run.query(min_score=1).note == ""
    only_default = run.query(min_score=3)
    assert set(only_default.rollouts["kind"].to_pylist()) == {"default"}
    assert "30 rollouts of roles and traits that match otherwise, none has a score in the range" in only_default.note
    assert "the default match any" in only_default.note
    assert run.query(min_score=3, kind="role").note.startswith("No rollout matches. Of 18 rollouts")
    assert run.query(min_score=3, kind="default").note == ""


def test_bounds_in_the_wrong_order_are_refused(run: Run):
    judge_all(run, "kind", [1.0] * 36)
    wrong: list[Filters] = [{"min_score": 3, "max_score": 2}, {"min_tokens": 3, "max_tokens": 2}]
    for bounds in wrong:
        with pytest.raises(InputError, match="is 3, and the maximum is 2") as caught:
            run.query(**bounds)
        assert (caught.value.code, caught.value.field) == ("bounds_in_wrong_order", next(iter(bounds)))


def test_outcomes_are_added_to_earlier_ones_and_keep_what_the_judge_said(store_url: str):
    location = open_location(store_url)
    write_scores(location, "kind", "u", [5, 6, 99], [0.5, 1.0, 2.0])
    unread = Outcome(7, None, "unreadable", "it has no number", "x" * 5000, 3)
    write_outcomes(location, "kind", "u", [unread, Outcome(6, 2.0, reply="2", asks=1)], {5, 6, 7})
    lines = read_outcomes(location, "kind", ["u", "never"]).to_pylist()
    assert [(line["row"], line["score"], line["reason"]) for line in lines] == [
        (5, 0.5, None),
        (6, 2.0, None),
        (7, None, "unreadable"),
    ], "that of row 99, which the unit does not have any more, is gone"
    assert [line["asks"] for line in lines] == [None, 1, 3]
    assert lines[2]["reply"] == "x" * 2000
    assert with_scores(location, small_index([5, 6, 7]), "kind")["score"].to_pylist() == [0.5, 2.0, None]


def test_the_record_of_a_judge_is_no_score_of_it(store_url: str):
    location = open_location(store_url)
    record = JudgeRecord(name="new", source="endpoint", model="m", endpoint="http://h/v1", rubrics={"role/pirate": "0"})
    write_judge_record(location, record)
    assert judges(location) == [], "a judge without a score is none yet"
    assert read_judge_record(location, "new") == record
    location.write(layout.judge_path("new"), b"{")
    with pytest.raises(StoreError) as caught:
        read_judge_record(location, "new")
    assert caught.value.code == "bad_record"


def test_scores_that_cannot_be_read_are_not_taken_for_none_given(store_url: str):
    location = open_location(store_url)
    write_scores(location, "kind", "u", [5], [0.5])
    path = layout.scores_path("kind", "u")
    whole = location.read(path) or b""
    for data in (b"", whole[:-9]):
        location.write(path, data)
        with pytest.raises(StoreError, match="scores of unit u") as caught:
            with_scores(location, small_index([5]), "kind")
        assert (caught.value.code, caught.value.file) == ("bad_object", f"{location.url}/{path}")


def test_scores_are_kept_wherever_the_run_is(store_url: str):
    location: Location = open_location(store_url)
    write_scores(location, "a-judge_1.0", "u", [5, 7], [0.5, NONE])
    assert judges(location) == ["a-judge_1.0"]
    index = small_index([5, 6, 7])
    assert with_scores(location, index, None)["score"].to_pylist() == [0.5, None, None]


def small_index(rows: list[int]) -> Any:
    import pyarrow as pa

    return pa.table({"row": rows, "unit_id": ["u"] * len(rows)})
