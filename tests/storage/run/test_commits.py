"""Commits: a unit counts once, whoever asks how often, and a record that was touched does not read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.jobs.errors import StoreError, UnitError
from persona_atlas.jobs.plan import Plan
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import CommitRecord
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run import lease
from persona_atlas.storage.run.commits import commit_unit, committed_units, read_commit, read_commits, read_rollouts
from persona_atlas.storage.run.lease import acquire

from fakes import small_plan
from stored_runs import begin, commit_units, store_run, write_unit

UNIT = "role.pirate.pos.p0.b0"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan()


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


def test_a_unit_is_committed_once_and_the_first_attempt_stays(store_url: str, plan: Plan):
    location = open_location(store_url)
    with acquire(location, 9) as held:
        begin(location, plan, held)
        first = write_unit(location, plan, UNIT, 0)
        second = write_unit(location, plan, UNIT, 1)
        assert committed_units(location) == set()
        made = commit_unit(location, held, first)
        assert made.manifest == first
        assert commit_unit(location, held, second) == made
        assert commit_unit(location, held, first) == made, "asking again after a lost answer is safe"
    assert read_commit(location, UNIT) == made
    assert made.generation == 1
    assert committed_units(location) == {UNIT}


def test_a_driver_that_lost_its_lease_commits_nothing(location: Location, plan: Plan, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", -1.0)
    with acquire(location, 9) as held:
        begin(location, plan, held)
        manifest = write_unit(location, plan, UNIT, 0)
        with acquire(location, 1), pytest.raises(StoreError) as caught:
            commit_unit(location, held, manifest)
        assert caught.value.code == "lease_lost"
    assert committed_units(location) == set()


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("change", ["missing", "short"])
def test_a_unit_whose_objects_are_not_whole_where_the_driver_looks_is_not_committed(
    location: Location, plan: Plan, which: int, change: str
):
    with acquire(location, 3) as held:
        begin(location, plan, held)
        manifest = write_unit(location, plan, UNIT, 0)
        path = manifest.objects[which].path
        data = location.read(path)
        assert data is not None
        if change == "missing":
            location.delete([path])
        else:
            location.write(path, data[:-1])
        with pytest.raises(UnitError, match="as seen from here") as caught:
            commit_unit(location, held, manifest)
        assert caught.value.code == "not_written"
        assert path in str(caught.value)
        assert committed_units(location) == set()
        location.write(path, data)
        assert commit_unit(location, held, manifest).manifest == manifest


def test_a_second_driver_adds_what_the_first_left_out(store_url: str, plan: Plan):
    left_out = {UNIT, "trait.anxious.neg.p1.b0"}
    location = store_run(store_url, plan, leave_out=left_out)
    assert committed_units(location) == set(plan.by_id) - left_out
    commit_units(store_url, plan, sorted(left_out))
    assert {commit.generation for commit in read_commits(location, left_out)} == {2}
    run = open_run(store_url)
    assert run.completeness.is_complete
    assert run.activations(layer="all").values.shape == (36, 4, 16)


def test_records_come_in_the_order_they_were_asked_for(location: Location, plan: Plan):
    units = [unit.unit_id for unit in plan.units]
    commit_units(location.url, plan, units)
    asked = units[::-1] + units[:2]
    assert [commit.manifest.unit_id for commit in read_commits(location, asked)] == asked
    assert read_commits(location, []) == []
    with pytest.raises(StoreError, match="missing") as caught:
        read_commits(location, [*units, "role.nobody.pos.p0.b0"])
    assert caught.value.code == "missing_object"


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value where a number, a text or nothing stands."""
    if isinstance(value, dict):
        return [found for key, inner in value.items() for found in paths_of(inner, (*path, key))]
    if isinstance(value, list):
        return [found for key, inner in enumerate(value) for found in paths_of(inner, (*path, key))]
    return [path]


def edited(record: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    copy = json.loads(json.dumps(record))
    *way, last = path
    inner = copy
    for key in way:
        inner = inner[key]
    was = inner[last]
    inner[last] = was + 1 if isinstance(was, int | float) else "length" if was == "stop" else f"{was}0" if was else "x"
    return copy


def test_a_record_that_was_edited_anywhere_does_not_read(location: Location, plan: Plan):
    commit_units(location.url, plan, [UNIT])
    path = layout.commit_path(UNIT)
    record = json.loads(location.read(path) or b"")
    places = paths_of(record)
    assert len(places) > 30
    for place in places:
        location.write(path, json.dumps(edited(record, place)).encode())
        with pytest.raises(StoreError, match="damaged or was edited") as caught:
            read_commit(location, UNIT)
        assert (caught.value.code, caught.value.file) == ("bad_record", f"{location.url}/{path}"), place
    location.write(path, json.dumps(record, indent=7).encode())
    assert isinstance(read_commit(location, UNIT), CommitRecord), "what it says is sealed, not how it is spaced"


@pytest.mark.parametrize("change", ["swap", "cut", "remove"])
def test_texts_that_are_not_those_of_the_commit_do_not_read(location: Location, plan: Plan, change: str):
    other = "role.pirate.pos.p1.b0"
    commit_units(location.url, plan, [UNIT, other])
    ours, theirs = read_commits(location, [UNIT, other])
    assert read_rollouts(location, ours).num_rows == 3
    assert read_rollouts(location, ours, ["row", "response"]).column_names == ["row", "response"]
    path = ours.manifest.texts.path
    if change == "remove":
        location.delete([path])
    else:
        data = location.read(theirs.manifest.texts.path if change == "swap" else path) or b""
        location.write(path, data if change == "swap" else data[:-1])
    with pytest.raises(StoreError, match="Run verify") as caught:
        read_rollouts(location, ours)
    assert (caught.value.code, caught.value.file) == ("bad_object", f"{location.url}/{path}")


def test_a_record_under_another_units_name_does_not_read(location: Location, plan: Plan):
    store_run(location.url, plan, leave_out={"role.poet.pos.p0.b0"})
    data = location.read(layout.commit_path(UNIT))
    assert data is not None
    location.write(layout.commit_path("role.poet.pos.p0.b0"), data)
    with pytest.raises(StoreError) as caught:
        read_commit(location, "role.poet.pos.p0.b0")
    assert caught.value.code == "wrong_unit"


def test_what_else_lies_among_the_records_is_no_record(location: Location, plan: Plan):
    store_run(location.url, plan, leave_out={UNIT})
    location.write("commits/README.txt", b"notes")
    location.write("drivers/notes.txt", b"notes")
    assert committed_units(location) == set(plan.by_id) - {UNIT}
    with acquire(location, 3) as held:
        assert held.generation == 2
