"""A job to its report: what is said when it is stopped, also where the store is out of reach."""

from __future__ import annotations

import io
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from persona_atlas.cluster.run.prepare import Job
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.run.whole_job import finish_job
from persona_atlas.jobs.errors import TransientError
from persona_atlas.jobs.sizing.estimate import estimate
from persona_atlas.storage.locations.location import Location, open_location
from rich.console import Console

from fakes import small_plan, small_spec


class _OutOfReach:
    """A location whose listings fail; all else is the real one's."""

    def __init__(self, location: Location) -> None:
        self._location = location

    def names(self, folder: str) -> list[str]:
        if folder == "commits":
            raise TransientError("the store is out of reach.", code="store_failed")
        return self._location.names(folder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._location, name)


@contextmanager
def _interrupted(job: Job, progress: Progress):
    raise KeyboardInterrupt
    yield


@pytest.mark.parametrize(("is_reached", "expected"), [(True, "0 of 12 units are committed"), (False, "out of reach")])
def test_ctrl_c_stays_ctrl_c_whether_or_not_the_store_can_be_read(tmp_path: Path, is_reached: bool, expected: str):
    plan = small_plan(small_spec(str(tmp_path / "run")))
    location: Any = open_location(str(tmp_path / "run"))
    job = Job(plan, estimate(plan), tmp_path, location, None, frozenset())
    if not is_reached:
        job = replace(job, location=_OutOfReach(location))
    shown = io.StringIO()
    with pytest.raises(KeyboardInterrupt):
        finish_job(job, Progress(Console(file=shown, width=300)), _interrupted)
    assert expected in shown.getvalue()
    assert "the same command resumes" in shown.getvalue()
