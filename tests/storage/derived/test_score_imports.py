"""Scores from files: each reaches the rollout that it judges, or nothing at all is imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.judging.outcomes import Outcome
from persona_atlas.storage.derived.score_imports import Imported, import_scores
from persona_atlas.storage.derived.scores import (
    read_judge_record,
    read_outcomes,
    with_scores,
    write_judge_record,
    write_outcomes,
)
from persona_atlas.storage.format.judge_record import JudgeRecord
from persona_atlas.storage.locations.location import Location, open_location

ROWS = [
    # kind, persona, polarity, prompt, question, sample, unit, row
    ("default", "assistant_default", "pos", 0, 0, 0, "d", 0),
    ("role", "pirate", "pos", 0, 0, 0, "p", 4),
    ("role", "pirate", "pos", 0, 1, 0, "p", 5),
    ("role", "pirate", "pos", 0, 2, 0, "p", 6),
    ("role", "pirate", "pos", 0, 2, 1, "p", 7),
    ("role", "stoic", "pos", 0, 0, 0, "s", 8),
    ("trait", "stoic", "pos", 0, 0, 0, "tp", 12),
    ("trait", "stoic", "neg", 0, 0, 0, "tn", 16),
    ("trait", "wry", "pos", 0, 0, 0, "w", 20),
]
COLUMNS = ["kind", "persona", "polarity", "prompt_index", "question_index", "sample_index", "unit_id", "row"]
INDEX = pa.table({name: [row[place] for row in ROWS] for place, name in enumerate(COLUMNS)})
ADDRESS = COLUMNS[:6]


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(tmp_path / "run")


def directory(tmp_path: Path, **files: Any) -> Path:
    folder = tmp_path / "scores"
    folder.mkdir()
    for name, scores in files.items():
        (folder / f"{name}.json").write_text(scores if isinstance(scores, str) else json.dumps(scores))
    return folder


def table(path: Path, lines: list[dict[str, Any]]) -> Path:
    """Write a table of scores in the format of the path's suffix."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    elif path.suffix == ".csv":
        names = list(lines[0])
        rows = [",".join("" if line[name] is None else str(line[name]) for name in names) for line in lines]
        path.write_text("\n".join([",".join(names), *rows, ""]))
    else:
        pq.write_table(pa.Table.from_pylist(lines), path)
    return path


def line(row: int, score: Any, **changes: Any) -> dict[str, Any]:
    (found,) = (entry for entry in ROWS if entry[-1] == row)
    return dict(zip(ADDRESS, found[:6], strict=True)) | {"score": score} | changes


def scores_of(location: Location, judge: str = "released") -> dict[int, float]:
    found = with_scores(location, INDEX, judge)
    scores = zip(found["row"].to_pylist(), found["score"].to_pylist(), strict=True)
    return {row: score for row, score in scores if score is not None}


def test_the_released_pipelines_scores_reach_their_rollouts(location: Location, tmp_path: Path):
    source = directory(tmp_path, default={"default_p0_q0": 3}, pirate={"pos_p0_q0": 3, "pos_p0_q1": 1})
    assert import_scores(location, INDEX, source, "released") == Imported(3, 0, 0, 6)
    assert scores_of(location) == {0: 3, 4: 3, 5: 1}
    record = read_judge_record(location, "released")
    assert record is not None
    assert (record.source, record.files) == ("import", ("scores",))


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"stoic": {"pos_p0_q0": 90, "neg_p0_q0": 5}}, {12: 90, 16: 5}),
        ({"stoic": {"pos_p0_q0": 2}}, {8: 2}),
        ({"wry": {"pos_p0_q0": 85}}, {20: 85}),
    ],
    ids=["a label neg is a trait's", "of a role and a trait the role", "a name that is only a trait's"],
)
def test_a_file_is_of_the_role_or_the_trait_of_its_name(
    location: Location, tmp_path: Path, files: dict[str, Any], expected: dict[int, float]
):
    import_scores(location, INDEX, directory(tmp_path, **files), "released")
    assert scores_of(location) == expected


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_tables_of_every_format_say_the_same(location: Location, tmp_path: Path, suffix: str):
    lines = [line(4, 3), line(7, 2), line(6, 1), line(12, 72.5), line(16, None)]
    done = import_scores(location, INDEX, table(tmp_path / f"scores{suffix}", lines), "mine")
    assert done == Imported(scored=4, unscored=1, replaced=0, not_listed=4)
    assert scores_of(location, "mine") == {4: 3, 7: 2, 6: 1, 12: 72.5}
    (unscored,) = [one for one in read_outcomes(location, "mine", ["tn"]).to_pylist() if one["score"] is None]
    assert (unscored["row"], unscored["reason"]) == (16, "not_given")


