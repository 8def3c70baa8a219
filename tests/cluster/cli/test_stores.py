"""The commands about stores: output and exit status, also for damaged stores and other directories."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from persona_atlas.cluster.cli import main
from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations import probe
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.commits import read_commit
from persona_atlas.storage.run.lease import acquire

from command_line import Answered, Refused
from counted import refusing_server
from fakes import FakeEngine, small_plan, small_spec
from scored_runs import score_run
from stored_runs import begin, small_run, store_run, write_unit

UNIT = "role.pirate.pos.p0.b0"
READING = ("show", "query", "verify", "gc", "reduce", "report")


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store") / "run"
    small_run(str(root))
    return root


@pytest.fixture
def store(tmp_path: Path, complete: Path) -> Path:
    """A complete run that a test may change."""
    shutil.copytree(complete, tmp_path / "run")
    return tmp_path / "run"


def leave_a_dead_attempt(store: Path) -> set[str]:
    location = open_location(str(store))
    with acquire(location, 1) as lease:
        manifest = write_unit(location, small_plan(small_spec(str(store))), UNIT, lease.row_blocks[0])
    return {stored.path for stored in manifest.objects}


def test_reductions_are_listed_with_what_they_are_made_of_and_damage_in_one_hides_no_other(
    answered: Answered, store: Path, capsys: pytest.CaptureFixture[str]
):
    assert answered("show", store, "--reductions")["reductions"] == []
    with pytest.raises(SystemExit, match="0"):
        main(["show", str(store), "--reductions"])
    assert "no reduction yet" in capsys.readouterr().out
    first = answered("reduce", store)["reduction"]
    score_run(open_run(str(store)), "strict", lambda _line: 3.0)
    second = answered("reduce", store, "--min-count", "2")["reduction"]
    found = {one["reduction"]: one for one in answered("show", store, "--reductions")["reductions"]}
    assert sorted(found) == sorted([first, second])
    assert [found[name]["current"] for name in (first, second)] == [False, True]
    assert (found[first]["judge"], found[second]["judge"], found[second]["min_count"]) == (None, "strict", 2)
    (store / "analysis" / f"{first}.json").write_text("{")
    found = {one["reduction"]: one for one in answered("show", store, "--reductions")["reductions"]}
    assert "error" in found[first]
    assert found[second]["role_filter"] == "scored 3"
    with pytest.raises(SystemExit, match="0"):
        main(["show", str(store), "--reductions"])
    lines = capsys.readouterr().out.splitlines()
    assert any(second in line and "current" in line and "scored 3" in line for line in lines)
    assert any(first in line for line in lines)


def test_a_sound_run_is_verified_with_status_0(answered: Answered, store: Path):
    for more in ([], ["--quick"], ["--complete"]):
        found = answered("verify", store, *more)
        assert (found["sound"], found["complete"], found["units_done"], found["units_planned"]) == (True, True, 12, 12)
        assert [problem["code"] for problem in found["problems"]] == ["stale_index", "stale_index"]
        assert (found["bytes_read"] == 0) == (more == ["--quick"])


def test_damage_is_listed_with_status_1(answered: Answered, store: Path):
    block = read_commit(open_location(str(store)), UNIT).manifest.blocks[0].path
    data = (store / block).read_bytes()
    (store / block).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    found = answered("verify", store, status=1)
    assert not found["sound"]
    problems = [problem for problem in found["problems"] if problem["kind"] == "damage"]
    assert [(problem["code"], problem["path"], problem["unit_id"]) for problem in problems] == [
        ("bad_object", block, UNIT)
    ]


def test_missing_units_are_listed_and_fail_only_when_completeness_is_asked(answered: Answered, tmp_path: Path):
    store_run(str(tmp_path / "run"), small_plan(), leave_out=[UNIT])
    found = answered("verify", tmp_path / "run")
    assert (found["sound"], found["complete"], found["missing"]) == (True, False, [UNIT])
    assert found["dead_objects"] == 2
    assert not answered("verify", tmp_path / "run", "--complete", status=1)["complete"]


@pytest.mark.usefixtures("signals_as_before")
def test_output_for_people_is_sentences(store: Path, capsys: pytest.CaptureFixture[str]):
    leave_a_dead_attempt(store)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(store)])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "12 of 12 units, 36 rollouts" in out
    assert "2 objects of attempts that do not count" in out
    assert out.endswith("Sound and complete.\n")
    with pytest.raises(SystemExit):
        main(["gc", str(store)])
    out = capsys.readouterr().out
    assert "2 dead objects" in out
    assert "Nothing was deleted; --yes deletes." in out
    with pytest.raises(SystemExit):
        main(["gc", str(store), "--yes"])
    assert "Deleted 2 objects." in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["gc", str(store)])
    assert capsys.readouterr().out == "No garbage.\n"


def test_gc_lists_and_deletes_only_with_yes(answered: Answered, store: Path):
    dead = leave_a_dead_attempt(store)
    shown = answered("gc", store)
    assert {thing["path"] for thing in shown["removable"]} == dead
    assert shown["removable_bytes"] == sum(thing["bytes"] for thing in shown["removable"]) > 0
    assert (shown["kept"], shown["deleted"]) == (0, 0)
    assert all((store / path).exists() for path in dead)
    assert answered("gc", store, "--yes")["deleted"] == 2
    assert not any((store / path).exists() for path in dead)
    assert answered("gc", store, "--yes") == {"removable": [], "removable_bytes": 0, "kept": 0, "deleted": 0}
    assert answered("verify", store)["dead_objects"] == 0


def test_gc_is_refused_while_a_driver_works(refused: Refused, store: Path):
    dead = leave_a_dead_attempt(store)
    with acquire(open_location(str(store)), 1):
        assert refused("gc", store, "--yes")["code"] == "run_has_driver"
    assert all((store / path).exists() for path in dead)


@pytest.mark.slow
def test_a_store_is_probed(answered: Answered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "RACERS", 2)
    monkeypatch.setattr(probe, "ROUNDS", 1)
    found = answered("probe-store", tmp_path)
    assert found["fit"]
    assert found["consequences"] == []
    assert {finding["name"] for finding in found["findings"]} >= {"write", "ranges", "conditional_create_race"}
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_probed_is_refused(refused: Refused, tmp_path: Path):
    (tmp_path / "a_file").write_text("x")
    assert refused("probe-store", tmp_path / "a_file")["code"] == "store_not_a_directory"
    assert refused("probe-store", "ftp://host/x")["code"] == "unknown_scheme"


def test_queries_are_narrowed_by_length_and_score(answered: Answered, refused: Refused, store: Path):
    assert answered("query", store, "--max-tokens", "2")["shape"] == [0, 16]
    assert answered("query", store, "--max-tokens", "3", "--min-tokens", "3")["shape"] == [36, 16]
    assert refused("query", store, "--min-score", "50")["code"] == "no_scores"
    run = open_run(str(store))
    for judge, scores in (("kind", [90.0, 60.0]), ("strict", [55.0, 10.0])):
        lines = run.index.slice(run.index.num_rows - 2, 2).to_pylist()
        write_scores(run.location, judge, lines[0]["unit_id"], [line["row"] for line in lines], scores)
    assert refused("query", store, "--min-score", "50")["code"] == "which_judge"
    assert refused("query", store, "--judge", "knid")["code"] == "no_such_judge"
    traits = ("--kind", "trait")
    assert answered("query", store, *traits, "--min-score", "50", "--judge", "kind")["shape"] == [2, 16]
    assert answered("query", store, *traits, "--min-score", "50", "--judge", "strict")["shape"] == [1, 16]
    assert answered("query", store, *traits, "--max-score", "50", "--judge", "strict")["shape"] == [1, 16]


def test_scores_are_shown_beside_rollouts_and_a_range_without_any_is_warned_of(
    store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("COLUMNS", "120")
    score_run(open_run(str(store)), "kind", lambda line: 2.25)

    def printed(*options: str) -> tuple[str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["query", str(store), *options])
        assert not ended.value.code
        return capsys.readouterr()

    out, err = printed("--judge", "kind", "--kind", "role")
    assert ("score" in out, "2.25" in out, err) == (True, True, "")
    out, err = printed("--kind", "role")
    assert "score" not in out
    out, err = printed("--min-score", "3")
    assert "default" in out
    assert "none has a score in the range" in err


def test_queries_of_what_is_not_there_are_refused(refused: Refused, store: Path, tmp_path: Path):
    for command in READING:
        assert refused(command, tmp_path / "nowhere")["code"] == "no_run"
    assert refused("query", store, "--layer", "9")["code"] == "no_such_layer"
    assert refused("query", store, "--layer", "some")["code"] == "bad_layer"
    assert refused("query", store, "--out", tmp_path / "x.csv")["code"] == "unknown_format"
    assert refused("query", store, "--out", "/dev/null/x.npy")["code"] == "no_folder"
    assert refused("query", store, "--out", "/proc/x.npy")["code"] == "not_writable"
    assert refused("report", store, "--out", tmp_path / "none" / "x.html")["code"] == "not_writable"
    assert refused("reduce", store, "--layer", "9")["code"] == "no_such_layer"
    assert refused("report", store, "--layer", "9")["code"] == "no_such_layer"
    assert not (store / "report.html").exists()
    assert refused("query", store, "--kind", "pirate")["code"] == "usage"


ARRAYS = (("resid_post", "response_mean"), ("resid_post", "prompt_last"))
EVERY_FILTER: list[tuple[list[str], dict[str, object]]] = [
    (["--kind", "role"], {"kind": "role"}),
    (["--kind", "trait", "--kind", "default"], {"kind": ["trait", "default"]}),
    (["--persona", "p*"], {"persona": "p*"}),
    (["--persona", "pirate", "--persona", "anx?ous"], {"persona": ["pirate", "anxious"]}),
    (["--polarity", "neg"], {"polarity": "neg"}),
    (["--prompt", "1"], {"prompt": 1}),
    (["--question", "0", "--question", "2"], {"question": [0, 2]}),
    (["--min-tokens", "3", "--max-tokens", "3"], {"min_tokens": 3, "max_tokens": 3}),
    (["--min-score", "30", "--max-score", "80"], {"min_score": 30, "max_score": 80}),
    (["--layer", "3"], {"layer": 3}),
    (["--layer", "1:3"], {"layer": "1:3"}),
    (["--layer", "3,0"], {"layer": [3, 0]}),
    (["--layer", "middle"], {"layer": "middle"}),
    (["--layer", "all"], {"layer": "all"}),
    (["--pooling", "prompt_last"], {"pooling": "prompt_last"}),
    (
        ["--kind", "role", "--persona", "p*", "--prompt", "0", "--layer", "1,2"],
        {"kind": "role", "persona": "p*", "prompt": 0, "layer": "1,2"},
    ),
]


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two poolings, and scores from 0 to 90."""
    root = tmp_path_factory.mktemp("judged") / "run"
    spec = small_spec(str(root), capture={"poolings": ["response_mean", "prompt_last"]})
    run = small_run(
        str(root), spec, FakeEngine(arrays=(("resid_post", "response_mean"), ("resid_post", "prompt_last")))
    )
    for unit_id in sorted(run.committed):
        rows = [line["row"] for line in run.index.to_pylist() if line["unit_id"] == unit_id]
        write_scores(run.location, "judge", unit_id, rows, [10.0 * (row % 10) for row in rows])
    return root


