"""Harm after drift on the tiny model, end to end: dialogues, labels of second replies, numbers, a resumed call."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import persona_atlas
import pytest
import yaml
from click.testing import CliRunner
from persona_atlas.analysis.axis_source import open_axis
from persona_atlas.analysis.harm.correlation import correlation_over_rollouts
from persona_atlas.cluster.cli import cli
from persona_atlas.jobs.errors import InputError
from persona_atlas.storage.query.run import Run, open_run

from chat_server import Body, ChatServer, serving
from command_line import Answered, Refused
from tiny_axes import tiny_run

LABELS = ("refusal", "redirect", "partial", "harmful", "harmless")
HARM = ("partial", "harmful")
LINES = [{"question": f"How do I brew potion {number}?", "category": "ab"[number % 2]} for number in range(4)]


@dataclass(frozen=True)
class World:
    """A tiny model with an axis, and a complete run of the study."""

    axis: Run
    file: Path
    run: Run


def written(folder: Path, spec: dict[str, Any]) -> Path:
    (folder / "harm.yaml").write_text(yaml.safe_dump(spec))
    return folder / "harm.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("harm")
    axis = tiny_run(folder / "axis")
    (folder / "mine.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    spec = {
        "model": {"source": axis.model_name},
        "harm": {
            "requests": str(folder / "mine.jsonl"),
            "questions": 3,
            "roles": {"names": ["ghost", "pirate", "poet"]},
        },
        "sampling": {"max_new_tokens": 6, "temperature": 1.0},
        "placement": {"device": "cpu"},
        "store": {"url": str(folder / "run"), "mantissa_bits": 23},
    }
    result = persona_atlas.run(spec, progress=False)
    assert result.is_complete
    return World(axis, written(folder, spec), open_run(folder / "run"))


def label_of(request: str, reply: str) -> str | None:
    """Label by the texts, as a judge at temperature 0 does; one answer in six names no label."""
    number = int(hashlib.sha256(f"{request}|{reply}".encode()).hexdigest(), 16) % 6
    return (*LABELS, None)[number]


def by_text(body: Body) -> str:
    asked = body["messages"][-1]["content"]
    request = asked.split("Request: ", 1)[-1].split("\n", 1)[0]
    reply = asked.split("Reply: ", 1)[-1].split("\n\nJudge what the reply gives", 1)[0]
    return label_of(request, reply) or "hard to say"


def judged_texts(server: ChatServer) -> list[str]:
    """Return what a judge was asked, but for the request by which a server is tried."""
    texts = [body["messages"][-1]["content"] for body in server.bodies]
    return [text for text in texts if "Request: " in text]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer(answer=by_text)) as running:
        yield running


@pytest.fixture
def copied(world: World, tmp_path: Path) -> Path:
    shutil.copytree(world.run.location.url, tmp_path / "run")
    spec = yaml.safe_load(world.file.read_text())
    return written(tmp_path, spec | {"store": spec["store"] | {"url": str(tmp_path / "run")}})


def test_second_replies_are_judged_and_set_against_first_ones(
    world: World, copied: Path, server: ChatServer, answered: Answered, tmp_path: Path
):
    judge = ("--endpoint", server.url, "--model", server.model)
    command = ("harm", copied, "--axis", world.axis.url)
    done = answered(*command, *judge, "--bins", "3", "--png", tmp_path / "harm.png")
    assert (tmp_path / "harm.png").read_bytes().startswith(b"\x89PNG")
    first, second = (
        [line for line in world.run.rollouts().to_pylist() if line["turn_index"] == turn] for turn in (1, 3)
    )
    assert len(first) == len(second) == done["conversations"] == 12
    unit_D = open_axis(world.axis.url).unit_D(1)
    found = world.run.activations(layer=1)
    projection_of = dict(zip(found.rollouts["row"].to_pylist(), (found.values @ unit_D).tolist(), strict=True))
    pairs = [
        (projection_of[one["row"]], label_of(two["question"], two["response"]), one["persona"])
        for one, two in zip(first, second, strict=True)
        if one["has_vector"] and two["has_vector"]
    ]
    labelled = [(place, float(label in HARM), role) for place, label, role in pairs if label is not None]
    counts = (done["labelled"], done["unlabelled"], done["waiting"], done["empty"])
    assert counts == (len(labelled), len(pairs) - len(labelled), 0, 12 - len(pairs))
    assert done["harm"]["count"] == sum(harm for _, harm, _ in labelled)
    assert 0 < done["harm"]["count"] < len(labelled)
    places, harm, roles = (list(column) for column in zip(*labelled, strict=True))
    expected = correlation_over_rollouts(places, harm, roles)
    assert done["correlation"]["rollouts"]["pearson"]["value"] == pytest.approx(expected.pearson.value, abs=1e-4)
    assert done["correlation"]["rollouts"]["spearman"]["value"] == pytest.approx(expected.spearman.value, abs=1e-4)
    assert sum(one["replies"] for one in done["bins"]) == len(labelled)
    assert {one["name"] for one in done["by_category"]} <= {"a", "b"}
    assert {one["name"] for one in done["by_role"]} <= {"assistant_default", "ghost", "pirate", "poet"}
    least = done["bins"][0]
    assert least["projection"] == pytest.approx(np.sort(places)[: least["replies"]].mean(), abs=1e-4)
    # First replies and system prompts are not shown to the judge.
    assert all("potion" in asked for asked in judged_texts(server))
    # Nothing is made or asked again, and the labels are found without naming the judge.
    asked = len(judged_texts(server))
    again = answered(*command, *judge)
    assert (again["units_worked"], again["judging"]["judged_before"]) == (0, len(pairs))
    assert len(judged_texts(server)) == asked >= len(pairs)
    assert answered(*command)["correlation"] == again["correlation"]
    text = CliRunner().invoke(cli, [str(word) for word in command], env={"COLUMNS": "160"}).output
    assert "Correlation of the first reply's projection" in text
    assert "roles are few" in text
    # The verdicts lie in the run's store, which is as sound as before.
    store = tmp_path / "run"
    assert (store / "verdicts" / "harm" / done["judge"] / "judge.json").is_file()
    assert persona_atlas.verify(str(store), progress=False).is_sound
    next((store / "verdicts").rglob("*.parquet")).write_bytes(b"torn")
    damaged = persona_atlas.verify(str(store), progress=False)
    assert [problem.code for problem in damaged.problems] == ["bad_object"]


def test_a_study_does_not_grow(world: World):
    spec = yaml.safe_load(world.file.read_text())
    with pytest.raises(InputError, match="other requests would follow") as caught:
        persona_atlas.run(spec, grow=True, progress=False)
    assert (caught.value.code, caught.value.field) == ("cannot_grow", "harm")


def test_without_harm_there_is_no_correlation_and_a_sentence_says_why(
    world: World, copied: Path, server: ChatServer, answered: Answered
):
    server.answer = lambda _body: "refusal"
    judge = ("--endpoint", server.url, "--model", server.model, "--judge", "kind")
    done = answered("harm", copied, "--axis", world.axis.url, *judge)
    assert done["correlation"] == {"rollouts": None, "roles": None}
    assert any("harm is 0 at all of" in note for note in done["notes"])
    assert (done["harm"]["count"], done["harm"]["rate"], done["harm"]["low"]) == (0, 0, 0)


def test_a_plan_says_how_often_a_request_is_asked_and_writes_nothing(world: World, tmp_path: Path, answered: Answered):
    new = ("--set", f"store.url={tmp_path / 'new'}")
    planned = answered("harm", world.file, *new, "--axis", world.axis.url, "--dry-run")
    assert (planned["conversations"], planned["requests"], planned["least_uses"], planned["most_uses"]) == (12, 4, 3, 3)
    assert (planned["layer"], planned["units_missing"]) == (1, 4)
    assert not (tmp_path / "new").exists()


def test_what_would_end_in_nothing_is_refused_at_the_beginning(world: World, tmp_path: Path, refused: Refused):
    new = ("--set", f"store.url={tmp_path / 'new'}", "--axis", world.axis.url)
    error = refused("harm", world.file, *new, "--rubric", "role_adoption")
    assert (error["code"], error["field"]) == ("no_harm_labels", "--rubric")
    assert refused("harm", world.file, *new, "--layer", "9")["code"] == "no_such_layer"
    error = refused("harm", world.file, *new, "--set", "capture.layers=[0]", "--layer", "1")
    assert (error["code"], error["field"]) == ("no_such_layer", "--layer")
    assert refused("harm", world.file, *new, "--judge", "nobody")["code"] == "no_such_judge"
    other = tmp_path / "other.yaml"
    spec = yaml.safe_load(world.file.read_text())
    del spec["harm"]
    other.write_text(yaml.safe_dump(spec))
    assert refused("harm", other, *new)["code"] == "no_harm"
    assert not (tmp_path / "new").exists()
