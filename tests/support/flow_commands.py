"""The command line in processes of its own, and what a run that it made must look like."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import yaml
from persona_atlas import open_run


def atlas(*arguments: str | Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line and check how it ends."""
    done = subprocess.run(
        [sys.executable, "-m", "persona_atlas.cluster.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == status, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def atlas_json(*arguments: str | Path, status: int = 0) -> dict[str, Any]:
    return json.loads(atlas(*arguments, "--json", status=status).stdout)


def write_spec(path: Path, source: str | Path, store_url: str, **changes: object) -> Path:
    counts = {"prompts": 2, "questions": 2}
    spec: dict[str, object] = {
        "model": {"source": str(source)},
        "personas": {
            "roles": {"names": ["ghost", "lawyer", "pirate", "poet"], **counts},
            "traits": {"names": ["anxious"], **counts},
            "default": counts,
        },
        "sampling": {"max_new_tokens": 12},
        "store": {"url": store_url},
        "seed": 3,
    }
    path.write_text(yaml.safe_dump(spec | changes))
    return path


def long_spec(path: Path, source: Path, store_url: str) -> Path:
    """Many small units, one at a time, so that there is a middle to be stopped in."""
    return write_spec(
        path,
        source,
        store_url,
        personas={
            "roles": {"names": ["c*"], "prompts": 1, "questions": 4},
            "default": {"prompts": 1, "questions": 4},
        },
        sampling={"max_new_tokens": 120},
        placement={"batch_tokens": 1600},
    )


def started(spec: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "persona_atlas.cluster.cli", "run", str(spec), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(what: Callable[[], bool], timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def commits(store: str) -> list[str]:
    folder = Path(store) / "commits"
    return sorted(p.stem for p in folder.glob("*.json")) if folder.is_dir() else []


def family_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def worker_among(processes: list[psutil.Process]) -> psutil.Process:
    """Return the one process that works on units."""
    (worker,) = [process for process in processes if any("UnitActor" in part for part in process.cmdline())]
    return worker


def assert_gone(processes: list[psutil.Process], timeout_s: float = 30) -> None:
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    assert not alive, [process.cmdline()[:3] for process in alive if process.is_running()]


def assert_whole(store: str, planned: int) -> None:
    """Every planned unit once, every rollout once, every number there."""
    run = open_run(store)
    assert (run.completeness.done, run.completeness.planned) == (planned, planned)
    addresses = [
        tuple(line[c] for c in ("kind", "persona", "polarity", "prompt_index", "question_index", "sample_index"))
        for line in run.index.to_pylist()
    ]
    assert len(addresses) == len(set(addresses)) == run.record.num_rollouts
    assert len(set(run.index["row"].to_pylist())) == len(addresses)
    assert run.rollouts().num_rows == len(addresses)
    found = run.activations(layer="all")
    assert found.values.shape[0] + run.num_empty_responses == len(addresses)
    assert np.isfinite(found.values).all()