def test_a_sample_that_is_left_out_is_the_first_and_other_columns_are_ignored(location: Location, tmp_path: Path):
    given = {name: value for name, value in line(6, 2).items() if name != "sample_index"} | {"comment": "fine"}
    import_scores(location, INDEX, table(tmp_path / "scores.csv", [given]), "mine")
    assert scores_of(location, "mine") == {6: 2}


def test_a_refusal_is_kept_as_one(location: Location, tmp_path: Path):
    import_scores(location, INDEX, table(tmp_path / "scores.csv", [line(12, "REFUSAL")]), "mine")
    (kept,) = read_outcomes(location, "mine", ["tp"]).to_pylist()
    assert (kept["score"], kept["reason"]) == (None, "refusal")


def test_more_scores_under_one_name_are_added_and_replace_those_of_the_same_rollouts(
    location: Location, tmp_path: Path
):
    import_scores(location, INDEX, table(tmp_path / "a.csv", [line(4, 1), line(5, 1)]), "mine")
    done = import_scores(location, INDEX, table(tmp_path / "b.csv", [line(5, 3), line(6, 2)]), "mine")
    assert done.replaced == 1
    assert scores_of(location, "mine") == {4: 1, 5: 3, 6: 2}
    record = read_judge_record(location, "mine")
    assert record is not None
    assert record.files == ("a.csv", "b.csv")


def test_scores_are_not_mixed_with_those_of_a_model(location: Location, tmp_path: Path):
    write_judge_record(location, JudgeRecord(name="m", source="endpoint", model="m"))
    write_outcomes(location, "m", "p", [Outcome(4, 2.0)], {4})
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, table(tmp_path / "a.csv", [line(4, 1)]), "m")
    assert (caught.value.code, caught.value.field) == ("other_judge", "--judge")
    assert scores_of(location, "m") == {4: 2}


STRANGER = {"pos_p0_q0": 3} | {f"pos_p7_q{q}": 1 for q in range(12)}


