"""``~`` is the home directory wherever a path is given, and a directory called ``~`` is made nowhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from persona_atlas.cluster.cli.options import is_store
from persona_atlas.cluster.submission.shipping import is_shipped_catalog
from persona_atlas.cluster.submission.submit import resolved
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.files.user_paths import expand_home
from persona_atlas.jobs.sources.reading.read_conversations import read_conversations
from persona_atlas.jobs.specs.spec import load_spec
from persona_atlas.jobs.specs.spec_parts import ModelSpec
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.workers.models.model_files import find_model, local_directory

from command_line import Answered, Refused
from stored_runs import small_run

SPEC = "model: {source: some/model}\npersonas: {roles: {names: [pirate]}}\nstore: {url: elsewhere}\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory, and an empty working directory beside it."""
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    return home


def test_a_store_in_the_home_directory_opens_from_a_spec_an_override_and_python(home: Path):
    (home / "job.yaml").write_text(SPEC)
    spec = load_spec("~/job.yaml", ["store.url=~/x"])
    assert open_location(spec.store.url).url == str(home / "x")
    assert open_location(Path("~/x")).url == str(home / "x")
    assert resolved(spec).store.url == str(home / "x")
    open_location(spec.store.url).write("a", b"1")
    assert (home / "x" / "a").read_bytes() == b"1"
    assert list(Path().iterdir()) == []


def test_commands_that_read_a_store_find_it(home: Path, answered: Answered):
    small_run(str(home / "run"))
    assert open_run("~/run").url == str(home / "run")
    for command in ("show", "query", "verify", "status"):
        assert answered(command, "~/run")
    answered("query", "~/run", "--out=~/found.npz")
    assert (home / "found.npz").is_file()
    assert list(Path().iterdir()) == []


def test_a_catalog_conversations_and_a_model_in_the_home_directory_are_found(home: Path):
    (home / "own" / "roles").mkdir(parents=True)
    (home / "own" / "questions.yaml").write_text("questions:\n  q1: Why?\n")
    (home / "own" / "roles" / "ferryman.yaml").write_text("description: Rows.\nprompts: [You row.]\n")
    assert load_catalog("~/own").names("role") == ("ferryman",)
    assert is_shipped_catalog("~/own")
    (home / "job.yaml").write_text(SPEC)
    spec = resolved(load_spec("~/job.yaml", ["personas.catalog=~/own", "model.source=~/own"]))
    assert (spec.personas.catalog, spec.model.source) == (str(home / "own"), str(home / "own"))
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ahoy"}]
    (home / "talk.jsonl").write_text(json.dumps({"messages": messages}))
    assert len(read_conversations("~/talk.jsonl").conversations) == 1
    assert local_directory("~/own") == home / "own"


def test_a_home_that_does_not_exist_is_refused_and_a_directory_called_tilde_can_be_named(home: Path, refused: Refused):
    assert expand_home("./~/x", "store.url") == "./~/x"
    assert open_location("s3://bucket/~").url == "s3://bucket/~"
    for act in (open_location, load_catalog, read_conversations, lambda url: find_model(ModelSpec(source=url), print)):
        with pytest.raises(InputError, match="no such home directory"):
            act("~no-such-user-here/x")
    assert refused("show", "~no-such-user-here/x")["code"] == "no_home"
    assert is_store("~")
    assert home.is_dir()
