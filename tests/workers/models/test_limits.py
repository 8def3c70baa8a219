"""What this process may use: the least of its machine, its affinity and all groups that it is in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from persona_atlas.workers.models import limits

Files = dict[str, str]


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hierarchy of groups on a machine of 64 cores."""
    monkeypatch.setattr(limits, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(limits, "_OWN_GROUPS", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    return tmp_path


def write(folder: Path, own: str, files: Files) -> None:
    (folder / "own").write_text(own)
    for name, text in files.items():
        path = folder / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_the_cores_of_a_process_that_may_use_one():
    program = "from persona_atlas.workers.models.limits import usable_cores; print(usable_cores())"
    core = min(os.sched_getaffinity(0))
    found = subprocess.run(
        ["taskset", "--cpu-list", str(core), sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("own", "files", "cores"),
    [
        ("", {}, 64),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 64),
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "10000 100000\n"}, 1),
        ("0::/job/step\n", {"job/step/cpu.max": "max 100000\n", "job/cpu.max": "300000 100000\n"}, 3),
        ("0::/job/step\n", {"job/step/cpu.max": "500000 100000\n", "job/cpu.max": "900000 100000\n"}, 5),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ("4:cpu,cpuacct:/\n", {"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4),
        (
            "4:cpu,cpuacct:/docker/1f\n",
            {"cpu,cpuacct/docker/1f/cpu.cfs_quota_us": "700000\n", "cpu,cpuacct/docker/1f/cpu.cfs_period_us": "100000"},
            7,
        ),
        # Of another controller, and of a hierarchy that the container does not see.
        ("4:cpuset:/x\n0::/\n", {"cpu.max": "800000 100000", "x/cpu.max": "100000 100000"}, 8),
        ("4:cpu:/host/only\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
    ],
)
def test_the_cores_within_quotas(groups: Path, own: str, files: Files, cores: int):
    write(groups, own, files)
    assert limits.usable_cores() == cores


@pytest.mark.parametrize(
    ("own", "files", "free"),
    [
        (
            "0::/\n",
            {"memory.max": "5000", "memory.current": "3000", "memory.stat": "anon 1\ninactive_file 400\n"},
            2400,
        ),
        (
            "0::/job/step\n",
            {
                "job/memory.max": "9000",
                "job/memory.current": "2000",
                "job/memory.stat": "",
                "job/step/memory.max": "max",
                "job/step/memory.current": "1",
                "job/step/memory.stat": "",
            },
            7000,
        ),
        (
            "4:memory:/job\n",
            {
                "memory/job/memory.limit_in_bytes": "6000",
                "memory/job/memory.usage_in_bytes": "5000",
                "memory/job/memory.stat": "inactive_file 1\ntotal_inactive_file 300\n",
            },
            1300,
        ),
        ("0::/\n", {"memory.max": "100", "memory.current": "300", "memory.stat": ""}, 0),
    ],
)
def test_the_memory_within_limits(groups: Path, own: str, files: Files, free: int):
    write(groups, own, files)
    assert limits.free_memory_bytes() == free


def test_without_limits_all_of_the_machine_is_free(groups: Path):
    write(groups, "0::/\n", {"memory.max": "max", "memory.current": "3", "memory.stat": ""})
    assert limits.free_memory_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.2)
