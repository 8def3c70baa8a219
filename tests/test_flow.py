"""The whole way of the data through the command line, as a user goes it: a real Ray, real models, real stores.

Every command is a process of its own, so that what is left behind can be seen.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from persona_atlas import open_run

from tiny_models import SMOLLM2, save_tiny_llama

pytestmark = [pytest.mark.ray, pytest.mark.slow]


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


@pytest.mark.model
def test_the_whole_pipeline_on_a_real_model_and_both_stores(
    tmp_path: Path, store_url: str, smollm2_directory: Path
) -> None:
    assert smollm2_directory.is_dir()
    spec = write_spec(tmp_path / "job.yaml", SMOLLM2, store_url)

    planned = atlas_json("plan", spec)
    assert planned["rollouts_by_kind"] == {"default": 4, "role": 16, "trait": 8}

    outcome = atlas_json("run", spec)
    assert outcome["state"] == "SUCCEEDED"
    assert outcome["units_worked"] == outcome["units_planned"] == planned["units"] == 14
    assert len(outcome["summary"]["roles"]) == 4
    assert set(outcome["summary"]["floors"]) == {"p0.01", "p0.25", "p0.5", "p0.75"}
    assert_whole(store_url, 14)

    out = tmp_path / "pirate.npy"
    answer = atlas_json("query", store_url, "--persona", "pirate", "--layer", "15", "--out", out)
    assert answer["shape"] == [4, 576]
    values = np.load(out)
    assert values.dtype == np.float32
    assert values.shape == (4, 576)
    rollouts = pq.read_table(tmp_path / "pirate.rollouts.parquet")
    assert rollouts["persona"].unique().to_pylist() == ["pirate"]
    assert list(zip(rollouts["prompt_index"].to_pylist(), rollouts["question_index"].to_pylist(), strict=True)) == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]

    began = time.monotonic()
    again = atlas_json("run", spec)
    assert again["units_worked"] == 0
    assert time.monotonic() - began < 30, "a finished run must not start Ray or load a model"

    shown = atlas_json("show", store_url)
    assert shown["units_done"] == 14
    assert shown["personas"]["role"] == ["ghost", "lawyer", "pirate", "poet"]
    reduced = atlas_json("reduce", store_url)
    assert reduced["reduction"] == shown["reduction"]
    page = tmp_path / "report.html"
    atlas_json("report", store_url, "--out", page)
    assert "No judge is configured" in page.read_text()
    assert open_run(store_url).location.read("report.html") is not None


def test_a_second_driver_is_refused_and_ctrl_c_stops_the_first_so_that_the_same_command_resumes(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    store = str(tmp_path / "run")
    spec = long_spec(tmp_path / "job.yaml", tiny_model_directory, store)
    process = started(spec)
    wait_for(lambda: len(commits(store)) >= 1)
    family = family_of(process)
    try:
        refused = atlas("run", spec, "--json", status=2)
        assert json.loads(refused.stderr.splitlines()[-1])["code"] == "run_has_driver"
    finally:
        os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "same command resumes" in stderr
    assert_gone(family)
    before = {name: (Path(store) / "commits" / f"{name}.json").read_bytes() for name in commits(store)}
    outcome = atlas_json("run", spec)
    assert outcome["units_worked"] == outcome["units_planned"] - len(before) > 0
    assert_whole(store, outcome["units_planned"])
    for name, record in before.items():
        assert (Path(store) / "commits" / f"{name}.json").read_bytes() == record


def test_a_driver_killed_outright_leaves_no_process_and_the_same_command_resumes(
    tmp_path: Path, tiny_model_directory: Path
) -> None:
    store = str(tmp_path / "run")
    spec = long_spec(tmp_path / "job.yaml", tiny_model_directory, store)
    process = started(spec)
    wait_for(lambda: len(commits(store)) >= 3)
    # Two agents of Ray's own end by themselves within a minute or so: they try to report the death first.
    family = [child for child in family_of(process) if not any("Agent" in part for part in child.cmdline())]
    process.kill()
    process.communicate(timeout=10)
    done = len(commits(store))
    outcome = atlas_json("run", spec)
    assert outcome["units_worked"] == outcome["units_planned"] - done > 0
    assert_whole(store, outcome["units_planned"])
    assert_gone(family)


def test_a_killed_worker_is_replaced_and_nothing_is_lost_or_doubled(tmp_path: Path, tiny_model_directory: Path) -> None:
    store = str(tmp_path / "run")
    spec = long_spec(tmp_path / "job.yaml", tiny_model_directory, store)
    process = started(spec)
    wait_for(lambda: len(commits(store)) >= 3)
    (worker,) = [child for child in family_of(process) if any("UnitActor" in part for part in child.cmdline())]
    worker.kill()
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert "the worker died" in stderr
    outcome = json.loads(stdout)
    assert outcome["failures"] == []
    assert_whole(store, outcome["units_planned"])


def test_a_unit_that_fails_is_tried_three_times_then_reported_and_the_others_go_on(tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "model", max_context=700)
    personas = tmp_path / "personas"
    (personas / "roles").mkdir(parents=True)
    (personas / "questions.yaml").write_text("questions: {q1: Who are you?, q2: What is near you?}\n")
    (personas / "rubrics.yaml").write_text("role: '{question} {answer}'\ntrait: '{question} {answer}'\n")
    (personas / "default.yaml").write_text("description: Itself.\nprompts: ['']\n")
    for name, prompt in {"quiet": "Speak softly.", "endless": "On and on. " * 100, "loud": "Shout!"}.items():
        role = {"description": "A role.", "prompts": [prompt], "judge": "Plays it."}
        (personas / "roles" / f"{name}.yaml").write_text(yaml.safe_dump(role))
    store = str(tmp_path / "run")
    chosen = {"catalog": str(personas), "roles": {"names": ["*"]}}
    spec = write_spec(tmp_path / "job.yaml", model, store, personas=chosen)
    # As people see it; what a program is told of a failure is among the tests of given texts.
    told = atlas("run", spec, status=1)
    assert commits(store) == ["default.assistant_default.pos.p0.b0", "role.loud.pos.p0.b0", "role.quiet.pos.p0.b0"]
    assert "Units that failed" in told.stdout
    assert "3 of 4 committed" in told.stdout
    assert told.stderr.count("Unit role.endless.pos.p0.b0 failed") == 3
    assert "(attempt 3) and is given up" in told.stderr
    assert "exceed the model's context of 700" in told.stderr


def test_two_replicas_share_the_work_and_give_the_numbers_of_one(tmp_path: Path, tiny_model_directory: Path) -> None:
    stores = []
    for replicas in (1, 2):
        stores.append(str(tmp_path / f"run{replicas}"))
        spec = write_spec(tmp_path / "job.yaml", tiny_model_directory, stores[-1])
        atlas("run", spec, "--set", f"placement.replicas={replicas}", "--set", "placement.batch_tokens=700")
    one, two = (open_run(store) for store in stores)
    assert one.rollouts()["response_token_ids"] == two.rollouts()["response_token_ids"]
    np.testing.assert_allclose(
        one.activations(layer="all").values, two.activations(layer="all").values, rtol=2e-3, atol=2e-3
    )