@pytest.mark.parametrize(
    ("files", "code", "says"),
    [
        ({}, "no_scores", "holds no .json"),
        ({"pirate": "{"}, "not_json", "is not JSON"),
        ({"pirate": "[" * 100_000}, "not_json", "is not JSON"),
        ({"pirate": [1]}, "bad_scores", "not an object"),
        ({"pirate": {"p0_q0": 1}}, "bad_scores", "'p0_q0' is not the key"),
        ({"pirate": {"pos_p0_q0": "3"}}, "bad_scores", "must be a number"),
        ({"pirate": {"pos_p0_q0": True}}, "bad_scores", "must be a number"),
        ({"pirate": '{"pos_p0_q0": NaN}'}, "score_out_of_range", "from 0 to 3"),
        ({"pirate": {"pos_p0_q0": 4}}, "score_out_of_range", "pos_p0_q0 is 4, and scores of a role go from 0 to 3"),
        ({"pirate": '{"pos_p0_q0": 1' + "0" * 400 + "}"}, "score_out_of_range", "from 0 to 3"),
        ({"stoic": {"pos_p0_q0": 101, "neg_p0_q0": 1}}, "score_out_of_range", "from 0 to 100"),
        ({"pirat": {"pos_p0_q0": 3}}, "no_such_rollout", "Did you mean 'pirate'"),
        ({"pirate": STRANGER}, "no_such_rollout", "12 of 13 scores (role/pirate/pos/prompt7/question0"),
        ({"pirate": STRANGER}, "no_such_rollout", "question9 and 2 more) belong to no rollout"),
        ({"pirate": {"pos_p0_q0": 3, "pos_p0_q2": 1}}, "several_rollouts", "(role/pirate/pos/prompt0/question2)"),
        ({"default": {"default_p0_q0": 1, "pos_p0_q0": 2}}, "bad_scores", "a second time"),
    ],
)
def test_one_score_that_does_not_belong_is_enough_to_refuse_all(
    tmp_path: Path, location: Location, files: dict[str, Any], code: str, says: str
):
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, directory(tmp_path, **files), "released")
    assert caught.value.code == code
    assert says in caught.value.message
    assert caught.value.file
    assert caught.value.hint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "code", "says"),
    [
        ([line(4, 3), line(4, 2)], "bad_scores", "again"),
        ([line(4, 3.5)], "score_out_of_range", "is 3.5"),
        ([line(4, "high")], "bad_scores", "must be a number"),
        ([line(4, "REFUSAL")], "bad_scores", "the score is REFUSAL, which only traits have"),
        ([line(0, "REFUSAL")], "bad_scores", "the score is REFUSAL, which only traits have"),
        ([line(4, 3, prompt_index=-1)], "bad_scores", "no index"),
        ([line(4, 3, question_index="first")], "bad_scores", "no index"),
        ([line(4, 3, question_index=None)], "bad_scores", "empty prompt_index or question_index"),
        ([line(4, 3, kind="villain")], "bad_scores", "'villain'"),
        ([line(4, 3), line(4, 3, persona="nobody")], "no_such_rollout", "1 of 2 scores (role/nobody/pos"),
        ([line(4, 3, sample_index=5)], "no_such_rollout", "sample5"),
        ([{"persona": "pirate", "score": 3}], "bad_scores", "has no kind, polarity, prompt_index, question_index"),
    ],
)
def test_a_line_that_is_wrong_is_enough_to_refuse_a_table(
    tmp_path: Path, location: Location, lines: list[dict[str, Any]], code: str, says: str
):
    for suffix in (".csv", ".jsonl"):
        with pytest.raises(InputError) as caught:
            import_scores(location, INDEX, table(tmp_path / f"scores{suffix}", lines), "mine")
        assert caught.value.code == code
        assert says in caught.value.message
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"persona": "nobody"}, "the run has no role 'nobody'; it has pirate, stoic."),
        ({"persona": "wry"}, "the run has no role 'wry'; it has pirate, stoic; its wry is a trait."),
        ({"polarity": "neg"}, "the role pirate has no rollout of the polarity 'neg', only of pos."),
        ({"prompt_index": 9}, "the role pirate (pos) has no rollout with prompt 9, only with prompt 0."),
        (
            {"question_index": 77},
            "the role pirate (pos) with prompt 0 has no rollout with question 77, only with questions 0 to 2.",
        ),
        (
            {"sample_index": 5},
            "the role pirate (pos) with prompt 0, question 0 has no rollout with sample 5, only with sample 0.",
        ),
        (
            {"turn_index": 1},
            "the role pirate (pos) with prompt 0, question 0, sample 0 has no rollout with turn 1.",
        ),
    ],
)
def test_of_a_score_without_a_rollout_the_part_that_is_wrong_is_named(
    tmp_path: Path, location: Location, change: dict[str, Any], says: str
):
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, table(tmp_path / "scores.csv", [line(4, 3, **change)]), "mine")
    assert caught.value.hint == f"Of the first: {says} Correct such scores, or take them out."


def test_the_file_of_a_directory_is_named_that_has_a_score_without_a_rollout(tmp_path: Path, location: Location):
    source = directory(tmp_path, pirate={"pos_p0_q0": 3, "pos_p7_q0": 1}, wry={"pos_p0_q0": 85})
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, source, "mine")
    assert caught.value.file == str(source / "pirate.json")
    assert caught.value.message.startswith("1 of 2 scores (")
    (source / "wry.json").write_text('{"pos_p3_q0": 85}')
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, source, "mine")
    assert caught.value.file == str(source)
    assert caught.value.hint
    assert caught.value.hint.startswith("Of the first (pirate.json): the role pirate (pos) has no rollout with")


