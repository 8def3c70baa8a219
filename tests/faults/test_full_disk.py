"""A store on a disk that fills up in the middle of a run, and is made larger."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from persona_atlas.storage.locations.location import open_location
from persona_atlas.storage.run.commits import committed_units

from fault_jobs import small_job
from plain_driver import finish, run_driver
from whole_run import assert_whole


def mount(*arguments: str | Path) -> bool:
    return subprocess.run(["mount", *map(str, arguments)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for a few units; what does not fit any more is a commit, rather than a unit's objects."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("only root on Linux may mount a small disk")
    if not mount("-t", "tmpfs", "-o", "size=204k", "tmpfs", disk):
        pytest.skip("this machine does not let root mount a disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk_ends_the_run_with_what_is_committed_and_a_larger_one_finishes_it(small_disk: Path):
    spec = small_job(str(small_disk / "run"))
    location = open_location(spec.store.url)
    # Once is enough: a full disk does not empty itself.
    end = run_driver(spec, tries=1)
    assert end.status == 1
    told = [end.error.get("error", ""), *end.failures.values(), *end.output.splitlines()]
    assert any("is full" in line for line in told), told
    assert end.error.get("code") == "disk_full", end
    before = {unit_id: location.read(f"commits/{unit_id}.json") for unit_id in committed_units(location)}
    assert 0 < len(before) < 12
    assert mount("-o", "remount,size=8m", small_disk)
    assert finish(spec).worked == 12 - len(before)
    assert before.items() <= {unit: location.read(f"commits/{unit}.json") for unit in committed_units(location)}.items()
    assert_whole(spec)


def fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_disk_that_is_full_from_the_start_is_told_before_the_model_is_loaded(small_disk: Path):
    fill(small_disk / "ballast")
    spec = small_job(str(small_disk / "run"))
    end = run_driver(spec)
    assert (end.status, end.error["code"], end.model_was_loaded) == (1, "disk_full", False)
    (small_disk / "ballast").unlink()
    mount("-o", "remount,size=8m", small_disk)
    finish(spec)
    assert_whole(spec)
