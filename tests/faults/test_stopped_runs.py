"""A run of the command line that is asked to end, at any moment and with its Ray or without: one clean end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from persona_atlas.cluster.submission.job_view import view_run
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.lease import live_driver, newest_lease

from fault_jobs import by_make_faults
from flow_commands import assert_gone, family_of, wait_for, write_spec

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(autouse=True)
def _hangups_end_processes() -> Iterator[None]:
    """Processes that are started here do not ignore SIGHUP, though these tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


class WatchedRun:
    """The command, and what it has printed so far."""

    def __init__(self, spec: Path) -> None:
        command = [sys.executable, "-m", "persona_atlas.cluster.cli", "run", str(spec)]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        self.said = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said += line

    def status(self) -> int:
        """Wait for its end."""
        return self.process.wait(90)

    def close(self) -> None:
        """End it, if it has not ended, and read what is left."""
        if self.process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()


@pytest.mark.parametrize(
    ("moment", "number", "to_all"),
    [
        ("Starting Ray", signal.SIGTERM, False),
        pytest.param("Loading the model", signal.SIGTERM, True, marks=by_make_faults),
        ("0 of 4 units", signal.SIGHUP, False),
        pytest.param("Reducing", signal.SIGTERM, False, marks=by_make_faults),
    ],
)
def test_a_run_that_is_asked_to_end_says_so_and_leaves_nothing_behind(
    tmp_path: Path, tiny_model_directory: Path, moment: str, number: signal.Signals, *, to_all: bool
) -> None:
    store = str(tmp_path / "run")
    counts = {"prompts": 1, "questions": 2}
    personas = {"roles": {"names": ["c[a-d]*"], **counts}, "default": counts}
    run = WatchedRun(write_spec(tmp_path / "job.yaml", tiny_model_directory, store, personas=personas))
    try:
        wait_for(lambda: moment in run.said or run.process.poll() is not None)
        assert run.process.poll() is None, run.said
        family = family_of(run.process)
        (os.killpg if to_all else os.kill)(run.process.pid, number)
        status = run.status()
    finally:
        # What hangs must not live on, nor its pipe warn in another test.
        run.close()
    assert status == 130, run.said
    assert "are committed and kept" in run.said
    assert "received at time" not in run.said, "Ray's handler had no part in it"
    assert_gone(family)
    if newest_lease(location := open_location(store)) is not None:
        assert live_driver(location) is None
        assert view_run(store).state.is_final
