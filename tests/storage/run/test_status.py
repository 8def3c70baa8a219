"""A driver's status: what is stored is read again, also what other versions stored."""

from __future__ import annotations

import json
from pathlib import Path

from persona_atlas.jobs.scheduling.job_state import JobState
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run.status import RunStatus, Stage, WorkerStatus, read_status, write_status

STATUS = RunStatus(
    job_id="job-1",
    state=JobState.RUNNING,
    doing="working",
    updated_at=20.0,
    started_at=10.0,
    stages=(Stage(name="rollouts", done=1, planned=2),),
    workers=(WorkerStatus(name="worker-0", doing="idle", since=12.0),),
    nodes_left_out={"b": "3 workers died on it"},
)


def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


def test_a_status_is_read_as_it_was_written(tmp_path: Path):
    write_status(location(tmp_path), 3, STATUS)
    assert read_status(location(tmp_path), 3) == STATUS
    assert read_status(location(tmp_path), 4) is None


def test_the_stored_keys_are_those_of_every_version(tmp_path: Path):
    write_status(location(tmp_path), 1, STATUS)
    stored = json.loads(location(tmp_path).read(layout.status_path(1)) or b"")
    assert (stored["told_at"], stored["begun_at"]) == (20.0, 10.0)
    assert not {"updated_at", "started_at"} & stored.keys()
    assert set(stored) >= {"job_id", "state", "doing", "stages", "units_failed", "seconds_left", "workers", "failures"}


def test_a_file_of_another_version_is_read(tmp_path: Path):
    old = {"state": "SUCCEEDED", "doing": "ended", "told_at": 5.0, "begun_at": 1, "field_of_tomorrow": [1]}
    location(tmp_path).write(layout.status_path(1), json.dumps(old).encode())
    found = read_status(location(tmp_path), 1)
    assert found == RunStatus(state=JobState.SUCCEEDED, doing="ended", updated_at=5.0, started_at=1.0)


def test_what_is_no_status_is_none(tmp_path: Path):
    for data in (b"", b"{", b"[]", b'{"state": "RUNNING"}'):
        location(tmp_path).write(layout.status_path(1), data)
        assert read_status(location(tmp_path), 1) is None
