"""Paths and text files that users bring: what cannot be meant is refused, before anything is opened or made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.files.names import MAX_NAME_BYTES, name_problem
from persona_atlas.jobs.files.text_files import read_text
from persona_atlas.jobs.specs.spec import JobSpec, load_spec, make_spec
from persona_atlas.storage.locations.location import open_location

SPEC = "model: {source: some/model}\npersonas: {roles: {names: [pirate]}}\nstore: {url: runs/mine}\n"


def refusal(act: Any, *given: Any) -> InputError:
    with pytest.raises(InputError) as caught:
        act(*given)
    return caught.value


@pytest.mark.parametrize("url", ["", " ", "\t\n", "a\0b", "a\ud800", "x" * 256, "a/" * 3000])
def test_a_store_that_no_path_can_be_is_refused(url: str):
    assert (error := refusal(open_location, url)).code == "bad_path"
    assert error.hint


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("s3:/bucket/run", "'s3://bucket/run'"),
        ("s3:bucket/run", "'s3://bucket/run'"),
        ("S3://bucket/run", "'s3://bucket/run'"),
        ("s3a://bucket/run", "'s3://bucket/run'"),
        ("http://host/run", "s3://bucket/prefix"),
        ("gs://bucket/run", "s3://bucket/prefix"),
        ("file:///tmp/run", "s3://bucket/prefix"),
        ("http:/host/run", "s3://bucket/prefix"),
    ],
)
def test_a_misspelt_scheme_makes_no_directory(url: str, meant: str):
    error = refusal(open_location, url)
    assert (error.code, error.field) == ("unknown_scheme", "store.url")
    assert meant in (error.hint or "")
    spec = refusal(make_spec, {"model": {"source": "m"}, "store": {"url": url}})
    assert meant in spec.message


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/run", "./s3:bucket", "runs/a:b", "C:/runs", "a:b", "s3"])
def test_what_is_meant_as_it_is_written_passes(url: str):
    data = {"model": {"source": "m"}, "personas": {"roles": {"names": ["pirate"]}}, "store": {"url": url}}
    assert JobSpec.model_validate(data).store.url == url


def test_a_url_is_refused_where_a_file_of_this_machine_is_needed():
    for act in (load_spec, load_catalog):
        assert refusal(act, "s3://bucket/it").code == "not_a_path"


def test_a_text_file_may_have_a_mark_and_line_ends_of_windows(tmp_path: Path):
    (tmp_path / "job.yaml").write_bytes(b"\xef\xbb\xbf" + SPEC.replace("\n", "\r\n").encode())
    assert load_spec(tmp_path / "job.yaml").store.url == "runs/mine"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named(encoding: str, tmp_path: Path):
    (tmp_path / "job.yaml").write_bytes(SPEC.encode(encoding))
    error = refusal(load_spec, tmp_path / "job.yaml")
    assert error.message == f"is {encoding[:6].upper()} text, and must be UTF-8."
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9\n")
    assert "line 2 is not UTF-8 (byte 0xe9)" in refusal(load_spec, tmp_path / "latin.yaml").message


def test_devices_and_named_pipes_are_refused_and_a_pipe_of_the_shell_is_read(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (Path("/dev/zero"), tmp_path / "pipe.yaml"):
        assert refusal(read_text, path, "a spec").code == "unreadable_file"
    out, into = os.pipe()
    os.write(into, SPEC.encode())
    os.close(into)
    assert read_text(Path(f"/dev/fd/{out}"), "a spec") == SPEC
    os.close(out)


@pytest.mark.parametrize(
    ("written", "read_as"),
    [
        ("no", "false"),
        ("yes", "true"),
        ("null", "null"),
        ("~", "null"),
        ("7", "the number 7"),
        ("1.5", "the number 1.5"),
        ("2026-01-01", "the date 2026-01-01"),
        ("0x1F", "the number 31"),
    ],
)
def test_a_name_that_yaml_takes_for_something_else_needs_quotes(written: str, read_as: str, tmp_path: Path):
    (tmp_path / "job.yaml").write_text(SPEC.replace("pirate", f"pirate, {written}"))
    error = refusal(load_spec, tmp_path / "job.yaml")
    assert (error.code, error.field) == ("not_a_text", "personas.roles.names.1")
    assert f"YAML reads it as {read_as}" in error.message
    assert "line 2" in error.message
    assert "quotes" in (error.hint or "")
    (tmp_path / "job.yaml").write_text(SPEC.replace("pirate", f"pirate, '{written}'"))
    assert load_spec(tmp_path / "job.yaml").personas.roles.names == ["pirate", written]


def catalog_of(root: Path, *names: str) -> Path:
    (root / "roles").mkdir()
    (root / "questions.yaml").write_bytes(b"\xef\xbb\xbfquestions:\n  q1: Why?\n")
    for name in names:
        (root / "roles" / f"{name}.yaml").write_text("description: Rows.\nprompts: [You row.]\n")
    return root


@pytest.mark.parametrize("name", ["a\nb", "a\x7f", " a", "a ", "a.", "é" * 91, "x" * 210, "a\\b", "a\u2028b"])
def test_a_name_that_files_and_objects_cannot_have_is_refused_with_its_file(name: str, tmp_path: Path):
    assert all(name_problem(bad) for bad in (name, ".", "..", "", "\ud800"))
    catalog = load_catalog(str(catalog_of(tmp_path, "ferryman", name)))
    assert catalog.persona("role", "ferryman").name == "ferryman"
    error = refusal(catalog.persona, "role", name)
    assert error.code == "bad_name"
    assert error.file == str(tmp_path / "roles" / f"{name}.yaml")


def test_a_name_may_be_as_long_as_the_names_of_its_objects_allow(tmp_path: Path):
    name = "x" * MAX_NAME_BYTES
    assert load_catalog(str(catalog_of(tmp_path, name))).persona("role", name).name == name
    unit_id = f"trait.{name}.neg.p999.b9999"
    location = open_location(tmp_path / "store")
    location.write(f"rollouts/{unit_id}-9999999.parquet", b"")
    location.create(f"commits/{unit_id}.json", b"")


@pytest.mark.parametrize(("one", "other"), [("pirate", "Pirate"), ("\u00e9", "e\u0301"), ("strasse", "straße")])
def test_names_that_a_file_system_may_not_tell_apart_are_not_selected_together(one: str, other: str, tmp_path: Path):
    catalog = load_catalog(str(catalog_of(tmp_path, one, other)))
    assert catalog.select("role", [one], "names") == (one,)
    error = refusal(catalog.select, "role", ["*"], "names")
    assert (error.code, error.field) == ("equal_names", "names")
    assert repr(one) in error.message
    assert repr(other) in error.message


def test_hidden_files_are_no_personas(tmp_path: Path):
    root = catalog_of(tmp_path, "ferryman")
    (root / "roles" / "._ferryman.yaml").write_bytes(b"\x00\x05\x16\x07")
    assert load_catalog(str(root)).names("role") == ("ferryman",)


def test_json_of_the_released_layout_may_have_a_mark(tmp_path: Path):
    folder = tmp_path / "roles" / "instructions"
    folder.mkdir(parents=True)
    (folder / "pirate.json").write_bytes(b'\xef\xbb\xbf{"instruction": [{"pos": "You are a pirate."}]}')
    (tmp_path / "extraction_questions.jsonl").write_bytes(b'\xef\xbb\xbf{"question": "Why?", "id": 0}\r\n')
    catalog = load_catalog(str(tmp_path))
    assert catalog.persona("role", "pirate").prompts == ("You are a pirate.",)
    assert [question.text for question in catalog.questions] == ["Why?"]
