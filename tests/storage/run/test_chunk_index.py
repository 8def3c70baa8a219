"""Where each layer lies: told by the commits, by one table for many of them, and never wrongly by a bad table."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from persona_atlas.jobs.errors import StoreError
from persona_atlas.jobs.plan import Plan
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import CommitRecord
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.chunk_index import CHUNK_SCHEMA, ChunkLengths, chunk_table, read_chunks, write_chunks
from persona_atlas.storage.run.commits import read_commits
from persona_atlas.storage.run.index_keeper import refresh_index

from counted import Counted
from fakes import FakeEngine, small_plan, small_spec
from stored_runs import record_of, store_run

MEAN = ("resid_post", "response_mean")
LAST = ("resid_post", "response_last")


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan(small_spec(capture={"poolings": ["response_mean", "response_last"]}))


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Path:
    url = tmp_path_factory.mktemp("store") / "run"
    refresh_index(store_run(str(url), plan, engine=FakeEngine(arrays=(MEAN, LAST))), record_of(plan))
    return url


@pytest.fixture
def location(stored: Path) -> Counted:
    return Counted(open_location(str(stored)))


@pytest.fixture(scope="module")
def commits(stored: Path, plan: Plan) -> list[CommitRecord]:
    return read_commits(open_location(str(stored)), list(plan.by_id))


def asked_of(commits: list[CommitRecord]) -> tuple[list[int], list[str]]:
    return [commit.manifest.row_block for commit in commits], [commit.manifest.unit_id for commit in commits]


def assert_right(found: list[np.ndarray], commits: list[CommitRecord], array: tuple[str, str] = MEAN) -> None:
    for lengths_L1, commit in zip(found, commits, strict=True):
        (block,) = [b for b in commit.manifest.blocks if (b.hook_point, b.pooling) == array]
        assert tuple(lengths_L1.ravel().tolist()) == block.chunk_bytes


def test_the_table_has_a_line_for_every_object_of_every_unit(location: Location, commits: list[CommitRecord]):
    lines = {
        (x["row_block"], x["hook_point"], x["pooling"]): x["chunk_bytes"] for x in read_chunks(location).to_pylist()
    }
    assert len(lines) == 24
    for commit in commits:
        for block in commit.manifest.blocks:
            assert lines[commit.manifest.row_block, block.hook_point, block.pooling] == list(block.chunk_bytes)


@pytest.mark.parametrize("array", [MEAN, LAST])
def test_for_a_few_units_their_commits_are_asked(
    location: Counted, commits: list[CommitRecord], array: tuple[str, str]
):
    few = commits[:3]
    lengths = ChunkLengths(location, *array, num_layers=4)
    assert_right(lengths.lengths_of(*asked_of(few)), few, array)
    assert sorted(asked.path for asked in location.asked) == sorted(layout.commit_path(c.manifest.unit_id) for c in few)
    location.asked.clear()
    assert_right(lengths.lengths_of(*asked_of(few[::-1])), few[::-1], array)
    assert location.asked == [], "what is known is not asked again"


def test_for_many_units_one_table_is_asked(
    location: Counted, commits: list[CommitRecord], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ChunkLengths, "_MAX_COMMITS_READ", 11)
    assert_right(ChunkLengths(location, *LAST, num_layers=4).lengths_of(*asked_of(commits)), commits, LAST)
    assert [asked.path for asked in location.asked] == [layout.CHUNKS]


def test_commits_that_were_read_already_are_not_read_again(location: Counted, commits: list[CommitRecord]):
    lengths = ChunkLengths(location, *MEAN, num_layers=4)
    lengths.add_commits(commits)
    assert_right(lengths.lengths_of(*asked_of(commits)), commits)
    assert location.asked == []


def test_what_the_table_lacks_is_read_from_the_commits(
    tmp_path: Path, stored: Path, commits: list[CommitRecord], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ChunkLengths, "_MAX_COMMITS_READ", 2)
    shutil.copytree(stored, tmp_path / "run")
    location = Counted(open_location(str(tmp_path / "run")))
    write_chunks(location, chunk_table(commit.manifest for commit in commits[:8]))
    location.asked.clear()
    assert_right(ChunkLengths(location, *MEAN, num_layers=4).lengths_of(*asked_of(commits)), commits)
    assert len(location.asked) == 1 + 4


def test_nothing_asked_is_nothing_read(location: Counted):
    assert ChunkLengths(location, *MEAN, num_layers=4).lengths_of([], []) == []
    assert location.asked == []


def test_a_row_block_that_is_not_the_units_is_an_error_that_names_the_commit(
    location: Counted, commits: list[CommitRecord]
):
    unit_id = commits[0].manifest.unit_id
    with pytest.raises(StoreError, match=f"unit {unit_id} has no activations of resid_post/response_mean") as caught:
        ChunkLengths(location, *MEAN, num_layers=4).lengths_of([999], [unit_id])
    assert (caught.value.code, caught.value.file) == (
        "missing_object",
        f"{location.url}/{layout.commit_path(unit_id)}",
    )


@pytest.mark.parametrize("data", [b"", b"PAR1", b"x" * 300])
def test_a_damaged_table_is_as_good_as_none(tmp_path: Path, stored: Path, monkeypatch: pytest.MonkeyPatch, data: bytes):
    monkeypatch.setattr(ChunkLengths, "_MAX_COMMITS_READ", 2)
    shutil.copytree(stored, tmp_path / "run")
    (tmp_path / "run" / layout.CHUNKS).write_bytes(data)
    expected = open_run(str(stored)).activations(layer="all").values
    assert np.array_equal(open_run(str(tmp_path / "run")).activations(layer="all").values, expected)


@pytest.mark.parametrize("wrong", [[], [10], [0, 0, 0, 0], [1, 1, 1, 1], [70, 80, 90, 100], [9, 9, 9, 9, 9]])
def test_a_table_that_is_wrong_spoils_no_reading(
    tmp_path: Path, stored: Path, commits: list[CommitRecord], wrong: list[int], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ChunkLengths, "_MAX_COMMITS_READ", 2)
    shutil.copytree(stored, tmp_path / "run")
    truth = open_run(str(stored)).activations(layer="all").values
    location = open_location(str(tmp_path / "run"))
    lines = chunk_table(commit.manifest for commit in commits).to_pylist()
    write_chunks(location, pa.Table.from_pylist([x | {"chunk_bytes": wrong} for x in lines], schema=CHUNK_SCHEMA))
    assert np.array_equal(open_run(location.url).activations(layer="all").values, truth)
