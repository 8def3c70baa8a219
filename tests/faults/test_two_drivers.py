"""More than one start on one store: at once, one after another's death, with another spec."""

from __future__ import annotations

from pathlib import Path

import pytest
from persona_atlas.analysis.reduce import reduce_run
from persona_atlas.analysis.report import render_report
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.commits import committed_units

from fault_jobs import IS_THOROUGH, random_moments, small_job
from plain_driver import finish, run_driver, start_driver
from whole_run import assert_whole

ROUNDS = 10 if IS_THOROUGH else 2


@pytest.mark.parametrize("number", range(ROUNDS))
def test_of_drivers_that_start_at_once_one_works_and_the_others_are_refused(store_url: str, number: int):
    spec = small_job(store_url)
    drivers = [start_driver(spec, seconds_per_unit=0.02) for _ in range(3)]
    ends = [driver.wait() for driver in drivers]
    told = [(end.status, end.error.get("code")) for end in ends if end is not None]
    assert len(told) == 3
    # One that comes when all is done finds nothing to do.
    assert set(told) <= {(0, None), (2, "run_has_driver")}
    assert sorted(end.worked for end in ends if end is not None) == [0, 0, 12]
    assert_whole(spec)


def test_the_starts_that_follow_on_deaths_share_the_work_and_no_row(store_url: str):
    spec = small_job(store_url)
    for moment in random_moments(10 if IS_THOROUGH else 3, 0.6):
        driver = start_driver(spec, seconds_per_unit=0.05)
        # The second one is there only to be refused, whenever it comes.
        driver.process.join(moment)
        second = run_driver(spec) if driver.process.is_alive() else None
        driver.kill()
        driver.wait()
        assert second is None or (second.status, second.error.get("code")) in {(2, "run_has_driver"), (0, None)}
    finish(spec)
    assert_whole(spec)


@pytest.mark.parametrize("is_finished", [True, False])
def test_a_spec_that_was_changed_between_two_starts_is_refused_and_changes_nothing(store_url: str, is_finished: bool):
    spec = small_job(store_url)
    location = open_location(store_url)
    if is_finished:
        finish(spec)
    else:
        driver = start_driver(spec, seconds_per_unit=0.1)
        while not committed_units(location):
            driver.process.join(0.02)
        driver.kill()
        driver.wait()
    before = location.sizes("")
    end = run_driver(spec.model_copy(update={"seed": 9}))
    assert (end.status, end.error.get("code"), end.error.get("field")) == (2, "other_run", "seed")
    assert not end.model_was_loaded
    assert location.sizes("") == before
    finish(spec)
    assert_whole(spec)


@pytest.mark.parametrize("deleted", ["role.pirate.pos.p0.b0", "*"])
def test_units_whose_records_were_deleted_by_hand_are_done_again_and_what_is_read_follows(tmp_path: Path, deleted: str):
    spec = small_job(str(tmp_path / "run"))
    finish(spec)
    before = reduce_run(assert_whole(spec))
    for record in (tmp_path / "run" / "commits").glob(f"{deleted}.json"):
        record.unlink()
    assert finish(spec).worked == (12 if deleted == "*" else 1)
    run = assert_whole(spec)
    after = reduce_run(run)
    assert after.reduction_id != before.reduction_id
    assert after.projection_rows is not None
    assert set(after.projection_rows.tolist()) == set(run.index["row"].to_pylist())
    assert after.reduction_id in render_report(run, after)
