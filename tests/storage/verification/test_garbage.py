"""Dead objects: exactly those that no commit can ever name are deleted, and nothing that counts ever is."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persona_atlas.jobs.errors import InputError, StoreError
from persona_atlas.jobs.plan import Plan
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import Manifest
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.commits import commit_unit, committed_units, read_commits
from persona_atlas.storage.run.index import load_index, read_stored_index
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.verification.garbage import GarbageObject, find_garbage, remove_garbage
from persona_atlas.storage.verification.verify import verify_run

from fakes import FakeEngine, small_plan, small_spec
from stored_runs import begin, commit_units, record_of, store_run, write_unit

ARRAYS = (("resid_post", "response_mean"), ("resid_post", "prompt_last"))
UNIT = "role.pirate.pos.p0.b0"
LEFT_OUT = "role.poet.pos.p1.b0"


@pytest.fixture(scope="module")
def plan() -> Plan:
    return small_plan(small_spec(capture={"poolings": ["response_mean", "prompt_last"]}))


def attempt(location: Location, plan: Plan, *unit_ids: str) -> list[Manifest]:
    """Write attempts that come to nothing, as a driver that is killed leaves them."""
    with acquire(location, len(unit_ids)) as lease:
        begin(location, plan, lease)
        engine = FakeEngine(arrays=ARRAYS)
        pairs = zip(unit_ids, lease.row_blocks, strict=True)
        return [write_unit(location, plan, unit_id, row_block, engine) for unit_id, row_block in pairs]


def find(location: Location, plan: Plan) -> list[GarbageObject]:
    commits = read_commits(location, sorted(committed_units(location)))
    is_complete = len(commits) == len(plan.units)
    return find_garbage(location, [commit.manifest for commit in commits], is_complete=is_complete)


def paths(manifests: list[Manifest]) -> set[str]:
    return {stored.path for manifest in manifests for stored in manifest.objects}


def collect(location: Location, plan: Plan) -> set[str]:
    """Delete what can be; gives the paths that went, having checked that they were all announced."""
    before = set(location.sizes(""))
    found = find(location, plan)
    deleted = remove_garbage(location, record_of(plan), found)
    gone = before - set(location.sizes(""))
    assert gone == {thing.path for thing in found if thing.is_removable}
    assert deleted == len(gone)
    return gone


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Path:
    root = tmp_path_factory.mktemp("store") / "complete"
    store_run(str(root), plan, engine=FakeEngine(arrays=ARRAYS))
    return root


@pytest.fixture(scope="module")
def incomplete(tmp_path_factory: pytest.TempPathFactory, plan: Plan) -> Path:
    root = tmp_path_factory.mktemp("store") / "incomplete"
    store_run(str(root), plan, engine=FakeEngine(arrays=ARRAYS), leave_out=[LEFT_OUT], uncommitted=False)
    return root


@pytest.fixture
def finished(tmp_path: Path, complete: Path) -> Location:
    """A copy of a complete run without a dead object."""
    shutil.copytree(complete, tmp_path / "run")
    return open_location(str(tmp_path / "run"))


@pytest.fixture
def unfinished(tmp_path: Path, incomplete: Path) -> Location:
    """A copy of a run that lacks one unit and has no dead object."""
    shutil.copytree(incomplete, tmp_path / "run")
    return open_location(str(tmp_path / "run"))


@pytest.mark.parametrize("state", ["finished", "unfinished"])
def test_a_run_without_garbage_objects_loses_nothing(request: pytest.FixtureRequest, state: str, plan: Plan):
    location = request.getfixturevalue(state)
    assert find(location, plan) == []
    assert collect(location, plan) == set()


def test_of_a_complete_run_exactly_the_objects_of_dead_attempts_go(store_url: str, plan: Plan):
    location = store_run(store_url, plan, engine=FakeEngine(arrays=ARRAYS))
    values = open_run(store_url).activations(layer="all").values
    dead = attempt(location, plan, UNIT, LEFT_OUT)
    found = find(location, plan)
    assert {thing.path: thing.num_bytes for thing in found} == {
        stored.path: stored.num_bytes for manifest in dead for stored in manifest.objects
    }
    assert [thing.path for thing in found] == sorted(thing.path for thing in found)
    assert {thing.unit_id for thing in found} == {UNIT, LEFT_OUT}
    assert all(thing.is_removable for thing in found)
    assert verify_run(location).garbage_objects == 6
    assert collect(location, plan) == paths(dead)
    assert np.array_equal(open_run(store_url).activations(layer="all").values, values)
    after = verify_run(location)
    assert (after.problems, after.garbage_objects, after.garbage_bytes) == ([], 0, 0)


def test_of_an_incomplete_run_attempts_of_uncommitted_units_stay(unfinished: Location, plan: Plan):
    committed, uncommitted = attempt(unfinished, plan, UNIT, LEFT_OUT)
    found = {thing.path: thing for thing in find(unfinished, plan)}
    assert set(found) == paths([committed, uncommitted])
    assert {path for path, thing in found.items() if thing.is_removable} == paths([committed])
    assert all(found[path].unit_id == LEFT_OUT for path in paths([uncommitted]))
    assert collect(unfinished, plan) == paths([committed])
    with acquire(unfinished, 0) as lease:
        commit_unit(unfinished, lease, uncommitted)
    found_after = verify_run(unfinished)
    assert found_after.is_sound
    assert found_after.is_complete


def test_an_object_whose_unit_cannot_be_told_stays_until_the_run_is_complete(unfinished: Location, plan: Plan):
    path = layout.shard_path(*ARRAYS[0], 900)
    unfinished.write(path, b"whose am I?")
    (thing,) = find(unfinished, plan)
    assert (thing.path, thing.unit_id, thing.is_removable) == (path, None, False)
    assert collect(unfinished, plan) == set()
    commit_units(unfinished.url, plan, [LEFT_OUT], FakeEngine(arrays=ARRAYS))
    assert collect(unfinished, plan) == {path}


def test_what_a_crash_left_half_written_goes(unfinished: Location, plan: Plan):
    parts = {
        f"{layout.ROLLOUTS}/.{UNIT}-4.parquet.0123abcd.part",
        f"{layout.array_path(*ARRAYS[0])}/c/77/0/.0.0123abcd.part",
    }
    for path in parts:
        target = Path(unfinished.url) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"half of")
    assert collect(unfinished, plan) == parts


def test_metadata_records_and_scores_are_never_dead(finished: Location, plan: Plan):
    for path in (layout.scores_path("judge", UNIT), layout.REPORT, "analysis/x/zarr.json", "notes.txt"):
        finished.write(path, b"x")
    attempt(finished, plan, UNIT)
    before = set(finished.sizes(""))
    gone = collect(finished, plan)
    kept = before - gone
    assert {path.split("/")[0] for path in gone} == {layout.ROLLOUTS, layout.ACTIVATIONS}
    assert {path for path in before if path.endswith((".json", ".txt", ".html"))} <= kept


def test_only_what_was_shown_is_deleted(finished: Location, plan: Plan):
    (first,) = attempt(finished, plan, UNIT)
    shown = find(finished, plan)
    (second,) = attempt(finished, plan, LEFT_OUT)
    assert remove_garbage(finished, record_of(plan), shown) == 3
    assert {thing.path for thing in find(finished, plan)} == paths([second])
    assert not paths([first]) & set(finished.sizes(""))


def test_what_came_to_count_since_it_was_shown_stays(unfinished: Location, plan: Plan):
    (late,) = attempt(unfinished, plan, LEFT_OUT)
    shown = [GarbageObject(thing.path, thing.num_bytes, thing.unit_id, True) for thing in find(unfinished, plan)]
    with acquire(unfinished, 0) as lease:
        commit_unit(unfinished, lease, late)
    assert remove_garbage(unfinished, record_of(plan), shown) == 0
    assert verify_run(unfinished).is_sound


def test_while_a_driver_works_nothing_is_deleted(finished: Location, plan: Plan):
    dead = attempt(finished, plan, UNIT)
    found = find(finished, plan)
    with acquire(finished, 1), pytest.raises(InputError) as caught:
        remove_garbage(finished, record_of(plan), found)
    assert caught.value.code == "run_has_driver"
    assert paths(dead) <= set(finished.sizes(""))


def test_a_damaged_commit_stops_it_before_anything_is_deleted(finished: Location, plan: Plan):
    dead = attempt(finished, plan, UNIT)
    found = find(finished, plan)
    finished.write(layout.commit_path(LEFT_OUT), b"{")
    with pytest.raises(StoreError, match=LEFT_OUT):
        remove_garbage(finished, record_of(plan), found)
    assert paths(dead) <= set(finished.sizes(""))


def test_the_index_is_brought_up_to_date(unfinished: Location, plan: Plan):
    record = record_of(plan)
    assert read_stored_index(unfinished, record).num_rows == 0
    collect(unfinished, plan)
    assert read_stored_index(unfinished, record).num_rows == 33
    assert load_index(unfinished, record).committed == set(plan.by_id) - {LEFT_OUT}


@given(
    history=st.lists(
        st.lists(st.tuples(st.integers(0, 11), st.sampled_from(["commit", "texts", "half", "whole"])), max_size=5),
        max_size=4,
    ),
    clean_after=st.sets(st.integers(0, 3)),
)
@settings(max_examples=20, deadline=None)
def test_no_history_of_attempts_and_commits_makes_it_delete_what_counts_or_may_come_to_count(
    tmp_path_factory: pytest.TempPathFactory,
    plan: Plan,
    history: list[list[tuple[int, str]]],
    clean_after: set[int],
):
    """Drivers write attempts of which some are committed, and some end half way; now and then the run is cleaned."""
    location = open_location(str(tmp_path_factory.mktemp("history") / "run"))
    engine = FakeEngine(arrays=ARRAYS)
    attempts: list[Manifest] = []
    live: dict[str, Manifest] = {}
    units = [unit.unit_id for unit in plan.units]
    with acquire(location, 0) as lease:
        begin(location, plan, lease)
    for number, driver in enumerate(history):
        with acquire(location, len(driver)) as lease:
            begin(location, plan, lease)
            for (unit, how), row_block in zip(driver, lease.row_blocks, strict=True):
                manifest = write_unit(location, plan, units[unit], row_block, engine)
                attempts.append(manifest)
                if how == "commit":
                    live[units[unit]] = commit_unit(location, lease, manifest).manifest
                elif how != "whole":
                    location.delete([stored.path for stored in manifest.objects[1 if how == "texts" else 2 :]])
        if number in clean_after:
            before = set(location.sizes(""))
            collect(location, plan)
            counts = paths(list(live.values()))
            may_count = paths([manifest for manifest in attempts if manifest.unit_id not in live]) & before
            assert set(location.sizes("")) >= counts | may_count
            left = set(location.sizes(layout.ROLLOUTS)) | {
                path for path in location.sizes(layout.ACTIVATIONS) if not path.endswith("zarr.json")
            }
            assert left == counts | may_count
    found = verify_run(location)
    assert found.is_sound
    assert found.units_done == len(live)