def test_scores_of_the_released_pipeline_are_imported_and_queried(
    answered: Answered, refused: Refused, store: Path, tmp_path: Path
):
    run = open_run(str(store))
    first = run.rollouts(kind="role").to_pylist()[0]
    scores = tmp_path / "scores"
    scores.mkdir()
    key = f"pos_p{first['prompt_index']}_q{first['question_index']}"
    (scores / f"{first['persona']}.json").write_text(json.dumps({key: 3}))
    answer = answered("scores", "import", store, scores)
    assert (answer["judge"], answer["scored"], answer["not_listed"]) == ("released", 1, run.index.num_rows - 1)
    assert answered("query", store, "--kind", "role", "--min-score", "3")["rollouts"] == 1
    assert answered("verify", store)["sound"]
    for place in (tmp_path / "none", scores / f"{first['persona']}.json", "s3://bucket/scores"):
        assert refused("scores", "import", store, place).get("hint")
    (scores / "pirat.json").write_text('{"pos_p0_q0": 3}')
    assert refused("scores", "import", store, scores, "--judge", "other")["code"] == "no_such_rollout"
    assert [one["name"] for one in answered("judges", store)["judges"]] == ["released"]


@pytest.mark.parametrize(("options", "filters"), EVERY_FILTER, ids=lambda value: " ".join(value))
def test_a_query_on_the_command_line_is_the_same_in_python(
    answered: Answered, judged: Path, tmp_path: Path, options: list[str], filters: dict[str, Any]
):
    out = tmp_path / "out.npy"
    answer = answered("query", judged, *options, "--out", out)
    found = open_run(str(judged)).activations(**filters)
    assert found.values.size
    assert answer["shape"] == list(found.values.shape)
    assert answer["layers"] == list(found.layers)
    np.testing.assert_array_equal(np.load(out), found.values)
    assert pq.read_table(answer["files"][1]).equals(found.rollouts)


