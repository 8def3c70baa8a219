"""Given conversations, and responses of a server, through the command line: a real Ray, real models and stores.

Commands run in this process and share one Ray, but for the one that is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from persona_atlas import open_run
from persona_atlas.cluster.cli import cli
from persona_atlas.jobs.catalog import load_catalog
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.query.run import Run
from persona_atlas.workers.chat.spans import load_renderer

from chat_server import ChatServer, serving, wait_until
from command_line import Answered, Refused
from conversations import conversation, line, write_lines
from plain_forward import PlainModel, relative_errors

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]


def here(*arguments: str | Path) -> dict[str, Any]:
    """Run a command and return the object that it prints; its errors are raised."""
    asked = [*map(str, arguments), "--json"]
    done = CliRunner().invoke(cli, asked, catch_exceptions=False, standalone_mode=False)
    return json.loads(done.stdout)


def extracting(model: Path, source: Path, store: str, *more: str | Path) -> tuple[str | Path, ...]:
    """The arguments of an extraction."""
    return ("extract", "--model", model, "--conversations", source, "--store", store, *more)


def assert_plain(run: Run, model: Path, talks: list[dict[str, Any]], pooling: str = "response_mean") -> None:
    """Check every row against one plain forward pass over its whole conversation, to the store's precision."""
    plain, renderer = PlainModel(model), load_renderer(model)
    found = run.activations(layer="all", pooling=pooling)
    place = {
        (line["conversation_index"], line["turn_index"]): row for row, line in enumerate(found.rollouts.to_pylist())
    }
    seen = 0
    for index, talk in enumerate(talks):
        messages = talk.get("messages") or talk["conversation"]
        has_system = messages[0]["role"] == "system"
        system = messages[0]["content"] if has_system else ""
        texts = [message["content"] for message in messages[has_system:]]
        text = renderer.render(conversation(*texts, system_prompt=system))
        states, _ = plain.run(text.token_ids)
        for turn, (start, stop) in zip(range(1, len(texts), 2), text.responses, strict=True):
            if start == stop:
                assert (index, turn) not in place
                continue
            span = states[:, start:stop] if pooling.startswith("response") else states[:, :start]
            expected = span.astype(np.float64).mean(axis=1)
            assert relative_errors(found.values[place[index, turn]], expected).max() < 1e-3
            seen += 1
    assert seen == found.values.shape[0]


@pytest.mark.s3
def test_conversations_of_every_length_are_what_plain_forward_passes_show(
    tmp_path: Path, s3_store_url: str, tiny_model_directory: Path, answered: Answered
):
    talks = [
        line("Hi", "Hello there.", "So?", "So. " * 30, "And?", "", "Well?", "Well. \u2620", system_prompt="Be.", id=3),
        line("Why? " * 40, "Because."),
        *[line(f"What is {n}?", f"It is {n}." * (1 + n % 7), tag=[n]) for n in range(60)],
        line("Hi", "  Hello\n", "unanswered"),
    ]
    source = write_lines(tmp_path / "talks.jsonl", talks)
    options = ("--pooling", "response_mean", "--pooling", "prompt_mean", "--set", "placement.batch_tokens=400")
    extraction = extracting(tiny_model_directory, source, s3_store_url, *options)
    outcome = answered(*extraction)
    assert (outcome["state"], outcome["units_worked"]) == ("SUCCEEDED", 1)
    assert outcome["summary"] is None

    run = open_run(s3_store_url)
    assert run.index.num_rows == 66
    assert run.num_empty_responses == 1
    assert_plain(run, tiny_model_directory, talks)
    assert_plain(run, tiny_model_directory, talks, pooling="prompt_mean")

    (row,) = run.rollouts(conversation=0, turn=3).to_pylist()
    assert (row["conversation_index"], row["turn_index"], row["finish_reason"]) == (0, 3, "given")
    assert (row["question"], row["response"], row["system_prompt"]) == ("So?", "So. " * 30, "Be.")
    assert json.loads(row["extra"]) == {"id": 3}
    assert run.activations(turn=[3, 7]).values.shape == (2, 32)
    assert run.rollouts(conversation=[0])["turn_index"].to_pylist() == [1, 3, 5, 7]

    out = tmp_path / "talks.npz"
    answer = here("query", s3_store_url, "--conversation", "2", "--layer", "1", "--out", out)
    assert answer["shape"] == [1, 32]
    with np.load(out) as file:
        assert (file["conversation_index"], file["turn_index"]) == ([2], [1])
    assert here("verify", s3_store_url)["units_done"] == 1
    assert here("show", s3_store_url)["personas"] == {"conversation": ["talks"]}

    assert here(*extraction)["units_worked"] == 0
    write_lines(source, talks[:-1])
    with pytest.raises(InputError) as caught:
        here(*extraction)
    assert (caught.value.code, caught.value.field) == ("other_run", "--conversations")


