"""kill -9 of the worker and of the driver of real runs at random moments: the command line, Ray, a real (tiny) model.

``make faults`` kills 25 times, the ordinary tests kill one of each. Each start is given the same command; it is killed,
and the next goes on where it was, or begins another run when one is complete.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import yaml
from persona_atlas import open_run
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.query.run import Run
from persona_atlas.storage.run.commits import committed_units

from fault_jobs import IS_THOROUGH, KILLS, by_make_faults, random_moments
from whole_run import addresses_of, verified

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_RUN_TAKES_S = 25.0
"""From the command to its end, about; a kill comes at any moment of it."""


def write_job(path: Path, model: Path, store: Path) -> Path:
    """Some twenty small units, a few at a time, so that there is a middle to be killed in."""
    counts = {"prompts": 1, "questions": 4}
    job = {
        "model": {"source": str(model)},
        "personas": {"roles": {"names": ["c[a-m]*"], **counts}, "default": counts},
        "sampling": {"max_new_tokens": 60},
        "placement": {"batch_tokens": 1600},
        "store": {"url": str(store)},
        "seed": 3,
    }
    path.write_text(yaml.safe_dump(job))
    return path


class RayRun:
    """One start of the command, in a session of its own."""

    def __init__(self, job: Path) -> None:
        command = [sys.executable, "-m", "persona_atlas.cluster.cli", "run", str(job), "--json"]
        self._log = (job.parent / "log.txt").open("w+")
        self.process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True)
        self.family: dict[int, psutil.Process] = {}

    def look(self) -> None:
        """Remember who belongs to it."""
        with suppress(psutil.NoSuchProcess):
            self.family |= {child.pid: child for child in psutil.Process(self.process.pid).children(recursive=True)}

    def wait_until(self, moment: float) -> bool:
        """Wait for some seconds; whether it still runs then."""
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and self.process.poll() is None:
            self.look()
            time.sleep(0.1)
        self.look()
        return self.process.poll() is None

    def kill_driver(self) -> None:
        self.process.kill()
        self.process.wait(30)

    def kill_worker(self) -> bool:
        """Kill one, or the first that comes; False when the run ended before."""
        while self.wait_until(0.1):
            for child in self.family.values():
                if _is_called("UnitActor", child):
                    child.kill()
                    return True
        return False

    def finish(self) -> None:
        """Wait for its own good end."""
        self.process.wait(200)
        assert self.process.returncode == 0, self.output()

    def output(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def close(self) -> None:
        """Make sure that nothing of it is left."""
        if self.process.poll() is None:
            self.kill_driver()
        self._log.close()
        # Two agents of Ray's end by themselves within a minute or so: they try to report the death first.
        others = [process for process in self.family.values() if not _is_called("Agent", process)]
        _, alive = psutil.wait_procs(others, timeout=40)
        assert not alive, alive


def _is_called(name: str, process: psutil.Process) -> bool:
    try:
        return any(name in part for part in process.cmdline())
    except psutil.Error:
        return False


def assert_whole(store: Path, job: Path) -> Run:
    """Sound, complete, every rollout once, every number there and near what a plain forward pass gives."""
    found = verified(open_location(str(store)))
    assert found.is_complete
    assert found.worst_relative_error is not None
    assert found.worst_relative_error < 1e-3
    run = open_run(str(store))
    addresses = addresses_of(run.rollouts())
    assert len(set(addresses)) == len(addresses) == run.record.num_rollouts
    assert np.isfinite(run.activations(layer="all").values).all()
    again = subprocess.run(
        [sys.executable, "-m", "persona_atlas.cluster.cli", "verify", str(store), "--complete", "--json"],
        capture_output=True,
        check=True,
    )
    assert json.loads(again.stdout)["problems"] == []
    return run


def assert_same(run: Run, undisturbed: Run) -> None:
    """What it says and holds is what a run says and holds in which nobody died."""
    ours, theirs = run.rollouts(), undisturbed.rollouts()
    assert addresses_of(ours) == addresses_of(theirs)
    assert ours["response_token_ids"] == theirs["response_token_ids"]
    a, b = run.activations(layer="all").values, undisturbed.activations(layer="all").values
    # Which rollouts share a batch changes the rounding.
    np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


# Ordinary tests kill a worker, and a driver, once each (test_interrupted_runs).
@by_make_faults
@pytest.mark.timeout(600 + 90 * KILLS)
def test_no_kill_of_a_worker_or_a_driver_costs_a_rollout(tmp_path: Path, tiny_model_directory: Path) -> None:
    # Some come when all is done, and there is nobody to kill.
    moments = random_moments(2 * (KILLS or 2), _RUN_TAKES_S)
    draw = random.Random(moments[0])
    finished: list[Path] = []
    store, number_of_kills = tmp_path / "run0", 0
    for number, moment in enumerate(moments):
        if number_of_kills == (KILLS or 2):
            break
        job = write_job(tmp_path / "job.yaml", tiny_model_directory, store)
        run = RayRun(job)
        try:
            # The ordinary tests kill one of each, in the middle of the work.
            victim = draw.choice(["driver", "worker"]) if IS_THOROUGH else ("driver", "worker")[number % 2]
            is_running = run.wait_until(moment) if IS_THOROUGH else wait_for_commits(run, store, 3 * (number + 1))
            if is_running and victim == "driver":
                run.kill_driver()
                number_of_kills += 1
                continue
            number_of_kills += is_running and run.kill_worker()
            run.finish()
        finally:
            run.close()
        assert_whole(store, job)
        finished.append(store)
        store = tmp_path / f"run{number + 1}"
    if store not in finished and store.exists():
        last = RayRun(write_job(tmp_path / "job.yaml", tiny_model_directory, store))
        last.finish()
        last.close()
        assert_whole(store, tmp_path / "job.yaml")
        finished.append(store)
    assert number_of_kills == (KILLS or 2)
    for other in finished[1:]:
        assert_same(open_run(str(other)), open_run(str(finished[0])))


def wait_for_commits(run: RayRun, store: Path, count: int) -> bool:
    location = open_location(str(store))
    while run.wait_until(0.1):
        if len(committed_units(location)) >= count:
            return True
    return False
