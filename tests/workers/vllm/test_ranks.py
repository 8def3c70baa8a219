"""Processes that belong together die together: none outlives its parent or its siblings, whatever it is doing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import psutil
import pytest
from persona_atlas.workers.vllm.ranks import Ranks, end_with_parent

WITHIN_S = 10.0


def wait_for(what: Callable[[], bool], timeout_s: float = WITHIN_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def rank(folder: Path) -> None:
    """Write down the own process id, then ignore every polite request, as a rank in a collective does."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent()
    (folder / str(os.getpid())).touch()
    while True:
        time.sleep(60)


def ranks_in(folder: Path, number: int) -> list[psutil.Process]:
    wait_for(lambda: len(list(folder.iterdir())) == number, 30)
    return [psutil.Process(int(path.name)) for path in folder.iterdir()]


def start(folder: Path, number: int) -> list[BaseProcess]:
    context = multiprocessing.get_context("spawn")
    started = [context.Process(target=rank, args=(folder,), daemon=True) for _ in range(number)]
    for process in started:
        process.start()
    return list(started)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_ranks_end_with_the_process_that_started_them(tmp_path: Path, signal_number: int):
    program = (
        "import sys, time; from pathlib import Path; import test_ranks; "
        "test_ranks.start(Path(sys.argv[1]), 2); time.sleep(600)"
    )
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=env)
    try:
        ranks = ranks_in(tmp_path, 2)
        parent.send_signal(signal_number)
        parent.wait(10)
        _, alive = psutil.wait_procs(ranks, timeout=WITHIN_S)
        assert not alive
    finally:
        parent.kill()
        parent.wait()


def test_the_others_are_killed_when_one_dies(tmp_path: Path):
    before = multiprocessing.active_children()
    start(tmp_path, 3)
    ranks = Ranks.started_since(before)
    first, *others = ranks_in(tmp_path, 3)
    assert sorted(ranks.pids) == sorted(process.pid for process in (first, *others))
    first.kill()
    _, alive = psutil.wait_procs(others, timeout=WITHIN_S)
    assert not alive


def test_all_are_gone_when_kill_returns_and_it_may_be_called_again(tmp_path: Path):
    before = multiprocessing.active_children()
    started = start(tmp_path, 2)
    ranks = Ranks.started_since(before)
    ranks.kill()
    assert not [process for process in started if process.is_alive()]
    ranks.kill()


def test_a_process_that_has_no_parent_of_its_kind_goes_on():
    end_with_parent()
    Ranks([]).kill()
