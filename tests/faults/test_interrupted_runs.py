"""Runs of the command line that are stopped, or whose driver or worker is killed: the same command resumes.

What is stopped or killed is a process of its own, so that what is left behind can be seen. The command that resumes it
runs here, on a Ray that these tests share.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from command_line import Answered
from flow_commands import (
    assert_gone,
    assert_whole,
    atlas,
    commits,
    family_of,
    long_spec,
    started,
    wait_for,
    worker_among,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def test_a_second_driver_is_refused_and_ctrl_c_stops_the_first_so_that_the_same_command_resumes(
    tmp_path: Path, tiny_model_directory: Path, answered: Answered
) -> None:
    store = str(tmp_path / "run")
    spec = long_spec(tmp_path / "job.yaml", tiny_model_directory, store)
    process = started(spec)
    wait_for(lambda: len(commits(store)) >= 1)
    family = family_of(process)
    # The worker stands still meanwhile: a second driver may take longer to start than the first takes for all units.
    worker = worker_among(family)
    worker.suspend()
    try:
        refused = atlas("run", spec, "--json", status=2)
        assert json.loads(refused.stderr.splitlines()[-1])["code"] == "run_has_driver"
    finally:
        worker.resume()
        os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "same command resumes" in stderr
    assert_gone(family)
    before = {name: (Path(store) / "commits" / f"{name}.json").read_bytes() for name in commits(store)}
    outcome = answered("run", spec)
    assert outcome["units_worked"] == outcome["units_planned"] - len(before) > 0
    assert_whole(store, outcome["units_planned"])
    for name, record in before.items():
        assert (Path(store) / "commits" / f"{name}.json").read_bytes() == record


def test_a_driver_killed_outright_leaves_no_process_and_the_same_command_resumes(
    tmp_path: Path, tiny_model_directory: Path, answered: Answered
) -> None:
    store = str(tmp_path / "run")
    spec = long_spec(tmp_path / "job.yaml", tiny_model_directory, store)
    process = started(spec)
    wait_for(lambda: len(commits(store)) >= 3)
    # Two agents of Ray's own end by themselves within a minute or so: they try to report the death first.
    family = [child for child in family_of(process) if not any("Agent" in part for part in child.cmdline())]
    process.kill()
    process.communicate(timeout=10)
    done = len(commits(store))
    outcome = answered("run", spec)
    assert outcome["units_worked"] == outcome["units_planned"] - done > 0
    assert_whole(store, outcome["units_planned"])
    assert_gone(family)


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_doubled(tmp_path: Path, tiny_model_directory: Path) -> None:
    store = str(tmp_path / "run")
    spec = long_spec(tmp_path / "job.yaml", tiny_model_directory, store)
    process = started(spec)
    wait_for(lambda: len(commits(store)) >= 3)
    worker_among(family_of(process)).kill()
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "the worker died" in stderr
    outcome = json.loads(stdout)
    assert outcome["failures"] == []
    assert_whole(store, outcome["units_planned"])
