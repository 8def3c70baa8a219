"""The whole way of the data through the command line, as a user goes it: a real Ray, real models, real stores.

The whole pipeline runs in processes of its own; the other tests share one Ray and run their commands here.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from persona_atlas import open_run
from persona_atlas.cluster.cli import main
from persona_atlas.jobs.catalog import load_catalog

from chat_server import ChatServer, serving
from command_line import Answered
from flow_commands import assert_whole, atlas_json, commits, write_spec
from tiny_models import SMOLLM2

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.mark.model
@pytest.mark.s3
def test_the_whole_pipeline_on_a_real_model_and_s3(tmp_path: Path, s3_store_url: str, smollm2_directory: Path) -> None:
    assert smollm2_directory.is_dir()
    spec = write_spec(tmp_path / "job.yaml", SMOLLM2, s3_store_url)

    planned = atlas_json("plan", spec)
    assert planned["rollouts_by_kind"] == {"default": 4, "role": 16, "trait": 8}

    outcome = atlas_json("run", spec)
    assert outcome["state"] == "SUCCEEDED"
    assert outcome["units_worked"] == outcome["units_planned"] == planned["units"] == 14
    assert len(outcome["summary"]["roles"]) == 4
    assert set(outcome["summary"]["floors"]) == {"p0.01", "p0.25", "p0.5", "p0.75"}
    assert_whole(s3_store_url, 14)

    out = tmp_path / "pirate.npy"
    answer = atlas_json("query", s3_store_url, "--persona", "pirate", "--layer", "15", "--out", out)
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

    shown = atlas_json("show", s3_store_url)
    assert shown["units_done"] == 14
    assert shown["personas"]["role"] == ["ghost", "lawyer", "pirate", "poet"]
    reduced = atlas_json("reduce", s3_store_url)
    assert reduced["reduction"] == shown["reduction"]
    page = tmp_path / "report.html"
    atlas_json("report", s3_store_url, "--out", page)
    assert "No scores are used" in page.read_text()
    assert open_run(s3_store_url).location.read("report.html") is not None


@pytest.mark.usefixtures("shared_ray", "signals_as_before")
def test_a_unit_that_fails_is_tried_three_times_then_reported_and_the_others_go_on(
    tmp_path: Path, tiny_model_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = str(tmp_path / "run")
    poison = load_catalog().persona("role", "poet").prompts[0]
    counts = {"prompts": 1, "questions": 2}
    chosen = {"roles": {"names": ["ghost", "pirate", "poet"], **counts}, "default": counts}
    with serving(ChatServer(answer=lambda _: "Arr!", poison=poison)) as server:
        generation = {"endpoint": server.url, "model": "tiny", "concurrency": 4}
        spec = write_spec(tmp_path / "job.yaml", tiny_model_directory, store, personas=chosen, generation=generation)
        # As people see it; what a program is told of a failure is among the tests of given texts.
        with pytest.raises(SystemExit) as ended:
            main(["run", str(spec)])
    assert ended.value.code == 1
    stdout, stderr = capsys.readouterr()
    assert commits(store) == ["default.assistant_default.pos.p0.b0", "role.ghost.pos.p0.b0", "role.pirate.pos.p0.b0"]
    assert "Units that failed" in stdout
    assert "3 of 4 committed" in stdout
    assert stderr.count("Unit role.poet.pos.p0.b0 failed") == 3
    assert "(attempt 3) and is given up" in stderr
    assert "poisoned" in stderr


@pytest.mark.usefixtures("shared_ray")
def test_two_replicas_share_the_work_and_give_the_numbers_of_one(
    tmp_path: Path, tiny_model_directory: Path, answered: Answered
) -> None:
    stores = []
    for replicas in (1, 2):
        stores.append(str(tmp_path / f"run{replicas}"))
        spec = write_spec(tmp_path / "job.yaml", tiny_model_directory, stores[-1])
        answered("run", spec, "--set", f"placement.replicas={replicas}", "--set", "placement.batch_tokens=700")
    one, two = (open_run(store) for store in stores)
    assert one.rollouts()["response_token_ids"] == two.rollouts()["response_token_ids"]
    np.testing.assert_allclose(
        one.activations(layer="all").values, two.activations(layer="all").values, rtol=2e-3, atol=2e-3
    )
