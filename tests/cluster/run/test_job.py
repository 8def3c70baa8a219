"""A job and what happens to its store between its preparation and its lease."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import persona_atlas
import pytest
from persona_atlas.cluster.run import job as job_module
from persona_atlas.jobs.errors import StoreError
from persona_atlas.storage.format import layout
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run.commits import committed_units
from persona_atlas.storage.run.lease import HeldLease, acquire

from documented import JOB


def test_records_that_are_withdrawn_while_a_job_starts_end_it_and_the_next_start_does_all_units(
    tiny_model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    spec: dict[str, Any] = JOB | {
        "model": {"source": str(tiny_model_directory)},
        "store": {"url": str(tmp_path / "run")},
    }
    assert persona_atlas.run(spec, progress=False).worked == 7
    location = open_location(tmp_path / "run")
    units = sorted(committed_units(location))
    location.delete([layout.commit_path(units[0])])

    def acquired(place: Location, *more: Any) -> HeldLease:
        # As a repair does, which ends before this job takes the lease.
        location.delete([layout.commit_path(unit_id) for unit_id in units])
        return acquire(place, *more)

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(job_module, "acquire", acquired)
        with pytest.raises(StoreError) as caught:
            persona_atlas.run(spec, progress=False)
    assert caught.value.code == "units_withdrawn"
    again = persona_atlas.run(spec, progress=False)
    assert (again.done, again.worked) == (7, 7)
