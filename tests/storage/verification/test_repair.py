"""Repair: every kind of object is really damaged, and what is sound stays as it is.

In a directory, because damage is the same on S3; there one object of each kind is damaged, and repaired in one go.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.jobs.plan import Plan
from persona_atlas.storage.derived.reductions import Reduction, read_current_reduction, write_reduction
from persona_atlas.storage.derived.scores import write_scores
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.records import CommitRecord
from persona_atlas.storage.locations.location import Location
from persona_atlas.storage.query.run import open_run
from persona_atlas.storage.run.commits import committed_units, read_commit
from persona_atlas.storage.run.index_keeper import refresh_index
from persona_atlas.storage.run.lease import acquire, newest_lease
from persona_atlas.storage.run.run_store import reserve_rows
from persona_atlas.storage.verification.repair import Repair, repair_run
from persona_atlas.storage.verification.verify import verify_run

from fakes import FakeEngine, small_plan, small_spec
from stored_runs import commit, record_of, store_run, write_unit

Damage = Callable[[Location, str], None]

UNIT, OTHER = "role.pirate.pos.p0.b0", "role.poet.pos.p1.b0"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return small_plan(small_spec(str(tmp_path / "run")))


@pytest.fixture
def location(plan: Plan) -> Location:
    return stored(plan)


def stored(plan: Plan) -> Location:
    found = store_run(plan.spec.store.url, plan, engine=FakeEngine())
    refresh_index(found, record_of(plan))
    write_reduction(found, Reduction("small", (0, 1, 2, 3), (), (), {}, axis=record_axis()))
    assert verify_run(found).problems == []
    return found


def record_axis() -> np.ndarray:
    return np.ones((4, 16), dtype=np.float32)


def repaired(location: Location, plan: Plan) -> Repair:
    found = verify_run(location)
    assert found.problems
    return repair_run(location, record_of(plan), found.problems)


def everything(location: Location) -> dict[str, bytes | None]:
    return {path: location.read(path) for path in location.sizes("") if not path.startswith(layout.DRIVERS)}


def commit_again(location: Location, plan: Plan, units: tuple[str, ...]) -> None:
    with acquire(location, len(units)) as lease:
        reserve_rows(location, record_of(plan), lease.row_blocks.stop)
        for unit_id, row_block in zip(units, lease.row_blocks, strict=True):
            commit(location, lease, write_unit(location, plan, unit_id, row_block, FakeEngine()))
    refresh_index(location, record_of(plan))


def cut(location: Location, path: str) -> None:
    data = location.read(path)
    assert data
    location.write(path, data[: len(data) // 2])


def flip(location: Location, path: str) -> None:
    data = bytearray(location.read(path) or b"")
    data[len(data) // 2] ^= 1
    location.write(path, bytes(data))


def delete(location: Location, path: str) -> None:
    location.delete([path])


@pytest.mark.parametrize("damage", [cut, flip, delete])
@pytest.mark.parametrize("what", ["shard", "texts", "commit"])
def test_a_damaged_unit_is_withdrawn_and_made_again_and_nothing_is_lost(
    location: Location, plan: Plan, what: str, damage: Damage
):
    manifest = read_commit(location, UNIT).manifest
    path = {"shard": manifest.blocks[0].path, "texts": manifest.texts.path, "commit": layout.commit_path(UNIT)}[what]
    damage(location, path)
    if (what, damage) == ("commit", delete):
        # Deleted as the documents say: there is nothing to withdraw, and the index is brought up to date.
        assert verify_run(location).is_sound
    before = everything(location)
    done = repaired(location, plan)
    assert done.left == ()
    assert done.units == (() if (what, damage) == ("commit", delete) else (UNIT,))
    after = everything(location)
    # Every object that was there is there, the record under another name.
    assert {*before.values()} - {*after.values()} <= {before[layout.INDEX], before[layout.CHUNKS]}
    assert committed_units(location) == set(plan.by_id) - {UNIT}
    found = verify_run(location)
    assert (found.problems, found.missing) == ([], (UNIT,))
    assert open_run(location.url).rollouts(persona="pirate", prompt=0).num_rows == 0
    commit_again(location, plan, (UNIT,))
    found = verify_run(location)
    assert (found.problems, found.is_complete) == ([], True)
    assert open_run(location.url).activations(persona="pirate", prompt=0, layer=0).shape == (3, 16)


def test_two_units_that_name_one_row_block_are_both_withdrawn(location: Location, plan: Plan):
    ours, theirs = (read_commit(location, unit_id).manifest for unit_id in (UNIT, OTHER))
    changed = theirs.model_copy(update={"row_block": ours.row_block, "blocks": ours.blocks})
    record = CommitRecord.of(changed, generation=1, committed_at="2026-01-01T00:00:00+00:00")
    location.write(layout.commit_path(OTHER), record.to_bytes())
    assert repaired(location, plan).units == (UNIT, OTHER)
    assert verify_run(location).problems == []


def test_a_unit_that_was_sound_again_is_not_withdrawn(location: Location, plan: Plan):
    path = read_commit(location, UNIT).manifest.blocks[0].path
    data = location.read(path)
    assert data
    cut(location, path)
    problems = verify_run(location).problems
    location.write(path, data)
    assert repair_run(location, record_of(plan), problems).units == ()
    assert verify_run(location).is_complete


@pytest.mark.parametrize("damage", [cut, delete])
@pytest.mark.parametrize("path", [layout.INDEX, layout.CHUNKS])
def test_an_index_is_built_anew(location: Location, plan: Plan, path: str, damage: Damage):
    before = location.read(path)
    damage(location, path)
    assert repaired(location, plan).objects == ()
    assert location.read(path) == before


@pytest.mark.parametrize("damage", [cut, delete])
def test_the_metadata_of_an_array_are_written_anew_and_row_blocks_are_not_given_twice(
    location: Location, plan: Plan, damage: Damage
):
    lease = newest_lease(location)
    assert lease is not None
    path = f"{layout.array_path('resid_post', 'response_mean')}/zarr.json"
    damage(location, path)
    done = repaired(location, plan)
    assert (done.units, done.left) == ((), ())
    assert verify_run(location).problems == []
    assert json.loads(location.read(path) or b"")["shape"][0] == lease.end_row_block * plan.rows_per_block


@pytest.mark.parametrize("damage", [cut, flip, delete])
@pytest.mark.parametrize("what", ["chunk", "record", "pointer"])
def test_a_reduction_that_cannot_be_read_is_withdrawn_and_can_be_computed_again(
    location: Location, plan: Plan, what: str, damage: Damage
):
    chunks = [path for path in location.sizes(layout.ANALYSIS) if "/c/" in path]
    path = {
        "chunk": chunks[0],
        "record": layout.reduction_record_path("small"),
        "pointer": layout.CURRENT_REDUCTION,
    }[what]
    damage(location, path)
    if not verify_run(location).is_sound:
        assert repaired(location, plan).left == ()
        assert verify_run(location).problems == []
    again = Reduction("other", (0, 1, 2, 3), (), (), {}, axis=record_axis())
    write_reduction(location, again)
    stored = read_current_reduction(location)
    assert stored is not None
    assert stored.reduction_id == "other"


def test_what_only_a_copy_or_a_judge_can_bring_back_is_left_and_named(location: Location, plan: Plan):
    write_scores(location, "kind", UNIT, [0], [1.0])
    cut(location, layout.scores_path("kind", UNIT))
    cut(location, layout.units_path(record_of(plan).units_sha256))
    before = everything(location)
    done = repaired(location, plan)
    assert (done.units, done.objects) == ((), ())
    assert {problem.path for problem in done.left} == {
        layout.scores_path("kind", UNIT),
        layout.units_path(record_of(plan).units_sha256),
    }
    assert everything(location) == before


def test_a_repair_is_refused_while_a_driver_works(location: Location, plan: Plan):
    cut(location, read_commit(location, UNIT).manifest.blocks[0].path)
    problems = verify_run(location).problems
    before = everything(location)
    with acquire(location, 1), pytest.raises(InputError, match="being worked on"):
        repair_run(location, record_of(plan), problems)
    assert everything(location) == before


def test_a_repair_that_was_cut_short_is_finished_by_the_next(
    location: Location, plan: Plan, monkeypatch: pytest.MonkeyPatch
):
    cut(location, read_commit(location, UNIT).manifest.blocks[0].path)
    problems = verify_run(location).problems
    with monkeypatch.context() as broken:
        broken.setattr(type(location), "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            repair_run(location, record_of(plan), problems)
    assert UNIT in committed_units(location)
    assert repaired(location, plan).units == (UNIT,)
    assert len([path for path in location.sizes(layout.WITHDRAWN) if UNIT in path]) == 1


@pytest.mark.s3
def test_what_is_damaged_on_s3_is_repaired_there(s3_store_url: str):
    plan = small_plan(small_spec(s3_store_url))
    location = stored(plan)
    flip(location, read_commit(location, UNIT).manifest.blocks[0].path)
    cut(location, layout.INDEX)
    delete(location, f"{layout.array_path('resid_post', 'response_mean')}/zarr.json")
    delete(location, next(path for path in location.sizes(layout.ANALYSIS) if "/c/" in path))
    done = repaired(location, plan)
    assert (done.units, done.left) == ((UNIT,), ())
    assert (verify_run(location).problems, verify_run(location).missing) == ([], (UNIT,))
    commit_again(location, plan, (UNIT,))
    found = verify_run(location)
    assert (found.problems, found.is_complete) == ([], True)
