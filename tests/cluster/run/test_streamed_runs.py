"""Whole runs in this process whose weights are loaded layer by layer store what other runs store."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from persona_atlas import run
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.run import held_weights
from persona_atlas.jobs.errors import InputError
from persona_atlas.workers.builtin.builtin_engine import BuiltinEngine

from chat_server import ChatServer, serving


@pytest.fixture
def conversations(tiny_model_directory: Path, tmp_path: Path) -> dict[str, Any]:
    talks = [
        [{"role": "user", "content": f"Who are you, {n}?"}, {"role": "assistant", "content": "A pirate. " * (n + 1)}]
        for n in range(5)
    ]
    file = tmp_path / "talks.jsonl"
    file.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return {"model": {"source": str(tiny_model_directory)}, "conversations": {"source": str(file)}}


def stored(spec: dict[str, Any], url: Path, **placement: Any) -> np.ndarray:
    result = run(spec | {"store": {"url": str(url)}, "placement": placement}, progress=False)
    assert result.is_complete, result.failures
    assert result.run.completeness.is_complete
    return result.run.activations(layer="all").values


def no_engine(*_: Any) -> None:
    raise AssertionError("the weights of all layers were loaded")


def test_given_texts_are_read_by_it_where_asked_and_where_the_memory_has_no_room(
    conversations: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    expected = stored(conversations, tmp_path / "held")
    monkeypatch.setattr(BuiltinEngine, "__init__", no_engine)
    np.testing.assert_array_equal(stored(conversations, tmp_path / "asked", weights="streamed"), expected)
    # The same run: how weights are held is no part of its identity.
    assert run(
        conversations | {"store": {"url": str(tmp_path / "held")}, "placement": {"weights": "streamed"}}, progress=False
    ).is_complete
    monkeypatch.setattr(held_weights, "free_bytes", lambda _: 0)
    capsys.readouterr()
    result = run(conversations | {"store": {"url": str(tmp_path / "auto")}})
    np.testing.assert_array_equal(result.run.activations(layer="all").values, expected)
    # Nobody asked for it, so it is said, and kept in the run's record.
    said = " ".join(capsys.readouterr().err.split())
    assert "weights that are loaded layer by layer, because they do not fit the memory." in said
    told = re.search(r"Weights are loaded layer by layer, once for every [\d,]+ tokens\.", result.run.record.passes)
    assert told is not None
    assert told[0] in said


def test_what_a_server_generated_is_read_by_it(
    tiny_model_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    counts = {"prompts": 2, "questions": 2}
    spec: dict[str, Any] = {
        "model": {"source": str(tiny_model_directory)},
        "personas": {"roles": {"names": ["pirate", "poet"], **counts}, "default": counts},
        "sampling": {"max_new_tokens": 12},
    }
    with serving(ChatServer(answer=lambda _: "Arr!")) as server:
        spec["generation"] = {"endpoint": server.url, "model": "tiny"}
        expected = stored(spec, tmp_path / "held")
        monkeypatch.setattr(BuiltinEngine, "__init__", no_engine)
        np.testing.assert_array_equal(stored(spec, tmp_path / "streamed", weights="streamed"), expected)


def test_a_job_whose_workers_generate_is_refused_before_anything_is_made(tiny_model_directory: Path, tmp_path: Path):
    spec = {
        "model": {"source": str(tiny_model_directory)},
        "placement": {"weights": "streamed"},
        "store": {"url": str(tmp_path / "run")},
    }
    with pytest.raises(InputError, match="its workers generate") as caught:
        run(spec, progress=False)
    assert "generation.endpoint" in str(caught.value.hint)
    assert not (tmp_path / "run").exists()


def test_plan_explains_how_many_tokens_are_read_at_a_time(conversations: dict[str, Any], tmp_path: Path):
    file = tmp_path / "job.yaml"
    file.write_text(json.dumps(conversations | {"store": {"url": str(tmp_path / "run")}}))
    asked = ["plan", str(file), "--set", "placement.weights=streamed", "--device", "H100"]
    shown = CliRunner().invoke(cli, asked, standalone_mode=False, catch_exceptions=False).stdout
    assert "loaded layer by layer" in shown
    assert "bandwidth is assumed" in shown
    found = json.loads(CliRunner().invoke(cli, [*asked, "--json"], standalone_mode=False).stdout)
    assert found["weights"] == "streamed"
    assert found["walks"]["H100"]["tokens"] >= 4096
