"""Stores on the Hugging Face Hub: push, pull, reading in place, and what the hub refuses. Against a local stand-in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.jobs.errors import AtlasError, InputError, StoreError, TransientError
from persona_atlas.jobs.files.hub_url import parse_hub_url
from persona_atlas.jobs.specs.spec import make_spec
from persona_atlas.storage.format.additions import AdditionRecord
from persona_atlas.storage.locations.hub import HubLocation
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.query.vectors import open_vectors
from persona_atlas.storage.run.additions import add_to_run
from persona_atlas.storage.run.index_keeper import refresh_index
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.run.run_store import read_run_record
from persona_atlas.storage.sharing import push
from persona_atlas.storage.sharing.pull import pull_store
from persona_atlas.storage.sharing.push import push_store

from command_line import Answered, Refused
from dataset_hub import TOKEN, Dataset, DatasetHub, running_dataset_hub
from planted_vectors import plant, planted_run

# The hub's client uploads large files in a way that its HTTP library discourages.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

URL = "hf://datasets/me/pirates"


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store") / "run"
    run = planted_run(str(root), plant().reduction)
    refresh_index(run.location, run.record)
    return root


@pytest.fixture
def store(tmp_path: Path, complete: Path) -> Path:
    """A finished run that a test may change."""
    shutil.copytree(complete, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[DatasetHub]:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with running_dataset_hub() as hub:
        yield hub


@pytest.fixture
def shared(hub: DatasetHub, store: Path, answered: Answered) -> DatasetHub:
    """The hub, with the whole run as a dataset."""
    answered("push", store, URL, "--only", "all")
    return hub


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_vectors_are_pushed_without_texts_and_activations_and_read_in_place(
    hub: DatasetHub, store: Path, answered: Answered
):
    said = answered("push", store, URL)
    dataset = hub.datasets["me/pirates"]
    assert dataset.private, "nothing becomes public by default"
    assert said["uploaded"] == len(dataset.files) - 3, "all but card, mark and what the hub itself makes"
    folders = {path.split("/")[0] for path in dataset.files}
    assert {"run.json", "analysis", "README.md"} <= folders
    assert not folders & {"activations", "rollouts", "commits", "drivers", "status"}
    card = dataset.files["README.md"].decode()
    assert "# Add a licence" in card
    assert "open_run" in card
    assert "4 roles, 2 traits" in card

    shown = answered("show", URL)
    assert (shown["url"], shown["reduction"]) == (URL, "planted")
    reduction = open_run(URL).reduction
    assert reduction is not None
    assert np.array_equal(reduction.axis, plant().reduction.axis)  # pyright: ignore[reportArgumentType]


def test_what_is_not_of_a_store_stays_here(hub: DatasetHub, store: Path, answered: Answered):
    (store / "notes").mkdir()
    for name in ("keys.txt", "notes/config", "report.html"):
        (store / name).write_text("a response")
    answered("push", store, URL)
    assert not {"keys.txt", "notes/config", "report.html"} & hub.datasets["me/pirates"].files.keys()
    answered("push", store, URL, "--only", "all")
    assert not {"keys.txt", "notes/config"} & hub.datasets["me/pirates"].files.keys()
    assert "report.html" in hub.datasets["me/pirates"].files


def test_more_scores_and_an_addition_are_pushed_to_the_same_dataset(hub: DatasetHub, store: Path, answered: Answered):
    (store / "scores" / "released").mkdir(parents=True)
    scores = store / "scores" / "released" / "judge.json"
    scores.write_text("{}")
    answered("push", store, URL)
    scores.write_text('{"rubrics": {}}')
    location = open_location(store)
    record = read_run_record(location)
    assert record is not None
    addition = AdditionRecord.sealed(
        number=1,
        grown_from=record.plan_digest,
        plan_digest="0" * 64,
        spec=record.spec,
        num_units=0,
        num_rollouts=0,
        units_sha256="0" * 64,
        rows={},
        versions={},
        created_at="",
    )
    add_to_run(location, record, addition, b"")
    answered("push", store, URL)
    there = hub.datasets["me/pirates"].files
    assert there["scores/released/judge.json"] == scores.read_bytes()
    assert there["run.json"] == (store / "run.json").read_bytes()
    assert there["additions/000001.json"] == addition.to_bytes()


def test_a_copy_of_the_vectors_says_what_it_is_until_the_rest_is_pushed(
    hub: DatasetHub, store: Path, tmp_path: Path, answered: Answered, refused: Refused
):
    answered("push", store, URL)
    answered("pull", URL, tmp_path / "copy")
    for place in (URL, tmp_path / "copy"):
        for command in (("query", "--out", str(tmp_path / "a.npy")), ("verify",)):
            error = refused(command[0], place, *command[1:])
            assert error["code"] == "vectors_only", command
            assert "--only all" in error["hint"]
    answered("push", store, URL, "--only", "all")
    assert "vectors-only.json" not in hub.datasets["me/pirates"].files
    assert answered("query", URL, "--out", tmp_path / "a.npy")["rollouts"] > 0
    answered("push", store, URL)
    assert "vectors-only.json" not in hub.datasets["me/pirates"].files, "the rest is still there"


def test_everything_is_pushed_and_pulled_byte_by_byte(
    shared: DatasetHub, store: Path, tmp_path: Path, answered: Answered
):
    said = answered("pull", URL, tmp_path / "copy")
    kept = {path: data for path, data in files(store).items() if path.split("/")[0] not in ("drivers", "status")}
    assert files(tmp_path / "copy") == kept
    assert (said["downloaded"], said["skipped"]) == (len(kept), 0)
    assert answered("verify", tmp_path / "copy")["sound"]
    again = answered("pull", URL, tmp_path / "copy")
    assert (again["downloaded"], again["skipped"]) == (0, len(kept))


def test_a_whole_run_is_queried_in_place_by_ranges(shared: DatasetHub, store: Path):
    run, here = open_run(URL), open_run(store)
    shared.requests.clear()
    assert np.array_equal(run.activations(kind="role", layer=1).values, here.activations(kind="role", layer=1).values)
    assert run.rollouts(persona="poet")["response"].equals(here.rollouts(persona="poet")["response"])
    assert shared.of("GET", r"resolve/.*/activations/")
    assert not shared.of("GET", r"resolve/main/"), "one commit is read, whatever the branch does meanwhile"


def test_a_push_of_the_same_uploads_nothing_and_of_another_store_is_refused(
    shared: DatasetHub, store: Path, answered: Answered, refused: Refused, tmp_path: Path
):
    commits = len(shared.datasets["me/pirates"].commits)
    said = answered("push", store, URL, "--only", "all")
    assert (said["uploaded"], len(shared.datasets["me/pirates"].commits)) == (0, commits)
    # A cache may change, and what a person wrote on the card stays.
    shared.datasets["me/pirates"].commit({"README.md": b"mine", "report.html": b"old"})
    (store / "report.html").write_bytes(b"new")
    assert answered("push", store, URL, "--only", "all")["uploaded"] == 1
    assert shared.datasets["me/pirates"].files["README.md"] == b"mine"
    other = planted_run(str(tmp_path / "other"), plant((1, 2)).reduction)
    error = refused("push", other.url, URL, "--only", "all")
    assert error["code"] == "other_store"
    assert "differ" in error["error"]
    assert answered("push", other.url, f"{URL}/other", "--only", "all")["uploaded"] > 10, "a folder of its own"
    reduction = open_run(f"{URL}/other").reduction
    assert reduction is not None
    assert reduction.layers == (1, 2)


def test_a_push_and_a_pull_that_were_interrupted_go_on(
    hub: DatasetHub, store: Path, tmp_path: Path, answered: Answered, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(push, "_MAX_FILES", 20)
    hub.fail = lambda method, path: 500 if "/commit/" in path and len(hub.of("POST", "/commit/")) == 3 else None
    with pytest.raises(TransientError):
        push_store(open_vectors(store), parse_hub_url(URL), "all")
    first = len(hub.datasets["me/pirates"].files)
    assert 40 <= first < 60
    assert "run.json" not in hub.datasets["me/pirates"].files, "no half store is seen"
    with pytest.raises(StoreError, match="not complete"):
        open_run(URL)
    hub.fail = lambda method, path: None
    said = answered("push", store, URL, "--only", "all")
    assert said["skipped"] == 40

    whole = answered("pull", URL, tmp_path / "copy")["downloaded"]
    for path in list((tmp_path / "copy" / "commits").iterdir())[:5]:
        path.unlink()
    said = answered("pull", URL, tmp_path / "copy")
    assert (said["downloaded"], said["skipped"]) == (5, whole - 5)


def test_pull_overwrites_nothing_and_compares_checksums(
    shared: DatasetHub, tmp_path: Path, answered: Answered, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "run.json").write_text("mine")
    error = refused("pull", URL, tmp_path / "copy")
    assert error["code"] == "other_store"
    assert files(tmp_path / "copy") == {"run.json": b"mine"}
    read = HubLocation.read
    monkeypatch.setattr(HubLocation, "read", lambda here, path: (read(here, path) or b"")[:-1] + b"?")
    with pytest.raises(StoreError, match="checksum"):
        pull_store(HubLocation(URL), open_location(tmp_path / "damaged"))
    assert not (tmp_path / "damaged" / "run.json").exists()


def test_a_revision_is_read_as_it_was(shared: DatasetHub, store: Path, answered: Answered):
    before = shared.datasets["me/pirates"].commits[-1][0]
    shared.datasets["me/pirates"].commit({"analysis/current.json": b"{}"})
    assert answered("show", f"{URL}@{before}")["reduction"] == "planted"
    with pytest.raises(StoreError):
        _ = open_run(URL).reduction
    with pytest.raises(InputError) as caught:
        open_run(f"{URL}@none")
    assert caught.value.code == "no_revision"


def test_the_location_keeps_the_contract_and_refuses_writes(shared: DatasetHub):
    location = open_location(URL)
    assert location.url == URL
    commit = location.names("commits")[0]
    data = location.read(f"commits/{commit}")
    assert data is not None
    assert location.size(f"commits/{commit}") == len(data)
    assert location.read_range(f"commits/{commit}", 5, 10) == data[5:15]
    assert location.read_range(f"commits/{commit}", len(data) - 3, 10) == data[-3:]
    assert location.read_range(f"commits/{commit}", len(data) + 5, 10) == b""
    assert location.names_between("commits", [(commit, commit)]) == [commit]
    assert location.sizes("commits")[f"commits/{commit}"] == len(data)
    for missing in ("nothing", "commits/nothing", "no/such/folder"):
        assert location.read(missing) is None
        assert location.read_range(missing, 0, 1) is None
        assert location.size(missing) is None
        assert location.names(missing) == []
        assert location.sizes(missing) == {}
    assert location.size("commits") is None, "a folder is no object"
    assert not location.is_empty()
    for write in (
        lambda: location.write("a", b""),
        lambda: location.create("a", b""),
        lambda: location.delete(["a"]),
        lambda: location.zarr(read_only=False),
    ):
        with pytest.raises(InputError) as caught:
            write()
        assert caught.value.code == "read_only"
        assert "pull" in (caught.value.hint or "")


def test_what_would_write_on_the_hub_is_refused(shared: DatasetHub, refused: Refused):
    assert refused("gc", URL, "--yes")["code"] == "read_only"
    with pytest.raises(InputError, match="push"):
        make_spec({"model": {"source": "m"}, "store": {"url": URL}})


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("hf://datasets/me", "bad_store_url"),
        ("hf://me/pirates", "bad_store_url"),
        ("hf://datasets/me/a b", "bad_store_url"),
        ("hf://datasets/me/pirates@", "bad_store_url"),
        ("hf://datasets/me/pirates/../x", "bad_store_url"),
        ("hf:/datasets/me/pirates", "unknown_scheme"),
        ("hf://datasets/me/none", "no_repo"),
        ("hf://datasets/me/private", "no_repo"),
        ("hf://datasets/me/other", "not_a_run"),
    ],
)
def test_what_is_no_store_is_named(
    hub: DatasetHub, monkeypatch: pytest.MonkeyPatch, refused: Refused, url: str, code: str
):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/none")
    hub.datasets["me/private"] = Dataset(private=True)
    hub.datasets["me/private"].commit({"run.json": b"{}"})
    hub.datasets["me/other"] = Dataset(private=False)
    hub.datasets["me/other"].commit({"data.csv": b"1"})
    error = refused("show", url)
    assert error["code"] == code
    assert error["field"] == "STORE"


def test_push_without_a_token_or_the_right_to_write(
    hub: DatasetHub, store: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", "/none")
    for token in (None, "hf_reader"):
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token:
            monkeypatch.setenv("HF_TOKEN", token)
        error = refused("push", store, URL)
        assert error["code"] in ("no_repo", "hub_denied")
        assert "HF_TOKEN" in error["hint"]
    assert hub.datasets == {}


def test_push_needs_a_reduction_and_a_run_without_a_driver(hub: DatasetHub, store: Path, refused: Refused):
    with acquire(open_location(store), 1):
        assert refused("push", store, URL)["code"] == "run_has_driver"
    (store / "analysis" / "current.json").unlink()
    assert refused("push", store, URL)["code"] == "not_reduced"
    assert hub.datasets == {}


def test_a_busy_hub_is_a_transient_error(hub: DatasetHub, monkeypatch: pytest.MonkeyPatch):
    hub.datasets["me/pirates"] = Dataset(private=False)
    hub.datasets["me/pirates"].commit({"run.json": b"{}"})
    for status, kind in ((500, TransientError), (403, InputError), (400, InputError)):
        hub.fail = lambda method, path, status=status: status
        with pytest.raises(AtlasError) as caught:
            open_run(URL)
        assert type(caught.value) is kind, status
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TransientError) as caught:
        open_run(URL)
    assert caught.value.code == "hub_unreachable"