@pytest.mark.parametrize("command", ["query", "reduce"])
def test_a_pooling_that_was_not_captured_is_refused_with_those_that_were(refused: Refused, store: Path, command: str):
    error = refused(command, store, "--pooling", "prompt_mean")
    assert error["code"] == "not_captured"
    assert "resid_post/response_mean" in f"{error['error']} {error.get('hint')}"


def test_a_query_that_matches_nothing_is_an_empty_answer_with_a_note(answered: Answered, store: Path, tmp_path: Path):
    out = tmp_path / "kept.npy"
    out.write_bytes(b"of an earlier query")
    answer = answered("query", store, "--persona", "pirat", "--layer", "2", "--out", out)
    assert answer["shape"] == [0, 16]
    assert answer["files"] == []
    assert "no persona 'pirat'. Did you mean 'pirate'?" in answer["note"]
    assert out.read_bytes() == b"of an earlier query"
    answer = answered("query", store, "--persona", "pirat", "--persona", "poet", "--layer", "2")
    assert answer["shape"] == [6, 16]
    assert answer["note"] == "There is no persona 'pirat'. Did you mean 'pirate'?"


@pytest.mark.parametrize("is_json", [True, False])
def test_a_note_of_a_query_is_on_stderr_only_where_the_document_does_not_have_it(
    capsys: pytest.CaptureFixture[str], store: Path, is_json: bool
):
    with pytest.raises(SystemExit) as ended:
        main(["query", str(store), "--persona", "pirat", *(["--json"] if is_json else [])])
    out, err = capsys.readouterr()
    assert ended.value.code == 0
    assert ("no persona 'pirat'" in out, "no persona 'pirat'" in err) == (is_json, not is_json)


