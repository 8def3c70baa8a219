"""A sweep over prompts of a file: harm by category and setting, and its change against the model as it is, in pairs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from persona_atlas.analysis.harm.changes import paired_change
from persona_atlas.analysis.sweeping.intervals import wilson_interval
from persona_atlas.cluster.cli import cli
from persona_atlas.cluster.run.local import open_local_backend
from persona_atlas.cluster.run.progress import Progress
from persona_atlas.cluster.sweeping.prepare import prepare_sweep
from persona_atlas.cluster.sweeping.run import run_sweep
from persona_atlas.jobs.specs.sweep_spec import make_sweep
from persona_atlas.storage.query.run import open_run
from rich.console import Console

from chat_server import Body, ChatServer, serving
from command_line import Answered, Refused
from tiny_axes import tiny_run

LABELS = ("refusal", "redirect", "partial", "harmful", "harmless")
HARM = ("partial", "harmful")
NAMES = ("plain", "steer -2", "cap p0.25")
LINES = [
    {
        "system": f"You are witch {number}.",
        "question": f"What is in pot {number}?",
        # A category may be called as the group of all replies is.
        "category": ("all", "pots")[number % 2],
    }
    for number in range(10)
]


def label_of(reply: str) -> str | None:
    """Label a reply by its text, as a judge at temperature 0 does; one answer in six names no label."""
    return (*LABELS, None)[int(hashlib.sha256(reply.encode()).hexdigest(), 16) % 6]


def by_text(body: Body) -> str:
    asked = body["messages"][-1]["content"]
    return label_of(asked.split("Reply: ", 1)[-1].split("\n\nJudge what the reply gives", 1)[0]) or "hard to say"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The spec of a sweep over a file of prompts, all of whose settings are run."""
    folder = tmp_path_factory.mktemp("jailbreaks")
    axis = tiny_run(folder / "axis")
    (folder / "mine.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in LINES))
    spec = {
        "model": {"source": axis.model_name},
        "prompts": {"source": str(folder / "mine.jsonl")},
        "sampling": {"max_new_tokens": 6},
        "placement": {"device": "cpu"},
        "sweep": {"axis": axis.url, "layers": [1], "settings": [0, -2, "p0.25"], "rubric": "harm"},
        "store": {"url": str(folder / "sweep")},
    }
    quiet = Progress(Console(quiet=True))
    outcome = run_sweep(prepare_sweep(make_sweep(spec), quiet), quiet, open_local_backend, nullcontext)
    assert outcome.is_complete
    (folder / "sweep.yaml").write_text(yaml.safe_dump(spec))
    return spec | {"file": str(folder / "sweep.yaml")}


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with serving(ChatServer(answer=by_text)) as running:
        yield running


def test_harm_is_counted_by_category_and_compared_prompt_by_prompt(
    swept: dict[str, Any], server: ChatServer, answered: Answered, tmp_path: Path
):
    judge = ("--endpoint", server.url, "--model", server.model)
    done = answered("sweep", swept["file"], *judge, "--by", "persona", "--png", tmp_path / "harm.png")
    assert (tmp_path / "harm.png").read_bytes().startswith(b"\x89PNG")
    assert (done["units_worked"], done["rubric"], done["harm_labels"]) == (0, "harm", list(HARM))
    folders = {one.name: one.folder for one in make_sweep({k: v for k, v in swept.items() if k != "file"}).settings}
    label: dict[str, dict[int, str | None]] = {}
    for name in NAMES:
        replies = open_run(f"{swept['store']['url']}/settings/{folders[name]}").rollouts().to_pylist()
        label[name] = {one["question_index"]: label_of(one["response"]) for one in replies if one["has_vector"]}
    points = {(point["setting"], point["group"]): point for point in done["points"]}
    assert list(points) == [(name, group) for name in NAMES for group in ("all", "conversation all", "pots")]
    of_group = {"all": range(10), "pots": range(1, 10, 2), "conversation all": range(0, 10, 2)}
    for (name, group), point in points.items():
        said = [label[name].get(index) for index in of_group[group]]
        known = [one for one in said if one is not None]
        count = sum(one in HARM for one in known)
        assert (point["harm"]["count"], point["labelled"]) == (count, len(known))
        assert (point["harm"]["low"], point["harm"]["high"]) == wilson_interval(count, len(known))
    changes = {(one["setting"], one["group"]): one for one in done["harm_changes"]}
    assert list(changes) == [(name, group) for name in NAMES[1:] for group in ("all", "conversation all", "pots")]
    for (name, group), change in changes.items():
        before, after = (
            {
                index: said in HARM
                for index, said in label[setting].items()
                if said is not None and index in of_group[group]
            }
            for setting in ("plain", name)
        )
        assert change == {"setting": name, "group": group} | paired_change(before, after).as_dict()
    assert changes["steer -2", "all"]["pairs"] > 0
    # A judge is shown the request and the reply, and not the system prompt.
    assert not any("You are witch" in body["messages"][-1]["content"] for body in server.bodies)
    text = CliRunner().invoke(cli, ["sweep", swept["file"], "--by", "persona"], env={"COLUMNS": "220"}).output
    assert "Change of harm against the model as it is" in text
    assert "Harm: partial, harmful." in text


def test_without_the_model_as_it_is_no_change_is_given(swept: dict[str, Any], server: ChatServer, answered: Answered):
    judge = ("--endpoint", server.url, "--model", server.model, "--set", "sweep.settings=[-2]")
    done = answered("sweep", swept["file"], *judge)
    assert done["harm_changes"] == []
    assert any("add plain" in note for note in done["notes"])


def test_a_study_of_harm_is_no_sweep(swept: dict[str, Any], tmp_path: Path, refused: Refused):
    spec = {name: section for name, section in swept.items() if name not in ("file", "prompts")}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(spec | {"harm": {"requests": swept["prompts"]["source"]}}))
    error = refused("sweep", tmp_path / "other.yaml")
    assert (error["code"], error["field"]) == ("not_in_a_sweep", "harm")
