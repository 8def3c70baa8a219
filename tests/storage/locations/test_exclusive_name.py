"""A directory whose file system has no hard links keeps the promises of ``create``: once, and whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.locations import exclusive_name, probe
from persona_atlas.storage.locations.location import Location, has_hard_links, open_location
from persona_atlas.storage.locations.probe import ProbeResult, probe_store
from persona_atlas.storage.run.lease import acquire

# As Linux says it on vfat and exFAT, cifs, FUSE without the operation, Android's shared storage, and union mounts.
NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EACCES, errno.EMLINK, errno.EXDEV]

CREATE = """
import errno, os, sys, time
def refuse(*_, **__):
    raise OSError(errno.EPERM, "Operation not permitted")
os.link = refuse
from persona_atlas.storage.locations.location import open_location
location = open_location(sys.argv[1])
print("ready", flush=True)
for number in range(20):
    sys.stdin.readline()
    won = location.create(f"raced/{number}", sys.argv[2].encode() * 50_000)
    print("won" if won else "lost", flush=True)
"""


@pytest.fixture(params=NO_LINKS, ids=lambda number: errno.errorcode[number])
def without_links(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(exclusive_name.os, "link", refuse)


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return open_location(str(tmp_path / "run"))


def files(location: Location) -> list[str]:
    return sorted(path.name for path in Path(location.url).rglob("*") if path.is_file())


@pytest.mark.usefixtures("without_links")
def test_an_object_is_created_once_and_nothing_is_left_behind(location: Location):
    assert location.create("f/a", b"mine")
    assert not location.create("f/a", b"yours")
    assert location.read("f/a") == b"mine"
    assert location.names("f") == ["a"]
    assert files(location) == ["a"]
    assert has_hard_links(location) is False
    with acquire(location, 1) as held:
        assert held.is_exclusive
        with pytest.raises(InputError, match="being worked on"):
            acquire(location, 1)


def test_where_there_are_links_they_are_found(location: Location):
    assert has_hard_links(location) is True
    assert files(location) == []


def test_of_processes_that_create_at_once_one_wins_and_its_bytes_stay(location: Location):
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", CREATE, location.url, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in "abcd"
    ]
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for number in range(20):
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("go\n")
                racer.stdin.flush()
            answers = [racer.stdout.readline().strip() for racer in racers if racer.stdout is not None]
            assert sorted(answers) == ["lost", "lost", "lost", "won"]
            winner = "abcd"[answers.index("won")]
            assert location.read(f"raced/{number}") == winner.encode() * 50_000
    finally:
        for racer in racers:
            racer.communicate("")
    assert files(location) == sorted(str(number) for number in range(20))


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(exclusive_name.os, "link", refuse)


@pytest.mark.usefixtures("no_links")
def test_a_claim_that_a_crash_left_is_taken_over_and_one_in_use_is_waited_for(
    location: Location, monkeypatch: pytest.MonkeyPatch
):
    claim = Path(location.url) / "f" / f".a.{'0' * 32}.part"
    claim.parent.mkdir(parents=True)
    claim.touch()
    # It makes no place look used: a run can be started here.
    assert location.is_empty()
    long_ago = time.time() - exclusive_name.STALE_CLAIM_S - 1
    os.utime(claim, (long_ago, long_ago))
    assert location.create("f/a", b"x")
    assert files(location) == ["a"]

    claim = claim.with_name(f".b.{'0' * 32}.part")
    claim.touch()
    waiting = threading.Thread(target=location.create, args=("f/b", b"late"))
    waiting.start()
    time.sleep(0.2)
    assert location.read("f/b") is None
    location.write("f/b", b"early")
    claim.unlink()
    waiting.join(10)
    assert location.read("f/b") == b"early"
    assert files(location) == ["a", "b"]


@pytest.mark.usefixtures("no_links")
def test_a_crash_before_the_name_is_given_leaves_no_object(location: Location, monkeypatch: pytest.MonkeyPatch):
    def crash(source: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as crashing:
        crashing.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            location.create("f/a", b"x")
    assert location.read("f/a") is None
    assert location.create("f/a", b"again")


@pytest.mark.usefixtures("no_links")
def test_the_probe_says_that_there_are_no_links(location: Location, monkeypatch: pytest.MonkeyPatch):
    # The racing processes would see the real file system.
    monkeypatch.setattr(probe, "_race", lambda *_: ProbeResult("conditional_create_race", True, False, "not tried"))
    found = {result.name: result for result in probe_store(location.url)}
    assert found["hard_links"].holds is False
    assert "claim files" in found["hard_links"].consequence
    assert found["conditional_create"].holds
    assert files(location) == []


def test_other_errors_of_a_link_are_errors(location: Location, monkeypatch: pytest.MonkeyPatch):
    def fail(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(exclusive_name.os, "link", fail)
    with pytest.raises(Exception, match=r"disk under .* is full"):
        location.create("f/a", b"x")
    assert files(location) == []


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_directory_that_cannot_be_flushed_is_no_error(
    location: Location, monkeypatch: pytest.MonkeyPatch, number: int
):
    flush = os.fsync

    def refuse_directories(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    location.write("f/a", b"x")
    assert location.create("f/b", b"x")
    assert location.names("f") == ["a", "b"]
