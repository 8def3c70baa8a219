"""A live driver is not taken for dead by a process table that cannot show it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.format import layout
from persona_atlas.storage.format.lease_record import Lease
from persona_atlas.storage.locations.location import Location, open_location
from persona_atlas.storage.run import driver_process
from persona_atlas.storage.run.driver_process import has_exited, this_process
from persona_atlas.storage.run.lease import acquire, live_driver, newest_lease

UNSHARE = ["unshare", "--fork", "--pid"]

HOLD = """
import sys, time
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.locations.location import open_location
held = acquire(open_location(sys.argv[1]), 5)
print("held", flush=True)
time.sleep(600)
"""

TRY = """
import sys
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.run.lease import acquire
from persona_atlas.storage.locations.location import open_location
try:
    print("took", acquire(open_location(sys.argv[1]), 5).generation)
except InputError as error:
    print(error.code)
"""


def may_unshare() -> bool:
    """Whether this user may make a PID namespace here."""
    unshare = shutil.which("unshare")
    return unshare is not None and subprocess.run([*UNSHARE, "true"], capture_output=True, check=False).returncode == 0


needs_unshare = pytest.mark.skipif(not may_unshare(), reason="needs root, or the right to make a PID namespace")


def lease_of(**changes: Any) -> Lease:
    fields = {
        "generation": 1,
        "expires_at": time.time() + 100,
        "released": False,
        "first_row_block": 0,
        "end_row_block": 1,
    }
    return Lease(**(fields | this_process() | changes))


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


@pytest.fixture(params=[["--mount-proc"], []], ids=["own proc", "proc of outside"])
def elsewhere(request: pytest.FixtureRequest) -> list[str]:
    """A command that runs another in a PID namespace of its own, with a ``/proc`` of that namespace or without."""
    return [*UNSHARE, *request.param]


@pytest.fixture
def driver_elsewhere(location: Location, elsewhere: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A process in another PID namespace that holds the lease."""
    command = [*elsewhere, "--kill-child", sys.executable, "-c", HOLD, location.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


@needs_unshare
def test_a_driver_here_keeps_out_one_of_another_namespace(location: Location, elsewhere: list[str]):
    with acquire(location, 5) as held:
        command = [*elsewhere, sys.executable, "-c", TRY, location.url]
        tried = subprocess.run(command, capture_output=True, text=True, check=True)
        assert tried.stdout == "run_has_driver\n"
        held.check()


@needs_unshare
def test_a_driver_of_another_namespace_is_waited_for_until_its_lease_runs_out(
    location: Location, driver_elsewhere: subprocess.Popen[str]
):
    with pytest.raises(InputError, match="being worked on"):
        acquire(location, 5)
    os.kill(driver_elsewhere.pid, signal.SIGKILL)
    driver_elsewhere.wait()
    # Nothing here can tell that it is gone.
    lease = newest_lease(location)
    assert lease is not None
    assert live_driver(location) == lease
    late = lease.model_copy(update={"expires_at": time.time() - 1})
    location.write(layout.driver_path(1), late.to_bytes())
    with acquire(location, 5) as held:
        assert held.generation == 2


def gone_process() -> int:
    """The id of a process that has exited."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.skipif(sys.platform != "linux", reason="PID namespaces are Linux's")
@pytest.mark.parametrize("namespace", ["pid:[1]", "", None])
def test_a_process_of_another_or_an_unknown_namespace_is_not_seen_to_exit(namespace: str | None):
    assert has_exited(lease_of(pid=gone_process()))
    assert not has_exited(lease_of(pid=gone_process(), pid_namespace=namespace))


def test_where_there_are_no_namespaces_the_table_decides_for_every_lease(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(driver_process, "_pid_namespace", lambda: "")
    for namespace in ("", None):
        assert has_exited(lease_of(pid=gone_process(), pid_namespace=namespace))
        assert not has_exited(lease_of(pid_namespace=namespace))


def test_a_process_that_does_not_know_its_own_namespace_decides_by_time_alone(monkeypatch: pytest.MonkeyPatch):
    lease = lease_of(pid=gone_process())
    monkeypatch.setattr(driver_process, "_pid_namespace", lambda: None)
    assert this_process()["pid_namespace"] is None
    assert not has_exited(lease)
    assert not has_exited(lease_of(pid=gone_process()))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc as psutil does on Linux")
def test_setting_the_clock_makes_no_driver_look_dead(monkeypatch: pytest.MonkeyPatch):
    lease = lease_of()
    boot = psutil.boot_time()
    # The kernel moves the time of the boot when the clock is set, and psutil counts the start of processes from it.
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: boot + 300)
    assert not has_exited(lease)
    assert has_exited(lease_of(started_after_boot_s=psutil.Process().create_time() - psutil.boot_time() - 100))


def test_a_process_of_another_user_that_proc_hides_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch):
    def hide(pid: int) -> psutil.Process:
        raise psutil.NoSuchProcess(pid)

    def refuse(pid: int, signal_number: int) -> None:
        raise PermissionError

    lease = lease_of()
    monkeypatch.setattr(driver_process.psutil, "Process", hide)
    monkeypatch.setattr(driver_process.os, "kill", refuse)
    assert not has_exited(lease)