def test_the_released_pipelines_responses_are_reduced_to_roles_and_an_axis(
    tmp_path: Path, tiny_model_directory: Path, answered: Answered
):
    folder = tmp_path / "responses"
    folder.mkdir()
    for name in ("default", "pirate", "poet", "teacher"):
        lines = [
            {
                "system_prompt": f"You are a {name}.",
                "label": "default" if name == "default" else "pos",
                "prompt_index": prompt,
                "question_index": question,
                "question": f"What is {question}?",
                "conversation": [
                    {"role": "system", "content": f"You are a {name}."},
                    {"role": "user", "content": f"What is {question}?"},
                    {"role": "assistant", "content": f"{name} says {prompt} and {question}."},
                ],
            }
            for prompt in range(2)
            for question in (3, 1, 2)
        ]
        write_lines(folder / f"{name}.jsonl", lines)
    store = str(tmp_path / "run")
    outcome = answered(*extracting(tiny_model_directory, folder, store))
    assert outcome["units_planned"] == 8
    assert sorted(role["role"] for role in outcome["summary"]["roles"]) == ["pirate", "poet", "teacher"]
    run = open_run(store)
    assert run.reduction is not None
    assert run.reduction.role_names == ("pirate", "poet", "teacher")
    (row,) = run.rollouts(persona="pirate", prompt=1, question=2).to_pylist()
    assert row["response"] == "pirate says 1 and 2."
    expected = run.activations(kind="role", persona="poet", layer=1).values.mean(axis=0)
    assert run.reduction.role_vectors is not None
    np.testing.assert_allclose(run.reduction.role_vectors[1, 1], expected, rtol=1e-5, atol=1e-6)


def test_bad_input_is_refused_before_anything_runs(tmp_path: Path, tiny_model_directory: Path, refused: Refused):
    store = str(tmp_path / "run")
    source = write_lines(tmp_path / "talks.jsonl", [line("Hi", "Hello"), line("Hi")])
    error = refused(*extracting(tiny_model_directory, source, store))
    assert error["file"] == str(source)
    assert "line 2" in error["error"]
    assert error["field"] == "messages"
    source = write_lines(tmp_path / "long.jsonl", [line("Hi", "Hello"), line("Hi", "Hello" * 1000)])
    with pytest.raises(InputError, match=f"{source}, line 2") as caught:
        here(*extracting(tiny_model_directory, source, store))
    assert caught.value.code == "too_long"
    assert not Path(store).exists()


def commits(store: str) -> list[str]:
    folder = Path(store) / "commits"
    return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []


def test_a_killed_run_continues_from_its_committed_units(
    tmp_path: Path, tiny_model_directory: Path, answered: Answered
):
    folder = tmp_path / "talks"
    folder.mkdir()
    talks = [line(f"What is {n}? " * 20, f"It is {n}. " * 60, "So?", "So.") for n in range(60)]
    for n, talk in enumerate(talks):
        write_lines(folder / f"talk{n:02}.jsonl", [talk])
    store = str(tmp_path / "run")
    arguments = extracting(tiny_model_directory, folder, store, "--set", "placement.batch_tokens=64")
    command = [sys.executable, "-m", "persona_atlas.cluster.cli", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(commits(store)) >= 3, timeout_s=200)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)
    done = len(commits(store))
    outcome = answered(*arguments)
    assert outcome["units_planned"] == 60
    assert outcome["units_worked"] == 60 - done
    assert_plain(open_run(store), tiny_model_directory, talks)


def served_spec(path: Path, directory: Path, store: str, url: str, **generation: Any) -> Path:
    counts = {"prompts": 2, "questions": 2}
    spec = {
        "model": {"source": str(directory)},
        "personas": {"roles": {"names": ["ghost", "pirate", "poet"], **counts}, "default": counts},
        "sampling": {"max_new_tokens": 12},
        "generation": {"endpoint": url, "model": "tiny", **generation},
        "store": {"url": store},
    }
    path.write_text(yaml.safe_dump(spec))
    return path


@pytest.mark.s3
def test_a_server_generates_and_the_run_is_resumed_by_units(
    tmp_path: Path, s3_store_url: str, tiny_model_directory: Path, answered: Answered
):
    poison = load_catalog().persona("role", "poet").prompts[0]
    with serving(ChatServer(answer=lambda _: "Arr!", poison=poison)) as server:
        spec = served_spec(tmp_path / "job.yaml", tiny_model_directory, s3_store_url, server.url)
        first = answered("run", spec, "--set", "generation.concurrency=4", status=1)
        assert first["state"] == "FAILED"
        (failure,) = first["failures"]
        assert (failure["unit_id"], failure["attempts"]) == ("role.poet.pos.p0.b0", 3)
        assert "poisoned" in failure["error"]
        assert "Traceback" in failure["detail"]
        asked = len(server.bodies)
        server.poison = ""
        second = answered("run", spec)
        assert second["state"] == "SUCCEEDED"
        assert second["units_worked"] == 1
        assert len(server.bodies) - asked == 4, "two questions; driver and worker look whether it is there"
        run = open_run(s3_store_url)
        rollouts = run.rollouts()
        assert set(rollouts["response"].to_pylist()) == {"Arr!"}
        assert rollouts.column_names == run.rollouts(persona="nobody").column_names
        assert "conversation_index" not in rollouts.column_names
        assert run.reduction is not None
        with pytest.raises(InputError, match=r"generation\.model"):
            here("run", spec, "--set", "generation.model=huge")
        unknown = served_spec(tmp_path / "x.yaml", tiny_model_directory, str(tmp_path / "x"), server.url, model="huge")
        with pytest.raises(InputError) as refused:
            here("run", unknown)
        assert (refused.value.field, refused.value.code) == ("generation.model", "endpoint_refused")
        assert not (tmp_path / "x" / "run.json").exists()
