"""Signals that ask the command line to end: one status for all of them, whoever listens to what is printed."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

_PROGRAM = """
import sys, time
from pathlib import Path
import click
from persona_atlas.cluster import cli
from persona_atlas.cluster.cli import output

@cli.cli.command("wait")
def wait():
    try:
        Path(sys.argv[2]).touch()
        time.sleep(30)
    finally:
        output.progress().say("cleaning up")
        sys.stderr.flush()
        Path(sys.argv[3]).touch()

cli.main(["wait"])
"""


@pytest.fixture(autouse=True)
def _hangups_end_processes() -> Iterator[None]:
    """Processes that are started here do not ignore SIGHUP, though these tests may run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def command(tmp_path: Path) -> list[str]:
    return [sys.executable, "-c", _PROGRAM, "wait", str(tmp_path / "began"), str(tmp_path / "cleaned")]


def status_after(process: subprocess.Popen[bytes], tmp_path: Path, numbers: Sequence[signal.Signals]) -> int:
    deadline = time.monotonic() + 60
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)
    for number in numbers:
        process.send_signal(number)
    try:
        return process.wait(20)
    finally:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_every_signal_to_stop_ends_it_with_the_documented_status(tmp_path: Path, number: signal.Signals):
    process = subprocess.Popen(command(tmp_path), stderr=subprocess.DEVNULL)
    assert status_after(process, tmp_path, [number]) == 130
    assert (tmp_path / "cleaned").exists()


def test_under_nohup_a_hangup_does_not_end_it(tmp_path: Path):
    process = subprocess.Popen(["nohup", *command(tmp_path)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    finally:
        process.kill()
        process.wait(10)


def test_it_cleans_up_although_its_terminal_is_gone(tmp_path: Path):
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command(tmp_path), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    deadline = time.monotonic() + 60
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.close(ours)
    assert status_after(process, tmp_path, [signal.SIGHUP]) == 130
    assert (tmp_path / "cleaned").exists()


_OTHER_THREAD = """
import signal, sys, threading, time
import click
from persona_atlas.cluster import cli

def receive():
    time.sleep(0.5)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

@cli.cli.command("wait")
def wait():
    threading.Thread(target=receive).start()
    time.sleep(120)

cli.main(["wait"])
"""


def test_a_signal_that_another_thread_receives_ends_a_wait_of_the_main_thread():
    assert subprocess.run([sys.executable, "-c", _OTHER_THREAD], timeout=60, capture_output=True).returncode == 130