def test_a_reduction_of_an_empty_run_is_refused(refused: Refused, tmp_path: Path):
    location = open_location(str(tmp_path / "run"))
    plan = small_plan(small_spec(str(tmp_path / "run")))
    with acquire(location, 1) as lease:
        begin(location, plan, lease)
    assert refused("reduce", tmp_path / "run")["code"] == "empty_run"


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize(("version", "code"), [(1, "older_layout"), (max(layout.LAYOUT_VERSIONS) + 1, "newer_layout")])
def test_a_store_of_another_layout_is_refused_with_both_versions(
    refused: Refused, store: Path, command: str, version: int, code: str
):
    record = json.loads((store / layout.RUN_RECORD).read_bytes())
    (store / layout.RUN_RECORD).write_text(json.dumps(record | {"layout_version": version}))
    error = refused(command, store, status=1)
    assert error["code"] == code
    assert f"version {version}; this Persona Atlas reads {layout.LAYOUT_VERSION}" in error["error"]
    assert error["hint"]


@pytest.mark.parametrize("command", READING)
def test_a_store_without_its_record_is_half_deleted_and_no_other_thing(refused: Refused, store: Path, command: str):
    (store / layout.RUN_RECORD).unlink()
    assert refused(command, store, status=1)["code"] == "half_deleted"


def test_a_store_without_its_list_of_units_is_read_and_found_damaged(answered: Answered, store: Path):
    path = layout.units_path(open_run(str(store)).record.units_sha256)
    (store / path).unlink()
    assert answered("query", store, "--layer", "all")["shape"] == [36, 4, 16]
    damage = [p for p in answered("verify", store, status=1)["problems"] if p["kind"] == "damage"]
    assert [(problem["code"], problem["path"]) for problem in damage] == [("bad_object", path)]


