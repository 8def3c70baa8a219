"""Wrong values on the command line: blank ones, other kinds of path, numbers out of range; refused with pure JSON."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from command_line import Answered, Refused
from stored_runs import small_run

COMMANDS = {
    "show": ["STORE"],
    "query": ["STORE"],
    "verify": ["STORE"],
    "gc": ["STORE"],
    "reduce": ["STORE"],
    "report": ["STORE"],
    "probe-store": ["URL"],
    "status": ["JOB|STORE"],
    "resume": ["JOB|STORE"],
    "cancel": ["JOB"],
    "run": ["SPEC"],
    "submit": ["SPEC"],
    "plan": ["SPEC"],
    "catalog": ["NAME"],
}
STORES = ["show", "query", "verify", "gc", "reduce", "report", "status", "probe-store"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("wrong") / "run"
    small_run(str(root))
    return root


@pytest.mark.parametrize("value", ["", " ", "\t"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_blank_argument_is_no_directory(refused: Refused, command: str, value: str):
    error = refused(command, value)
    assert error["code"] == "blank_value"
    assert COMMANDS[command][0] in error["field"]


@pytest.mark.parametrize(
    "option",
    ["--layer", "--hook-point", "--pooling", "--out", "--persona", "--judge", "--endpoint-url"],
)
def test_a_blank_option_is_not_taken_for_one_that_is_not_given(refused: Refused, store: Path, option: str):
    error = refused("query", store, option, "")
    assert (error["code"], error["field"]) == ("blank_value", option)


@pytest.mark.parametrize("url", ["s3:/bucket/run", "S3://bucket/run", "s3:bucket", "http://host/run", "gs://b/run"])
@pytest.mark.parametrize("command", STORES)
def test_a_misspelt_scheme_is_refused_by_every_command(
    refused: Refused, command: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    if command == "status" and "/" not in url:
        pytest.skip("is the id of a job")
    assert refused(command, url)["code"] == "unknown_scheme"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", STORES)
def test_a_file_a_pipe_and_a_device_are_no_stores(refused: Refused, command: str, tmp_path: Path):
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "file", tmp_path / "pipe", "/dev/null", tmp_path / ("x" * 300)):
        error = refused(command, place)
        assert error.get("hint")
        assert error["field"] == {"status": "JOB|STORE", "probe-store": "URL"}.get(command, "STORE")


def test_of_two_places_the_one_that_is_wrong_is_named(answered: Answered, refused: Refused, tmp_path: Path):
    nowhere, store = tmp_path / "nowhere", small_run(str(tmp_path / "run")).url
    answered("reduce", store)
    for arguments, field in (
        (("compare", store, nowhere), "B"),
        (("compare", nowhere, store), "A"),
        (("trajectories", nowhere, "--axis", store), "STORE"),
        (("extract", "--model", "m", "--conversations", "x.jsonl", "--store", "gs://bucket/x"), "--store"),
        (
            ("extract", "--model", "m", "--conversations", "x", "--store", "y", "--set", "store.url=gs://x/y"),
            "store.url",
        ),
    ):
        assert refused(*arguments)["field"] == field, arguments


@pytest.mark.parametrize("command", ["run", "submit", "plan"])
def test_a_directory_and_a_device_are_no_specs(refused: Refused, command: str, tmp_path: Path):
    for place in (tmp_path, "/dev/zero", tmp_path / "nothing.yaml", "s3://bucket/job.yaml", tmp_path / ("x" * 300)):
        assert refused(command, place)["code"] in ("unreadable_file", "not_a_path", "bad_path")


@pytest.mark.parametrize("source", ["job.yaml", "/dev/null", "s3://bucket/talks.jsonl", "nothing", "x" * 300])
def test_other_things_are_no_conversations(
    refused: Refused, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("model: {source: m}\nstore: {url: x}\n")
    error = refused("extract", "--model", ".", "--conversations", source, "--store", "work")
    assert error.get("hint")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    "option",
    [
        ("--layer", "-1"),
        ("--layer", "99999999999999999999"),
        ("--layer", "5:2"),
        ("--layer", "x"),
        ("--prompt", "x"),
        ("--min-tokens", "1.5"),
        ("--min-score", "x"),
        ("--turn", "3"),
        ("--pooling", "response"),
        ("--hook-point", "resid"),
        ("--out", "/dev/null"),
        ("--out", "/no/such/folder/x.npz"),
        ("--out", "."),
    ],
)
def test_a_value_that_an_option_cannot_have_is_refused(refused: Refused, store: Path, option: tuple[str, str]):
    refused("query", store, *option)


@pytest.mark.parametrize(
    "option",
    [
        ("--prompt", "-1"),
        ("--prompt", "99999999999999999999"),
        ("--min-tokens", "99999999999999999999"),
        ("--max-tokens", "-99999999999999999999"),
    ],
)
def test_a_number_that_nothing_has_selects_nothing(answered: Answered, store: Path, option: tuple[str, str]):
    assert answered("query", store, *option)["rollouts"] == 0


@pytest.mark.parametrize("layer", ["-1", "99999999999999999999", "x"])
def test_a_layer_that_a_reduction_lacks_is_refused(refused: Refused, store: Path, layer: str):
    refused("reduce", store, "--layer", layer)


@pytest.mark.parametrize("gpus", ["0", "-1", "9" * 400, "1.5"])
def test_a_number_of_devices_is_one_that_there_could_be(refused: Refused, tmp_path: Path, gpus: str):
    (tmp_path / "job.yaml").write_text(
        "model: {source: Qwen/Qwen3-32B}\npersonas: {roles: {names: [pirate]}}\nstore: {url: x}\n"
    )
    refused("plan", tmp_path / "job.yaml", "--gpus", gpus)
