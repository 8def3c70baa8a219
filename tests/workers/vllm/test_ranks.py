"""Processes that belong together die together: none outlives its parent or its siblings, whatever it is doing."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import psutil
import pytest
from persona_atlas.workers.vllm.ranks import BeforeRanks, Ranks, end_all_ranks, end_with_parent

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


def test_a_process_ends_with_the_one_that_started_it_and_so_do_its_ranks(tmp_path: Path):
    own = "import sys, time; from persona_atlas.workers.vllm.ranks import end_with_starter; "
    ranks = "from pathlib import Path; import test_ranks; test_ranks.start(Path(sys.argv[1]), 1); "
    program = f"{own}{ranks}end_with_starter(); time.sleep(600)"
    starts = "import subprocess, sys; subprocess.run([sys.executable, '-c', *sys.argv[1:]])"
    env = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])}
    starter = subprocess.Popen([sys.executable, "-c", starts, program, str(tmp_path)], env=env)
    try:
        (rank,) = ranks_in(tmp_path, 1)
        process = rank.parent()
        assert process is not None
        time.sleep(1)
        assert process.is_running()
        starter.kill()
        starter.wait(10)
        _, alive = psutil.wait_procs([process, rank], timeout=WITHIN_S)
        assert not alive
    finally:
        starter.kill()
        starter.wait()


def test_the_others_are_killed_when_one_dies(tmp_path: Path):
    before = BeforeRanks.now()
    start(tmp_path, 3)
    ranks = Ranks.started_since(before)
    first, *others = ranks_in(tmp_path, 3)
    assert sorted(ranks.pids) == sorted(process.pid for process in (first, *others))
    first.kill()
    _, alive = psutil.wait_procs(others, timeout=WITHIN_S)
    assert not alive


def test_all_are_gone_when_kill_returns_and_it_may_be_called_again(tmp_path: Path):
    before = BeforeRanks.now()
    started = start(tmp_path, 2)
    ranks = Ranks.started_since(before)
    ranks.kill()
    assert not [process for process in started if process.is_alive()]
    ranks.kill()


def sharing(name: str, folder: Path) -> None:
    """A rank that has mapped shared memory of its parent."""
    memory = SharedMemory(name)
    rank(folder)
    memory.close()


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="the system does not show its shared memory")
@pytest.mark.parametrize("by", ["the parent", "the ranks"])
def test_shared_memory_of_killed_ranks_is_removed_and_no_other(tmp_path: Path, by: str):
    own = SharedMemory(create=True, size=4096)
    before = BeforeRanks.now()
    theirs = SharedMemory(create=True, size=4096)
    try:
        process = multiprocessing.get_context("spawn").Process(target=sharing, args=(theirs.name, tmp_path))
        process.start()
        ranks_in(tmp_path, 1)
        ranks = Ranks.started_since(before)
        assert Path("/dev/shm", theirs.name).exists()
        if by == "the parent":
            end_all_ranks()
        else:
            ranks.kill()
            ranks.unlink_shared_memory()
        assert not process.is_alive()
        assert not Path("/dev/shm", theirs.name).exists()
        assert Path("/dev/shm", own.name).exists()
    finally:
        own.close()
        own.unlink()
        theirs.close()
        resource_tracker.unregister(f"/{theirs.name}", "shared_memory")


def test_a_process_that_has_no_parent_of_its_kind_goes_on():
    end_with_parent()
    Ranks([]).kill()