@pytest.mark.parametrize(
    ("cut", "says"),
    [
        ("role,pirate,pos,0,0", "line 4 has 5 values, and the first line names 6 columns"),
        ("role,pirate,pos,0,0,3,7", "line 4 has 7 values, and the first line names 6 columns"),
    ],
)
def test_a_csv_line_with_too_few_or_too_many_values_is_refused_and_replaces_no_score(
    tmp_path: Path, location: Location, cut: str, says: str
):
    source = tmp_path / "scores.csv"
    header = "kind,persona,polarity,prompt_index,question_index,score"
    source.write_text(f"{header}\nrole,pirate,pos,0,0,3\n")
    import_scores(location, INDEX, source, "mine")
    # The blank line counts, as it does in an editor.
    source.write_text(f"{header}\nrole,pirate,pos,0,1,3\n\n{cut}\n")
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, source, "mine")
    assert says in caught.value.message
    assert scores_of(location, "mine") == {4: 3}
    source.write_text(f"{header}\nrole,pirate,pos,0,0,\n")
    assert import_scores(location, INDEX, source, "mine").unscored == 1
    assert scores_of(location, "mine") == {}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("score", [4, 4.0, 3.25e0])
def test_a_score_off_its_scale_is_printed_as_the_file_has_it(
    tmp_path: Path, location: Location, suffix: str, score: float
):
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, table(tmp_path / f"scores{suffix}", [line(4, score)]), "mine")
    first = {".csv": 2, ".jsonl": 1}[suffix]
    assert caught.value.message == f"line {first}: the score is {score}, and scores of a role go from 0 to 3."


def test_all_that_is_wrong_with_scores_is_listed_at_once(tmp_path: Path, location: Location):
    lines = [line(4, 3), line(5, 9), line(6, "high"), *[line(7, 4, question_index=100 + more) for more in range(10)]]
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, table(tmp_path / "scores.csv", lines), "mine")
    assert caught.value.message.startswith(
        "12 scores are wrong: line 3: the score is 9, and scores of a role go from 0 to 3; line 4"
    )
    assert "; and 2 more. Nothing is imported." in caught.value.message
    files = directory(tmp_path, pirate={"pos_p0_q0": 7}, stoic={"pos_p0_q0": 101})
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, files, "mine")
    assert "pirate.json: pos_p0_q0 is 7, and" in caught.value.message
    assert "stoic.json: pos_p0_q0 is 101, and" in caught.value.message
    assert caught.value.file == str(files)


@pytest.mark.parametrize(
    "name", ["scores.txt", "nothing.csv", "empty.csv", "huge.csv", "broken.parquet", "broken.jsonl"]
)
def test_what_is_no_table_is_refused(tmp_path: Path, location: Location, name: str):
    if not name.startswith("nothing"):
        (tmp_path / name).write_text({"empty": "", "huge.": "x" * 200_000}.get(name[:5], "{"))
    with pytest.raises(InputError) as caught:
        import_scores(location, INDEX, tmp_path / name, "mine")
    assert caught.value.file == str(tmp_path / name)
    assert caught.value.hint


def test_turns_of_conversations_are_told_apart(tmp_path: Path, location: Location):
    index = pa.table({name: [row[place] for row in ROWS[1:2] * 2] for place, name in enumerate(COLUMNS[:-1])})
    index = index.append_column("row", pa.array([4, 5])).append_column("turn_index", pa.array([1, 3]))
    with pytest.raises(InputError) as caught:
        import_scores(location, index, table(tmp_path / "a.csv", [line(4, 3)]), "mine")
    assert caught.value.code == "several_rollouts"
    import_scores(location, index, table(tmp_path / "a.csv", [line(4, 3, turn_index=3)]), "mine")
    assert scores_of(location, "mine") == {5: 3}