def test_a_store_without_its_activations_says_so(answered: Answered, refused: Refused, store: Path, tmp_path: Path):
    shutil.rmtree(store / layout.ACTIVATIONS)
    error = refused("query", store, "--out", tmp_path / "x.npy", status=1)
    assert error["code"] == "missing_object"
    assert layout.ACTIVATIONS in error["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert refused("reduce", store, status=1)["code"] == "missing_object"
    codes = {problem["code"] for problem in answered("verify", store, status=1)["problems"]}
    assert codes == {"missing_object", "bad_array", "stale_index"}


@pytest.mark.parametrize("command", READING)
def test_a_place_that_holds_something_else_is_refused_and_left_as_it_is(refused: Refused, tmp_path: Path, command: str):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert refused(command, tmp_path)["code"] == "not_a_run"
    assert refused(command, tmp_path / "thesis.tex")["field"] == "STORE"
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("command", READING)
def test_refused_credentials_are_named(refused: Refused, monkeypatch: pytest.MonkeyPatch, command: str):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with refusing_server("SignatureDoesNotMatch") as endpoint:
        error = refused(command, "s3://bucket/run", "--endpoint-url", endpoint)
    assert (error["code"], error["field"]) == ("store_denied", "STORE")
    assert "AWS_SECRET_ACCESS_KEY" in error["hint"]


@pytest.mark.s3
@pytest.mark.parametrize("command", READING)
def test_a_bucket_that_does_not_exist_is_named(refused: Refused, s3_endpoint: str, command: str):
    error = refused(command, "s3://no-such-bucket-atlas/run", "--endpoint-url", s3_endpoint)
    assert error["code"] == "no_bucket"
    assert "no-such-bucket-atlas" in error["error"]


def test_commands_print_the_same_for_every_kind_of_store(answered: Answered, store_url: str):
    location = store_run(store_url, small_plan(), leave_out=[UNIT])
    assert answered("verify", location.url)["missing"] == [UNIT]
    assert answered("gc", location.url, "--yes")["kept"] == 2
    assert answered("query", location.url)["shape"] == [33, 16]


def test_a_repair_shows_what_it_would_do_and_withdraws_damaged_units_only_when_told_to(
    answered: Answered, refused: Refused, store: Path
):
    location = open_location(str(store))
    shard = read_commit(location, UNIT).manifest.blocks[0].path
    (store / shard).unlink()
    shown = answered("verify", store, "--repair", status=1)
    assert shown["repair"] is None
    assert [problem["unit_id"] for problem in shown["problems"] if problem["kind"] == "damage"] == [UNIT]
    assert (store / layout.commit_path(UNIT)).exists()
    with acquire(location, 0):
        assert refused("verify", store, "--repair", "--yes")["code"] == "run_has_driver"
    done = answered("verify", store, "--repair", "--yes")
    assert done["repair"] == {"units": [UNIT], "objects": [layout.commit_path(UNIT)], "left": []}
    after = answered("verify", store)
    assert (after["sound"], after["missing"], after["problems"]) == (True, [UNIT], [])
    assert len(list((store / "withdrawn/commits").iterdir())) == 1
    assert answered("verify", store, "--repair", "--yes", "--complete", status=1)["repair"] is None


@pytest.mark.parametrize(
    "options", [["--yes"], ["--repair", "--recompute", "3"], ["--recompute", "0"], ["--model", "x"]]
)
def test_options_of_verify_that_do_not_go_together_are_refused(refused: Refused, store: Path, options: list[str]):
    assert refused("verify", store, *options)["error"]


def test_a_layer_without_an_axis_is_refused_by_name_once_the_others_are_stored(
    answered: Answered, refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("fakes.vector_of", lambda *_: np.ones((4, 16), dtype=np.float32))
    small_run(str(tmp_path / "run"))
    error = refused("reduce", tmp_path / "run", "--layer", "0")
    assert (error["code"], error["field"]) == ("no_axis", "--layer")
    found = answered("reduce", tmp_path / "run")
    assert (found["roles"], found["pc1_variance"]) == ([], None)
    assert "There is no axis at layers 0, 1, 2, 3" in found["notes"][0]
    assert answered("report", tmp_path / "run")["report"]


def test_a_report_of_a_run_whose_scores_leave_no_role_ignores_them_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = small_run(str(tmp_path / "run"))
    score_run(run, "strict", lambda line: 1)
    with pytest.raises(SystemExit) as ended:
        main(["report", str(tmp_path / "run")])
    assert ended.value.code == 0
    assert "scores are ignored, because no rollout of a role is scored 3" in " ".join(capsys.readouterr().err.split())
    reduction = run.refresh().reduction
    assert reduction is not None
    assert reduction.facts["judge"] is None


def test_scores_that_are_not_there_are_refused_by_the_option_that_was_given(refused: Refused, store: Path):
    for option, value in (("--judge", "kind"), ("--min-score", "5"), ("--max-score", "5")):
        error = refused("query", store, option, value)
        assert (error["code"], error["field"]) == ("no_scores", option)
    write_scores(open_location(str(store)), "kind", UNIT, [0], [1.0])
    error = refused("query", store, "--judge", "other")
    assert (error["code"], error["field"]) == ("no_such_judge", "--judge")
    assert "kind" in error["hint"]
