"""The connection between the processes of a replica over several nodes: each hears of the end of the others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from queue import Empty, SimpleQueue

import pytest
from persona_atlas.workers.vllm.over_nodes import lifeline
from persona_atlas.workers.vllm.over_nodes.lifeline import FollowerLifeline, LeaderLifeline

HERE = "127.0.0.1"
WITHIN_S = 10.0

PROGRAM = """
import sys, time
from persona_atlas.workers.vllm.over_nodes.lifeline import FollowerLifeline
line = FollowerLifeline("127.0.0.1", int(sys.argv[1]), bytes.fromhex(sys.argv[2]), lambda _: None)
line.loaded()
print("connected", flush=True)
time.sleep(600)
"""


class Reasons:
    """Collects what a lifeline says when another process is gone."""

    def __init__(self) -> None:
        self._said: SimpleQueue[str] = SimpleQueue()
        self.add: Callable[[str], None] = self._said.put

    def first(self, timeout_s: float = WITHIN_S) -> str | None:
        try:
            return self._said.get(timeout=timeout_s)
        except Empty:
            return None


def follower_of(leader: LeaderLifeline) -> subprocess.Popen[str]:
    """A process that follows, once it is connected and its beats are heard."""
    command = [sys.executable, "-c", PROGRAM, str(leader.port), leader.secret.hex()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    assert process.stdout.readline() == "connected\n"
    return process


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_is_killed_or_silent_is_taken_for_gone(monkeypatch: pytest.MonkeyPatch, end: signal.Signals):
    monkeypatch.setattr(lifeline, "BEAT_S", 0.2)
    monkeypatch.setattr(lifeline, "SILENCE_S", 2.0)
    reasons = Reasons()
    leader = LeaderLifeline(HERE, 1, reasons.add)
    process = follower_of(leader)
    try:
        # Its beats are heard, though each comes after more than one of ours.
        assert reasons.first(3.0) is None
        process.send_signal(end)
        said = reasons.first()
        assert said is not None
        assert ("silent" if end == signal.SIGSTOP else "is gone") in said
    finally:
        process.kill()
        process.communicate()
        leader.close()


def test_all_hear_when_one_of_them_closes_and_are_told_once():
    reasons = [Reasons(), Reasons(), Reasons()]
    leader = LeaderLifeline(HERE, 2, reasons[0].add)
    first, second = (FollowerLifeline(HERE, leader.port, leader.secret, one.add) for one in reasons[1:])
    first.close()
    assert "is gone" in str(reasons[0].first())
    # The process that leads ends then.
    leader.close()
    assert "is gone" in str(reasons[2].first())
    assert [one.first(0.5) for one in reasons] == [None, None, None]
    second.close()


def test_who_closes_is_not_told():
    reasons = Reasons()
    leader = LeaderLifeline(HERE, 1, reasons.add)
    follower = FollowerLifeline(HERE, leader.port, leader.secret, reasons.add)
    leader.close()
    assert "the first part of the replica" in str(reasons.first())
    assert reasons.first(0.5) is None
    follower.close()


def test_a_process_that_loads_may_be_silent_for_longer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(lifeline, "SILENCE_S", 0.5)
    monkeypatch.setattr(lifeline, "LOADING_SILENCE_S", 2.5)
    reasons = Reasons()
    leader = LeaderLifeline(HERE, 1, reasons.add)
    with socket.create_connection((HERE, leader.port)) as peer:
        peer.sendall(leader.secret)
        assert reasons.first(1.5) is None
        assert "silent for" in str(reasons.first())
    leader.close()


def test_who_does_not_know_the_secret_is_not_taken_for_a_part():
    reasons = Reasons()
    leader = LeaderLifeline(HERE, 1, reasons.add)
    with socket.create_connection((HERE, leader.port)) as stranger:
        stranger.sendall(bytes(len(leader.secret)))
        assert stranger.recv(1) == b""
    follower = FollowerLifeline(HERE, leader.port, leader.secret, reasons.add)
    assert reasons.first(0.5) is None
    follower.close()
    assert "is gone" in str(reasons.first())
    leader.close()
